"""lm-eval by its own code: the same numbers as log-likelihoods and greedy answers worked out one by one."""

from __future__ import annotations

import builtins
import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import kit
import pytest
import torch
import yaml
from hydra.utils import instantiate

from fuserl.errors import FuserlError
from fuserl.evaluation.benchmarks import lm_eval_models
from fuserl.evaluation.benchmarks.lm_eval import LmEval
from fuserl.evaluation.benchmarks.lm_eval_models import Kept
from fuserl.evaluation.benchmarks.lm_eval_results import graded, numbers, roots
from fuserl.models.generate import sample
from fuserl.models.load import load_policy, load_tokenizer
from fuserl.records.journal import Journal
from fuserl.records.schema import Message
from fuserl.settings import compose, plain
from fuserl.sources.protocol import Sampling
from fuserl.sources.source import Source
from fuserl.tokens.templates import load_template

lm_eval = pytest.importorskip("lm_eval")
TARGET = str(kit.ROOT / "src/fuserl/miniature/target")
CHOICES = ("abc", "cba", "bca", "d")
ROWS = [
    {"q": f"sort {word}", "choices": list(CHOICES), "gold": place, "answer": word}
    for place, word in enumerate(("cab", "bac", "dba"))
]
SHOTS = [{"q": "sort ba", "choices": list(CHOICES), "gold": 0, "answer": "ab"}]


@dataclass
class Alone:
    """Work for what asks its own model."""

    folder: Path
    source: Source = field(default_factory=lambda: Source("tiny", TARGET, Sampling(1), dtype="float32"))
    seed: int = 0
    graders: dict = field(default_factory=dict)

    def answered(self, questions):
        raise AssertionError("lm-eval asks the model itself")

    def scored(self, groups, name="graded", only=None):
        raise AssertionError("and grades itself")

    def release(self):
        """The model under test was never started."""


@pytest.fixture
def tasks(tmp_path) -> Path:
    """Two tasks and a group on local rows."""
    for name, rows in {"rows": ROWS, "shots": SHOTS}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = tmp_path / "tasks"
    folder.mkdir()
    files = {"test": str(tmp_path / "rows.jsonl"), "train": str(tmp_path / "shots.jsonl")}
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files, "cache_dir": str(tmp_path / "cache")},
        "test_split": "test",
        "fewshot_split": "train",
        "doc_to_text": "{{q}}:",
        "metadata": {"version": 2.5},
    }
    choice = common | {
        "task": "letters", "output_type": "multiple_choice", "doc_to_choice": "{{choices}}", "doc_to_target": "{{gold}}",
        "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")],
    }  # fmt: skip
    said = common | {
        "task": "spelled", "output_type": "generate_until", "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 12, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "filter_list": [{"name": "first", "filter": [{"function": "regex", "regex_pattern": "([a-d]+)"}, {"function": "take_first"}]}],
    }  # fmt: skip
    for one in (choice, said):
        (folder / f"{one['task']}.yaml").write_text(yaml.safe_dump(one))
    (folder / "all.yaml").write_text(
        yaml.safe_dump(
            {
                "group": "everything", "task": ["letters"],
                "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}], "metadata": {"version": 1},
            }
        )
    )  # fmt: skip
    return folder


def made(tasks: Path, names: str, *overrides: str) -> LmEval:
    """As the verb makes it."""
    prefix = "benchmarks.lm_eval."
    settings = [f"tasks=[{names}]", f"include_path={tasks}", "bundled=false", "backend.device=cpu", *overrides]
    cfg = compose("evaluate", ["model=m", "benchmark=[lm_eval]", *(prefix + one for one in settings)])
    return instantiate(plain(cfg)["benchmarks"]["lm_eval"], _convert_="all")


def text_of(row: dict[str, Any], chat: bool) -> list[int]:
    """Tokens of the question."""
    tokenizer = load_tokenizer(TARGET)
    if chat:
        return load_template(tokenizer).encode_prompt([Message("user", row["q"] + ":")])
    return tokenizer.encode(row["q"] + ":")


def likelihoods(row: dict[str, Any], chat: bool) -> list[float]:
    """log P(choice | question), nats, one token after another."""
    model, tokenizer = load_policy(TARGET, dtype="float32").eval(), load_tokenizer(TARGET)
    found, start = [], text_of(row, chat)
    for choice in row["choices"]:
        delimiter = "" if chat else " "
        ids, total = list(start), 0.0
        for token in tokenizer.encode(delimiter + choice, add_special_tokens=False):
            with torch.no_grad():
                total += model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)[token].item()
            ids.append(token)
        found.append(total)
    return found


