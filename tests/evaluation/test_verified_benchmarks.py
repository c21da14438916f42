"""Benchmarks through the verb: answers once, numbers by their definition, nothing missing that is not said."""

from __future__ import annotations

import gzip
import itertools
import json
import math
import shutil
import time
from pathlib import Path

import kit
import numpy as np
import openai_server
import pytest
import stories
from canned import Canned, canned
from fake_runs import write_run
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import fuserl
from fuserl.errors import FuserlError
from fuserl.evaluation.benchmarks import readers, results, verifiable, work
from fuserl.evaluation.benchmarks.protocol import Benchmark, Question
from fuserl.evaluation.benchmarks.questions import Questions
from fuserl.evaluation.benchmarks.work import Model, Worker
from fuserl.evaluation.compare import compare
from fuserl.evaluation.evaluate import evaluate
from fuserl.evaluation.runs import read_run
from fuserl.models.load import load_tokenizer
from fuserl.records.formats import read_groups
from fuserl.records.journal import Journal
from fuserl.records.schema import Message, PromptGroup, Response
from fuserl.rewards.made import made
from fuserl.settings import compose, config_folder, plain
from fuserl.sources.protocol import Sampling
from fuserl.sources.source import Source

TARGET = Path(fuserl.__file__).parent / "miniature" / "target"
EVAL = kit.shared_data() / "eval"
FILES = {
    "gsm8k": EVAL / "gsm8k_test200.jsonl",
    "humaneval": EVAL / "humaneval.jsonl",
    "mbpp": EVAL / "mbpp_sanitized.jsonl",
    "ifeval": EVAL / "ifeval_input_data.jsonl",
}
QUICK = ("engine.device=cpu", "decoding.greedy.max_tokens=16", "on_failure=leave_out")


@pytest.fixture
def asked(tmp_path):
    """Evaluate a model on benchmarks whose questions are files here."""

    def run(*names: str, model: Path = TARGET, more: tuple[str, ...] = (), output: str | None = "out") -> Path:
        paths = [f"benchmarks.{name}.questions.path={FILES[name]}" for name in names if name in FILES]
        where = [f"output={tmp_path / output}"] if output else []
        settings = [f"model={model}", f"benchmark=[{','.join(names)}]", *QUICK, *paths, *where, *more]
        return evaluate(compose("evaluate", settings))

    return run


def graded(*verdicts: list[str]) -> list[PromptGroup]:
    """Groups whose answers have these verdicts."""
    return [
        PromptGroup(str(n), (Message("user", "?"),), tuple(Response("m", "a", i, verdict=v) for i, v in enumerate(row)))
        for n, row in enumerate(verdicts)
    ]


@given(st.integers(1, 9), st.data())
def test_the_unbiased_estimator_is_the_mean_over_all_draws(num_samples, data):
    num_right, k = data.draw(st.integers(0, num_samples)), data.draw(st.integers(1, num_samples))
    draws = list(itertools.combinations([True] * num_right + [False] * (num_samples - num_right), k))
    expected = sum(any(draw) for draw in draws) / len(draws)
    assert verifiable.unbiased(num_samples, num_right, k) == pytest.approx(expected, abs=1e-12)


def test_pass_at_k_on_ten_samples_is_the_product_form_of_the_paper():
    """1 - prod(1 - k / i) over i = n - c + 1 .. n, on the published verdicts of the ten-sample source."""
    groups = []
    for split in ("train", "validation", "test"):
        for group in read_groups(kit.shared_data() / "humaneval_multi", split=split, on_bad_row="skip"):
            kept = [r for r in group.responses if r.source == "codegen-16B-mono"]
            groups += graded(["right" if r.reward else "wrong" for r in kept])
    assert len(groups) == 164
    ks = [1, 5, 9]
    found = verifiable.pass_at(groups, k=ks)
    for k, number in zip(ks, found, strict=True):
        shares = []
        for group in groups:
            n, c = len(group.responses), sum(r.verdict == "right" for r in group.responses)
            shares.append(1.0 if n - c < k else 1 - math.prod(1 - k / i for i in range(n - c + 1, n + 1)))
        assert number.name == f"pass@{k}"
        assert number.value == pytest.approx(100 * np.mean(shares), abs=1e-9)
        assert number.low < number.value < number.high
    with pytest.raises(FuserlError, match="needs 10 answers"):
        verifiable.pass_at(groups, k=[10])


