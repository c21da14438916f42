"""`evaluate` by a real vLLM: greedy answers and their grades are those of the engine `transformers`."""

from __future__ import annotations

from fuserl.evaluation.benchmarks import results
from fuserl.evaluation.evaluate import evaluate
from fuserl.settings import compose

ASKED = ["benchmark=[miniature]", "benchmarks.miniature.questions.limit=40", "dtype=float32",
         "benchmarks.miniature.sampling.temperature=0"]  # fmt: skip


def test_both_engines_answer_alike(models, tmp_path):
    def by(engine: str, *more: str):
        folder = evaluate(
            compose(
                "evaluate",
                [*ASKED, f"model={models['llama']}", f"engine={engine}", f"output={tmp_path / engine}", *more],
            )
        )
        return results.read(folder / "miniature"), results.graded(folder / "miniature")

    (ours, our_rows), (theirs, their_rows) = (
        by("transformers", "engine.device=cpu"),
        by("vllm", "engine.enforce_eager=true"),
    )
    alike = [one.answer == other.answer for one, other in zip(our_rows, their_rows, strict=True)]
    assert sum(alike) >= 0.8 * len(alike)  # else two tokens were as likely as each other, up to rounding
    assert abs(ours.numbers[0].value - theirs.numbers[0].value) <= (len(alike) - sum(alike)) / len(alike)
    assert theirs.about["engine"][0].startswith("vllm")
    assert ours.about["template_hash"] == theirs.about["template_hash"]