@pytest.mark.parametrize("chat", [False, True])
def test_the_likeliest_choice_counts_and_a_literal_computation_says_the_same(tasks, tmp_path, chat):
    result = made(tasks, "letters", f"chat={str(chat).lower()}").run(Alone(tmp_path / "work"))
    literal = [likelihoods(row, chat) for row in ROWS]
    for graded_row, row, wanted in zip(result.answers, ROWS, literal, strict=True):
        assert graded_row.detail["log_probs"] == pytest.approx(wanted, abs=1e-4)
        best = max(range(4), key=wanted.__getitem__)
        assert graded_row.answer.strip() == row["choices"][best]
        assert graded_row.score == float(best == row["gold"])
    right = [one.score for one in result.answers]
    share = sum(right) / 3
    error = math.sqrt(share * (1 - share) / 2)
    first = result.numbers[0]
    assert (first.name, first.value) == ("acc", pytest.approx(100 * share))
    assert (first.low, first.high) == pytest.approx(
        (100 * (share - 1.96 * error), 100 * (share + 1.96 * error)), abs=0.01
    )
    normed = [
        max(range(4), key=lambda n, one=one: one[n] / len(CHOICES[n])) == row["gold"]
        for one, row in zip(literal, ROWS, strict=True)
    ]
    assert (result.numbers[1].name, result.numbers[1].value) == ("acc_norm", pytest.approx(100 * sum(normed) / 3))
    assert result.counts == {"prompts": 3, "answers": 3, "unanswered": 0, "unknown": 0}
    assert result.about["versions"] == {"letters": 2.5}
    assert result.about["lm_eval"] == lm_eval.__version__
    assert (result.about["chat_template"] is None) == (not chat)


def test_answers_are_the_greedy_ones_and_end_where_the_template_says(tasks, tmp_path):
    result = made(tasks, "spelled", "metric='exact_match,first'").run(Alone(tmp_path / "work"))
    template = load_template(load_tokenizer(TARGET))
    plain_answers = sample(
        load_policy(TARGET, dtype="float32"),
        [text_of(row, True) for row in ROWS],
        n=1,
        max_new_tokens=12,
        temperature=0,
        stop_ids=template.stop_ids,
        seed=0,
    )
    for row, (ids,) in zip(result.answers, plain_answers, strict=True):
        assert row.answer == template.tokenizer.decode(ids, skip_special_tokens=True).partition("\n")[0]
        assert row.tokens == 0
    assert result.numbers[0].name == "exact_match:first"
    assert result.numbers[0].value == pytest.approx(100 * sum(row.score for row in result.answers) / 3)
    assert any("cut at their length" in note for note in result.notes)


def test_what_was_answered_is_not_asked_again_and_another_model_is(tasks, tmp_path, monkeypatch):
    from lm_eval.models.huggingface import HFLM

    asked = []

    def counting(self, requests, *args, **kwargs):
        asked.append(len(requests))
        return was(self, requests, *args, **kwargs)

    was = HFLM._loglikelihood_tokens
    monkeypatch.setattr(HFLM, "_loglikelihood_tokens", counting)
    work = Alone(tmp_path / "work")
    first = made(tasks, "letters").run(work)
    lines = (work.folder / "lm_eval.jsonl").read_text().splitlines()
    assert (asked, len(lines)) == ([12], 12)
    again = made(tasks, "letters").run(work)
    assert (asked, again) == ([12], first)
    (work.folder / "lm_eval.jsonl").write_text("\n".join(lines[:5]) + "\n")  # killed after five
    assert made(tasks, "letters").run(work) == first
    assert asked == [12, 7]
    made(tasks, "letters").run(replace(work, source=replace(work.source, date_string="1 Jan 2026")))
    assert asked == [12, 7, 12]


def test_examples_stand_before_a_question(tasks, tmp_path):
    result = made(tasks, "letters", "num_fewshot=1", "chat=false").run(Alone(tmp_path / "work"))
    assert result.answers[0].prompt == "sort ba: abc\n\nsort cab:"
    assert result.about["num_fewshot"] == {"letters": 1}
    turns = made(tasks, "letters", "num_fewshot=1").run(Alone(tmp_path / "work")).answers[0].prompt
    messages = [Message("user", "sort ba:"), Message("assistant", "abc"), Message("user", "sort cab:")]
    assert turns == load_template(load_tokenizer(TARGET)).render_prompt(messages)


def test_a_group_is_one_number_and_a_limit_is_told(tasks, tmp_path):
    result = made(tasks, "everything", "limit=2", "metric='acc,none'").run(Alone(tmp_path / "work"))
    assert [one.name for one in result.numbers] == ["acc"]
    assert result.counts["prompts"] == 2
    assert set(result.about["subtasks"]) == {"letters"}
    assert any("limit 2" in note for note in result.notes)