def test_what_has_no_verdict_is_neither_right_nor_wrong():
    (number,) = verifiable.accuracy(graded(["right", "unknown"], ["wrong", "wrong"], ["unknown", "unknown"]))
    assert number.value == 50.0
    assert verifiable.accuracy(graded(["unknown"]))[0].value is None
    counts, notes = verifiable.counted(graded(["right", "unknown"], ["unknown"]), graded(["right", "unknown"]), 2)
    assert counts["unknown"] == 1
    assert counts["unanswered"] == 2
    assert len(notes) == 2


@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_an_interval_holds_its_number_and_says_something_at_the_ends(values):
    number = verifiable.share_of([float(value) for value in values], "accuracy")
    assert 0 <= number.low <= number.value + 1e-9
    assert number.value - 1e-9 <= number.high <= 100
    assert number.high > number.low  # ten right answers of ten are no proof of a hundred per cent


def test_wilson_is_the_root_of_its_definition():
    number = verifiable.share_of([1.0] * 3 + [0.0] * 17, "accuracy")
    for end in (number.low / 100, number.high / 100):
        assert (0.15 - end) ** 2 == pytest.approx(verifiable.NORMAL**2 * end * (1 - end) / 20, rel=1e-9)


def test_ifeval_counts_are_the_recorded_ones(tmp_path):
    """The 270 recorded answers, graded through the benchmark: its four numbers beside the means of recorded verdicts."""
    with gzip.open(EVAL / "ifeval_gpt4_verdicts.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    file = tmp_path / "ifeval.jsonl"
    file.write_text("".join(json.dumps({k: v for k, v in row.items() if k != "response"}) + "\n" for row in rows))
    cfg = compose("evaluate", [f"model={TARGET}", "benchmark=ifeval", f"benchmarks.ifeval.questions.path={file}"])
    result = canned(cfg, "ifeval", tmp_path / "work", {row["prompt"]: row["response"] for row in rows})
    numbers = {number.name: number.value for number in result.numbers}
    for reading in ("strict", "loose"):
        flat = [verdict for row in rows for verdict in row[reading]]
        whole = [all(row[reading]) for row in rows]
        assert numbers[f"{reading}_instruction_accuracy"] == pytest.approx(100 * np.mean(flat), abs=0.5)
        assert numbers[f"{reading}_prompt_accuracy"] == pytest.approx(100 * np.mean(whole), abs=0.75)
    assert result.counts["unknown"] == 0


def test_the_target_of_the_small_world_from_end_to_end(asked, tmp_path):
    folder = asked("gsm8k", "mbpp", "miniature", more=("benchmarks.miniature.questions.limit=40", "benchmarks.mbpp.questions.limit=30",
                   "benchmarks.gsm8k.questions.read.form=null", "benchmarks.mbpp.questions.read.form=null"))  # fmt: skip
    found = results.all_in(folder)
    assert set(found) == {"gsm8k", "mbpp", "miniature"}
    for name in ("gsm8k", "mbpp"):  # most questions are longer than its 128 positions: said, not counted as wrong
        counts = found[name].counts
        assert counts["unanswered"] > 0
        assert counts["answers"] > 0
        assert counts["prompts"] == counts["answers"] + counts["unanswered"]
        assert any("did not come" in note for note in found[name].notes)
    rows = results.graded(folder / "miniature")
    assert found["miniature"].numbers[0].value == pytest.approx(np.mean([row.score for row in rows]))
    about = found["miniature"].about
    assert {"model", "date", "engine", "template_hash", "sampling", "digest"} <= about.keys()
    run = read_run(folder)
    assert set(run.benchmarks) == set(found)


def test_real_weights_from_end_to_end(asked, tmp_path):
    """The tiny pretrained model with its own tokenizer, on whole questions and in the sandbox."""
    model = tmp_path / "stories"
    origin = kit.shared_data() / "models" / "stories260K"
    stories.save(origin, model)
    tokenizer, pieces = load_tokenizer(str(model)), stories.Pieces(origin / "tok512.bin")
    for text in (stories.OPENING, " naïve\n", " 日本"):
        assert tokenizer.encode(text, add_special_tokens=False) == pieces.encode(text)
    more = ("chat_template=plain", *(f"benchmarks.{name}.questions.limit=6" for name in ("gsm8k", "humaneval", "mbpp")),
            *(f"benchmarks.{name}.graders.code.allow_unsafe_code=false" for name in ("humaneval", "mbpp")))  # fmt: skip
    folder = asked("gsm8k", "humaneval", "mbpp", model=model, more=more)
    for name, result in results.all_in(folder).items():
        counts = result.counts
        assert counts["answers"] + counts["unanswered"] == 6, name
        assert counts["answers"] > 0, name
        assert counts["unknown"] == 0, name
        assert result.numbers[0].value == 0.0  # it tells stories


def test_answers_are_asked_once(asked, tmp_path, monkeypatch):
    more = ("benchmarks.miniature.questions.limit=12",)
    folder = asked("miniature", more=more)
    with Journal(folder / "answers.jsonl") as journal:
        assert len(journal) == 12
    before = results.read(folder / "miniature")

    def refuse(*_):
        raise AssertionError("the model was started again")

    monkeypatch.setattr("fuserl.sources.transformers.load_policy", refuse)
    assert results.read(asked("miniature", more=more) / "miniature") == before
    regraded = ("benchmarks.miniature.measure._target_=fuserl.evaluation.benchmarks.verifiable.accuracy",
                "~benchmarks.miniature.measure.name",
                "benchmarks.miniature.graders.own.right_at=1")  # fmt: skip
    again = results.read(asked("miniature", more=(*more, *regraded)) / "miniature")
    assert again.numbers[0].name == "accuracy"
    shutil.rmtree(folder / "miniature")
    assert results.read(asked("miniature", more=more) / "miniature").numbers == before.numbers


def test_a_model_trained_anew_does_not_inherit_answers(asked, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(TARGET, model)
    more = ("benchmarks.miniature.questions.limit=4",)
    asked("miniature", model=model, more=more)
    weights = load_file(model / "model.safetensors")
    save_file({name: weight * 1.01 for name, weight in weights.items()}, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(FuserlError, match="benchmarks of another model"):
        asked("miniature", model=model, more=more)


def test_a_run_keeps_its_evaluation_beside_its_model_and_its_recipe_shows_it(asked, tmp_path):
    stage = tmp_path / "recipe" / "01_sft"
    write_run(stage)
    shutil.copytree(TARGET, stage / "model")
    folder = asked(
        "miniature", model=tmp_path / "recipe", more=("benchmarks.miniature.questions.limit=12",), output=None
    )
    assert folder == stage / "evaluation"
    page = (tmp_path / "recipe" / "report.html").read_text(encoding="utf-8")
    assert "miniature" in page
    value = results.read(folder / "miniature").numbers[0].value
    assert f"{value:.2f} [" in page
    compared = compare(compose("compare", [f"runs=[{tmp_path / 'recipe'}]", f"output={tmp_path / 'cmp'}",
                                           "metric=evaluation/miniature/reward"]))  # fmt: skip
    assert "reward" in (compared / "benchmarks.csv").read_text()
    assert "Benchmarks" in (compared / "index.html").read_text(encoding="utf-8")
    table = (compared / "table.csv").read_text()
    assert repr(value) in table


def test_questions_of_the_training_data_are_left_out_beside(asked, tmp_path):
    """Three of twelve questions stand in the data: named, counted, and the mean over the other nine stands beside."""
    with gzip.open(TARGET.parent / "data" / "test.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file][:12]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"prompt": row["prompt"], "responses": []}) + "\n" for row in rows[:3]))
    more = ("benchmarks.miniature.questions.limit=12", f"train_data={data}")
    folder = asked("miniature", more=more)
    result = results.read(folder / "miniature")
    held = {row["prompt_id"] for row in rows[:3]}
    clean = [row.score for row in results.graded(folder / "miniature") if row.prompt_id not in held]
    number = next(one for one in result.numbers if one.name == "clean_reward")
    assert result.counts["contaminated"] == 3
    assert number.value == pytest.approx(np.mean(clean))
    assert number.value != result.numbers[0].value
    assert any("3 of 12 questions" in note for note in result.notes)
    data.write_text(json.dumps({"prompt": "nothing of the kind", "responses": []}) + "\n")
    again = results.read(asked("miniature", more=more) / "miniature")
    assert again.counts["contaminated"] == 0
    assert [one.name for one in again.numbers] == ["reward"]
    with pytest.raises(FuserlError, match="no such file"):
        asked("miniature", more=("train_data=nowhere.jsonl",))


def test_wandb_gets_numbers_and_answers(asked, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    more = ("benchmarks.miniature.questions.limit=3", "wandb.project=tried")
    folder = asked("miniature", more=more)
    for _ in range(2):  # a second command replaces the record instead of doubling it
        (record,) = (folder / "wandb").glob("offline-run-*")
        deadline = time.monotonic() + 20
        while len(list(record.rglob("*.table.json"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)  # W&B's service may write after the run has ended
        rows = [json.loads(path.read_text()) for path in record.rglob("*.table.json")]
        numbers = next(table for table in rows if table["columns"][0] == "benchmark")
        value = results.read(folder / "miniature").numbers[0].value
        assert numbers["data"][0][:3] == ["miniature", "reward", value]
        answers = next(table for table in rows if table["columns"][0] == "prompt_id")
        assert len(answers["data"]) == 3
        asked("miniature", more=more)


@pytest.mark.parametrize("rows", ['{"question": "2 + 2?"}', '{"question": "", "answer": "#### 4"}', "[1]", "{"])
def test_a_file_of_something_else_is_told_before_anything_is_asked(asked, tmp_path, rows):
    file = tmp_path / "rows.jsonl"
    file.write_text(rows + "\n")
    with pytest.raises(FuserlError) as told:
        asked("gsm8k", more=(f"benchmarks.gsm8k.questions.path={file}",))
    assert str(file) in str(told.value)
    assert not (tmp_path / "out").exists()


def test_a_missing_file_and_two_equal_ids(tmp_path):
    with pytest.raises(FuserlError, match="no such file"):
        _ = Questions(str(tmp_path / "no.jsonl"), readers.ifeval).groups
    file = tmp_path / "two.jsonl"
    file.write_text(2 * '{"id": "a", "question": "2?", "answer": "#### 2"}\n')
    with pytest.raises(FuserlError, match="appears twice"):
        _ = Questions(str(file), lambda row: readers.gsm8k(row, form=None)).groups


def test_texts_of_questions_fill_no_blank():
    group = readers.gsm8k({"id": "a", "question": "{{question}} {{x}}", "answer": "#### 1"}, form="Q: {{question}}")
    assert group.prompt[0].content == "Q: {{question}} {{x}}"
    with pytest.raises(ValueError, match="`nothing`"):
        readers.gsm8k({"id": "a", "question": "2?", "answer": "#### 1"}, form="{{nothing}}")


def test_a_judge_of_chinese_answers(tmp_path, monkeypatch):
    """Over HTTP; a reply without one rating is a missing verdict, not a low one."""
    rows = [
        {"question_id": n, "category": "数学", "question": f"{n} 加 1？", "reference": str(n + 1)} for n in range(4)
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def says(body):
        text = body["messages"][-1]["content"]
        return ("Rating: [[3]]" if "0 加" in text else "很好" if "1 加" in text else "Rating: [[9]]"), "stop", 1, 1

    monkeypatch.setattr(openai_server, "answer_to", says)
    with openai_server.Server() as server:
        cfg = compose("evaluate", ["model=x", "benchmark=alignbench", f"benchmarks.alignbench.questions.path={file}",
                                   f"benchmarks.alignbench.graders.judge.engine.url={server.url}"])  # fmt: skip
        result = canned(cfg, "alignbench", tmp_path / "work", {row["question"]: "[[10]]" for row in rows})
    assert result.numbers[0].value == pytest.approx((3 + 9 + 9) / 3)
    assert result.counts["unknown"] == 1


OFFLINE = ("gsm8k", "math", "humaneval", "mbpp", "ifeval", "miniature", "alignbench")


def test_a_grader_with_a_model_of_its_own_finds_the_memory_free(tmp_path):
    """The model under test is closed before, and started again when the next benchmark asks."""
    rows = [{"prompt_id": str(n), "prompt": f"sort b{n}a"} for n in range(3)]
    file = tmp_path / "q.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    started: list[Canned] = []

    def start(_):
        started.append(Canned({row["prompt"]: "ab" for row in rows}))
        return started[-1]

    node = plain(compose("evaluate", ["model=x", "benchmark=own", f"benchmarks.own.questions.path={file}",
                                      "benchmarks.own.graders.own.path=fuserl.miniature.tasks.score"]))  # fmt: skip
    node = dict(node["benchmarks"]["own"])
    graders = node.pop("graders")
    benchmark = made(node, "own")
    model = Model(Source("canned", "canned", Sampling(1)), start, tmp_path, 0, None, "error")
    benchmark.run(Worker("own", model, tmp_path / "a", graders))
    assert not started[0].closed
    local = plain(compose("score", ["data.path=x", "reward=reward_model", "rewards.reward_model.path=m"]))
    assert work.loads_a_model(local["rewards"]["reward_model"])
    heavy = {"own": graders["own"] | {"engine": {"_target_": "fuserl.sources.vllm.VllmEngine"}}}
    assert work.loads_a_model(heavy["own"])
    assert not work.loads_a_model(graders["own"])
    model.release()
    assert started[0].closed
    with pytest.raises(KeyError):  # a question that it has not heard: it is asked, so it was started again
        model.answered([Question(PromptGroup("n", (Message("user", "new"),), ()), Sampling(4))], "own")
    assert len(started) == 2
    model.close()


@pytest.mark.parametrize("name", OFFLINE)
def test_every_benchmark_of_a_file_is_one(name):
    node = compose("evaluate", ["model=x", f"benchmark={name}"]).benchmarks[name]
    built = made({key: value for key, value in node.items() if key != "graders"}, name)
    assert isinstance(built, Benchmark)
    assert built.name == name
    assert (config_folder() / "benchmark" / f"{name}.yaml").exists()


@pytest.mark.parametrize("name", ["mt_bench", "arena_hard", "gsm8k", "ifeval"])
def test_questions_are_named_as_their_answers_are(name):
    """Contamination leaves answers out by the ids of questions."""
    files = FILES | {
        "mt_bench": EVAL / "mt_bench_questions.jsonl",
        "arena_hard": EVAL / "arena_hard_v0.1_questions.jsonl",
    }
    node = compose("evaluate", ["model=x", f"benchmark={name}", f"benchmarks.{name}.questions.path={files[name]}"])
    benchmark = made({key: value for key, value in plain(node)["benchmarks"][name].items() if key != "graders"}, name)
    assert {key for key, _ in benchmark.texts()} == {group.id for group in benchmark.questions.groups}


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("benchmarks.miniature.samples=0", "`samples` is 0"),
        ("+benchmarks.miniature.sampling.temp=3", "no setting `temp`"),
        ("benchmarks.miniature.sampling.temperature=-1", "`temperature` is -1"),
        ("benchmarks.miniature.sampling.max_tokens=null", "has no limit"),
        ("benchmarks.miniature.questions.limit=0", "questions.limit"),
        ("benchmarks.miniature.graders.own.path=no.such", "cannot be imported"),
        ("benchmarks.miniature.measure._target_=fuserl.nothing", "cannot be made"),
        ("papers=[fusechta3]", "no published row"),
        ("on_failure=maybe", "no way to treat failures"),
        ("benchmarks.miniature._target_=builtins.dict", "no benchmark"),
    ],
)
def test_bad_settings_are_told_before_a_folder_is_made(asked, tmp_path, setting, says):
    with pytest.raises(FuserlError, match=says):
        asked("miniature", more=(setting,))
    assert not (tmp_path / "out").exists()


def test_more_draws_than_answers_are_told_at_once(asked):
    with pytest.raises(FuserlError, match="pass@5 needs 5 answers"):
        asked("humaneval", more=("benchmarks.humaneval.measure.k=[1,5]",))
