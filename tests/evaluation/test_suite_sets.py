"""The suite's other sets: AMC 23, LiveCodeBench with tests that are unpacked and not run, numbers recorded elsewhere."""

from __future__ import annotations

import base64
import json
import pickle
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import strategies as st

from fuserl.errors import FuserlError
from fuserl.evaluation.benchmarks import livecodebench
from fuserl.evaluation.benchmarks.protocol import Benchmark
from fuserl.evaluation.benchmarks.recorded import Recorded
from fuserl.records.schema import Response
from fuserl.rewards.protocol import Item
from fuserl.rewards.trial import Calls, Case
from fuserl.settings import compose, plain
from fuserl.sources.protocol import Sampling
from fuserl.sources.source import Source


def packed(content: object) -> str:
    """As the data set packs hidden tests."""
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(content)))).decode()


def row(name: str, day: str, tests: list[dict], hidden: object, **more: str) -> dict:
    return {
        "question_id": name, "question_content": f"Solve {name}.", "starter_code": "", "contest_date": f"{day}T00:00:00",
        "difficulty": "easy", "public_test_cases": json.dumps(tests), "private_test_cases": hidden, "metadata": "{}",
    } | more  # fmt: skip


SUMS = [{"input": "1 2\n", "output": "3\n", "testtype": "stdin"}]
MORE = [{"input": "5 -5\n", "output": "0", "testtype": "stdin"}]
METHOD = [{"input": '[1, 2]\n"x"', "output": '["x", 3]', "testtype": "functional"}]
ROWS = [
    row("early", "2024-07-31", SUMS, packed(MORE)),
    row("sums", "2024-08-01", SUMS, packed(MORE)),
    row(
        "method", "2024-11-30", METHOD, packed([METHOD[0] | {"input": '[]\n"y"', "output": '["y", 0]'}]),
        starter_code="class Solution:\n    def told(self, numbers: List[int], name: str):", metadata='{"func_name": "told"}',
    ),
    row("late", "2024-12-01", SUMS, json.dumps(MORE)),
]  # fmt: skip


@pytest.fixture
def node(tmp_path):
    """The benchmark's configuration on two files of rows here."""
    for name, part in {"a": ROWS[:2], "b": ROWS[2:]}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in part))

    def composed(*overrides: str) -> dict:
        questions = "benchmarks.livecodebench.questions"
        files = [f"{questions}.path={tmp_path / 'a.jsonl'}", f"{questions}.also=[{tmp_path / 'b.jsonl'}]"]
        cfg = compose("evaluate", ["model=m", "benchmark=[livecodebench]", *files, *overrides])
        return plain(cfg)["benchmarks"]["livecodebench"]

    return composed


def made(node: dict):
    return instantiate({key: value for key, value in node.items() if key != "graders"}, _convert_="all")


def test_problems_of_the_window_are_asked_in_two_forms(node):
    benchmark = made(node())
    sums, method = benchmark.questions.groups
    assert (sums.id, method.id) == ("sums", "method")
    assert "standard input" in sums.prompt[0].content
    assert sums.prompt[0].content.startswith("Solve sums.")
    assert "def told(self, numbers" in method.prompt[0].content
    assert livecodebench.all_tests(sums) == (Case("1 2\n", "3\n"), Case("5 -5\n", "0"))
    assert isinstance(livecodebench.all_tests(method), Calls)
    assert isinstance(benchmark, Benchmark)


def test_days_and_files_are_settings(node):
    keep = "benchmarks.livecodebench.questions.keep"
    wide = made(node(f"{keep}.first='2024-01-01'", f"{keep}.last='2025-01-01'"))
    assert [group.id for group in wide.questions.groups] == ["early", "sums", "method", "late"]
    assert [group.id for group in made(node(f"{keep}=null")).questions.groups] == [
        group.id for group in wide.questions.groups
    ]
    assert len(made(node(f"{keep}=null", "benchmarks.livecodebench.questions.limit=3")).questions.groups) == 3
    with pytest.raises(FuserlError, match="no question is kept"):
        _ = made(node(f"{keep}.first='2030-01-01'", f"{keep}.last='2031-01-01'")).questions.groups
    with pytest.raises(FuserlError, match="cannot be dated"):
        _ = made(node(f"{keep}.column=day")).questions.groups