def test_several_tasks_are_told_apart(tasks, tmp_path):
    result = made(tasks, "letters,spelled", "metric='exact_match,first'").run(Alone(tmp_path / "work"))
    assert [one.name for one in result.numbers] == ["spelled/exact_match:first", "letters/acc", "letters/acc_norm"]
    assert {row.prompt_id for row in result.answers} == {f"spelled/{n}" for n in range(3)}
    assert set(result.about["task_hashes"]) == {"letters", "spelled"}


def test_texts_and_identity_know_the_questions_and_the_files(tasks):
    one = made(tasks, "letters")
    assert list(one.texts()) == [(f"letters/{n}", row["q"] + ":") for n, row in enumerate(ROWS)]
    before = json.dumps(one.identity(), default=str)
    assert "batch_size" not in before
    (tasks / "letters.yaml").write_text((tasks / "letters.yaml").read_text().replace("2.5", "2.6"))
    assert json.dumps(made(tasks, "letters").identity(), default=str) != before
    assert json.dumps(made(tasks, "letters", "num_fewshot=3").identity(), default=str) != before


@pytest.mark.parametrize(
    ("overrides", "says", "hint"),
    [
        (["tasks=[leters]"], "no task `leters`", "is it letters"),
        (["tasks=[]"], "no task is named", "tasks=["),
        (["metric=f1"], "no task here has the metric `f1`", "acc,none"),
        (["include_path=/nowhere"], "no such folder", "task files"),
    ],
)
def test_what_is_not_there_is_told_before_a_model_is_loaded(tasks, tmp_path, overrides, says, hint):
    work = Alone(tmp_path / "work", Source("s", "/no/model", Sampling(1)))
    with pytest.raises(FuserlError) as caught:
        made(tasks, "letters", *overrides).run(work)
    assert says in caught.value.what
    assert hint in caught.value.hint


def test_questions_that_cannot_be_loaded_are_told(tasks, tmp_path):
    (tmp_path / "rows.jsonl").unlink()
    with pytest.raises(FuserlError, match="questions cannot be loaded"):
        next(made(tasks, "letters").texts())


def test_a_model_that_stops_in_the_middle_is_told_and_what_it_said_is_kept(tasks, tmp_path, monkeypatch):
    from lm_eval.models.huggingface import HFLM

    class Died(Exception):
        """Of an engine; its class is nobody's."""

    def dying(self, kind, request, said, was=Kept.add_partial):
        was(self, kind, request, said)
        if len(self.journal) == 5:
            raise Died("out of\nmemory")

    work = Alone(tmp_path / "work")
    with monkeypatch.context() as broken:
        broken.setattr(Kept, "add_partial", dying)
        with pytest.raises(FuserlError, match=r"lm-eval cannot do it \(Died: out of\)"):
            made(tasks, "letters").run(work)
    asked = []
    was = HFLM._loglikelihood_tokens
    monkeypatch.setattr(
        HFLM, "_loglikelihood_tokens", lambda self, some, **kw: asked.append(len(some)) or was(self, some, **kw)
    )
    assert made(tasks, "letters").run(work).counts["answers"] == 3
    assert asked == [7]


def test_a_missing_package_says_how_to_install_it(tasks, tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("lm_eval"):
            raise ImportError(f"No module named '{name}'", name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(FuserlError) as caught:
        next(made(tasks, "letters").texts())
    assert "pip install 'fuserl[eval]'" in caught.value.hint


NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('none here') }}{% endif %}{% for m in messages %}{{ m.content }}|{% endfor %}"


def test_a_system_turn_that_the_template_refuses_is_left_out_and_told(tasks, tmp_path):
    settings = yaml.safe_load((tasks / "letters.yaml").read_text())
    (tasks / "letters.yaml").write_text(yaml.safe_dump(settings | {"description": "Sort the letters."}))
    refusing = Alone(tmp_path / "work", Source("tiny", TARGET, Sampling(1), dtype="float32", chat_template=NO_SYSTEM))
    result = made(tasks, "letters").run(refusing)
    assert result.answers[0].prompt == "sort cab:|"
    assert "3 prompts went without their system turn, which the template refuses" in result.notes
    taking = replace(refusing, source=replace(refusing.source, chat_template=NO_SYSTEM.partition("endif %}")[2]))
    told = made(tasks, "letters").run(taking)
    assert told.answers[0].prompt.startswith("Sort the letters.|")
    assert not told.notes


@dataclass
class Request:
    """As lm-eval makes them."""

    args: tuple


def test_answers_that_are_drawn_are_asked_anew_and_others_once(tmp_path):
    drawn, greedy = Request(("a", {"do_sample": True})), Request(("a", {"do_sample": False}))
    asked = []

    def ask(requests):
        asked.append(len(requests))
        for number, one in enumerate(requests):
            kept.add_partial("generate_until", one.args, f"{one.args[1]['do_sample']} {number}")
        return [f"{one.args[1]['do_sample']} {number}" for number, one in enumerate(requests)]

    with Journal(tmp_path / "j.jsonl") as journal:
        kept = Kept(journal, {"model": 1})
        assert kept.through("generate_until", ask, [drawn, greedy, drawn]) == ["True 0", "False 1", "True 2"]
        assert kept.through("generate_until", ask, [drawn, greedy, drawn]) == ["True 0", "False 1", "True 1"]
        assert kept.through("generate_until", ask, [greedy]) == ["False 1"]
        assert Kept(journal, {"model": 2}).through("generate_until", lambda requests: ["new"], [greedy]) == ["new"]
        assert kept.through("loglikelihood", lambda requests: [(-1.5, True)], [Request(("a", "b"))]) == [(-1.5, True)]
    assert asked == [3, 2]
    assert len(journal) == 1


def test_vllm_gets_the_source_and_no_remote_code(monkeypatch, tmp_path):
    got = {}

    class Model:
        def __init__(self, **settings):
            if settings.get("dies"):
                raise RuntimeError("no GPU\nhere")
            got.update(settings)

        def set_cache_hook(self, hook):
            self.cache_hook = hook

    monkeypatch.setattr(lm_eval_models, "_class", lambda module, name: Model)
    source = Source("s", TARGET, Sampling(1), revision="abc", dtype="bfloat16", context=99)
    with Journal(tmp_path / "j.jsonl") as journal:
        kept = Kept(journal, {})
        model = lm_eval_models.vllm_model(
            source, lm_eval_models.template_of(source, True), kept, options={"max_num_seqs": 3}
        )
        assert model.cache_hook is kept
        with pytest.raises(FuserlError, match=r"cannot start vLLM \(no GPU\)"):
            lm_eval_models.vllm_model(source, model.template, kept, options={"dies": True})
    assert got == {
        "pretrained": TARGET, "revision": "abc", "tokenizer_revision": "abc", "dtype": "bfloat16", "trust_remote_code": False,
        "max_model_len": 99, "load_format": "safetensors", "max_num_seqs": 3,
    }  # fmt: skip


def test_a_metric_without_error_has_no_interval_and_less_can_be_better():
    found = {
        "results": {"a": {"ppl,none": 8.0, "ppl_stderr,none": "N/A", "alias": "a", "sample_len": 2}, "g": {"alias": "g"}},
        "group_subtasks": {"g": ["a"]},
        "higher_is_better": {"a": {"ppl": False}},
        "samples": {
            "a": [{"doc_id": 4, "filter": "none", "metrics": ["ppl"], "ppl": 3.0, "arguments": [("x", {})], "resps": [["y"]],
                   "filtered_resps": ["y"], "target": "t"}]
        },
    }  # fmt: skip
    assert roots(found) == ["a"]
    (number,) = numbers(found, ["a"], None, 1.0)
    assert (number.name, number.value, number.low, number.high) == ("ppl", 8.0, None, None)
    (row,) = graded(found, None, 1.0)
    assert (row.prompt_id, row.prompt, row.answer, row.score) == ("a/4", "x", "y", -3.0)


@pytest.mark.parametrize("name", ["mmlu", "mmlu_pro", "mmlu_redux", "gpqa_diamond"])
def test_the_suites_tasks_are_there_with_their_metrics(name, bundled):
    cfg = compose("evaluate", ["model=m", f"benchmark=[{name}]"])
    one = instantiate(plain(cfg)["benchmarks"][name], _convert_="all")
    assert set(one.tasks) <= set(bundled.all_tasks)
    metric, chosen = one.metric.split(",")
    settings = yaml_of(bundled, one.tasks[0])
    assert metric in {entry["metric"] for entry in settings["metric_list"]}
    assert chosen == "none" or chosen in {entry["name"] for entry in settings["filter_list"]}


@pytest.fixture(scope="module")
def bundled() -> Any:
    """A part of lm-eval's own index; no questions."""
    from lm_eval.tasks import TaskManager

    folder = Path(lm_eval.__file__).parent / "tasks"
    parts = [folder / name for name in ("mmlu", "mmlu_pro", "mmlu-redux", "gpqa")]
    return TaskManager(include_path=parts, include_defaults=False)


def yaml_of(manager: Any, name: str) -> dict[str, Any]:
    """Settings of a task, or of the first one in a group."""
    from lm_eval.tasks._index import Kind
    from lm_eval.tasks._yaml_loader import load_yaml

    entry = manager.task_index[name]
    if entry.kind is Kind.TAG:
        return yaml_of(manager, min(entry.tags))
    settings = load_yaml(entry.yaml_path, resolve_func=False)
    members = settings.get("task")
    if isinstance(members, list):
        return yaml_of(manager, members[0]["task"][0] if isinstance(members[0], dict) else members[0])
    return settings