RIGHT = "class Solution:\n    def told(self, numbers: List[int], name: str):\n        return name, sum(numbers)"
ANSWERS = {
    "sums": [("right", "print(sum(map(int, input().split())))"), ("wrong", "print(3)")],
    "method": [
        ("right", RIGHT),
        ("right", RIGHT.replace("name, sum(numbers)", "[name, reduce(lambda a, b: a + b, numbers, 0)]")),
        ("wrong", RIGHT.replace("sum(numbers)", "3")),
        ("wrong", "def told(numbers, name): return [name, sum(numbers)]"),
    ],
}


def test_programs_are_run_against_public_and_hidden_tests(node):
    settings = node()
    grader = {key: value for key, value in settings["graders"]["code"].items() if key != "domains"}
    scorer = instantiate(grader | {"allow_unsafe_code": True, "workers": 2}, _convert_="all")
    groups = {group.id: group for group in made(settings).questions.groups}
    asked = [
        (verdict, Item(f"{name}-{n}", groups[name], Response("m", f"Here:\n```python\n{text}\n```", n)))
        for name, answers in ANSWERS.items()
        for n, (verdict, text) in enumerate(answers)
    ]
    found = {score.key: score.verdict for score in scorer.score(item for _, item in asked)}
    assert found == {item.key: verdict for verdict, item in asked}


@given(
    st.lists(st.dictionaries(st.sampled_from(("input", "output")), st.text(max_size=300)), max_size=4),
    st.integers(0, 5),
)
def test_any_text_is_unpacked_as_python_unpickles_it(content, protocol):
    text = json.dumps(content, ensure_ascii=False)
    hidden = base64.b64encode(zlib.compress(pickle.dumps(text, protocol))).decode()
    assert livecodebench.unpacked(hidden) == text
    assert livecodebench.unpacked(text) == text


class Bomb:
    def __reduce__(self):
        return print, ("it ran",)


@pytest.mark.parametrize(
    ("hidden", "says"),
    [
        (base64.b64encode(zlib.compress(pickle.dumps(Bomb()))).decode(), "more than a text"),
        (base64.b64encode(zlib.compress(pickle.dumps(["[]"]))).decode(), "more than a text"),
        (base64.b64encode(zlib.compress(pickle.dumps(7))).decode(), "more than a text"),
        (base64.b64encode(zlib.compress(b"\x80\x04."))[:-4].decode(), "unpacked|texts"),
        (base64.b64encode(zlib.compress(b"\x80\x04.")).decode(), "0 texts"),
        (base64.b64encode(b"no zlib").decode(), "cannot be unpacked"),
        ("päcked", "cannot be unpacked"),
    ],
)  # fmt: skip
def test_hidden_tests_that_are_no_text_are_refused_and_nothing_runs(hidden, says, capsys):
    with pytest.raises(ValueError, match=says):
        livecodebench.unpacked(hidden)
    assert "it ran" not in capsys.readouterr().out


def test_hidden_tests_may_not_grow_without_end():
    hidden = base64.b64encode(zlib.compress(pickle.dumps("a" * 100_000))).decode()
    assert len(livecodebench.unpacked(hidden, most=1 << 20)) == 100_000
    with pytest.raises(ValueError, match="take more than"):
        livecodebench.unpacked(hidden, most=50_000)


@pytest.mark.parametrize(
    "change",
    [
        {"private_test_cases": "broken"},
        {"public_test_cases": "{}"},
        {"public_test_cases": "[]", "private_test_cases": "[]"},
        {"public_test_cases": json.dumps(METHOD)},
        {"public_test_cases": json.dumps(METHOD), "private_test_cases": "[]"},
    ],
)
def test_a_problem_without_readable_tests_is_told_before_anything_is_asked(node, tmp_path, change):
    (tmp_path / "a.jsonl").write_text(json.dumps(ROWS[1] | change) + "\n")
    with pytest.raises(FuserlError, match="no question of this benchmark"):
        _ = made(node()).questions.groups


def test_amc_reads_its_rows(tmp_path):
    (tmp_path / "amc.jsonl").write_text(
        json.dumps({"id": 0, "question": "What is $1+1$?", "answer": "27.0", "url": "u"}) + "\n"
    )
    cfg = compose(
        "evaluate", ["model=m", "benchmark=[amc23]", f"benchmarks.amc23.questions.path={tmp_path / 'amc.jsonl'}"]
    )
    (group,) = made(plain(cfg)["benchmarks"]["amc23"]).questions.groups
    assert (group.id, group.domain, group.reference) == ("0", "math", "27.0")
    assert group.prompt[0].content.startswith("What is $1+1$?")


@dataclass
class Idle:
    """Work for what asks nothing."""

    folder: Path = Path("nowhere")
    source: Source = field(default_factory=lambda: Source("m", "m", Sampling(1)))
    seed: int = 0
    graders: dict = field(default_factory=dict)

    def answered(self, questions):
        raise AssertionError("nothing is asked")

    def scored(self, groups, name="graded", only=None):
        raise AssertionError("nothing is graded")

    def release(self):
        raise AssertionError("nothing was started")


SAID = {
    "tool": "livebench", "version": "2024-11-25", "date": "2026-01-02", "model": "runs/mine/model",
    "numbers": [{"name": "score", "value": 30.2, "low": 28.0, "high": 32.5}, {"name": "coding", "value": 27}],
}  # fmt: skip


def test_recorded_numbers_are_said_to_be_from_elsewhere(tmp_path):
    (tmp_path / "said.yaml").write_text(yaml.safe_dump(SAID))
    cfg = compose(
        "evaluate", ["model=m", "benchmark=[livebench]", f"benchmarks.livebench.path={tmp_path / 'said.yaml'}"]
    )
    benchmark = made(plain(cfg)["benchmarks"]["livebench"])
    assert list(benchmark.texts()) == []
    result = benchmark.run(Idle())
    assert [(one.name, one.value, one.low, one.high) for one in result.numbers] == [
        ("score", 30.2, 28.0, 32.5),
        ("coding", 27.0, None, None),
    ]
    assert result.numbers[0].over == "recorded elsewhere"
    assert "not computed here" in result.notes[0]
    assert "livebench 2024-11-25" in result.notes[0]
    assert result.about["recorded"] is True
    (tmp_path / "said.yaml").write_text(yaml.safe_dump(SAID | {"date": "2026-01-03"}))
    assert made(plain(cfg)["benchmarks"]["livebench"]).identity() != benchmark.identity()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tool": ""}, "does not say `tool`"),
        ({"date": None}, "does not say `date`"),
        ({"numbers": []}, "no list `numbers`"),
        ({"numbers": [{"value": 1}]}, "number 1 of the file has no name"),
        ({"numbers": [{"name": "a"}]}, "has no value"),
        ({"numbers": [{"name": "a", "value": "31"}]}, "is no number"),
        ({"numbers": [{"name": "a", "value": float("nan")}]}, "is no number"),
        ({"numbers": [{"name": "a", "value": 5, "low": 6}]}, "outside its interval"),
        ({"numbers": [{"name": "a", "value": 5, "error": 6}]}, "a field `error`"),
    ],
)
def test_a_file_that_says_too_little_is_told_at_once(tmp_path, change, says):
    (tmp_path / "said.yaml").write_text(yaml.safe_dump(SAID | change))
    with pytest.raises(FuserlError, match=says):
        Recorded("livebench", str(tmp_path / "said.yaml")).texts()
    with pytest.raises(FuserlError, match="cannot be read"):
        Recorded("livebench", str(tmp_path / "no.yaml")).texts()


def test_what_nobody_has_measured_is_said_to_be_so(tmp_path):
    result = Recorded("livebench", None).run(Idle(tmp_path))
    assert [one.value for one in result.numbers] == [None]
    assert "not measured" in result.notes[0]
