"""A function of one's own grades; what it does wrong is told with its place."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fuserl.errors import FuserlError
from fuserl.records.schema import Message, PromptGroup, Response
from fuserl.rewards.function import FunctionScorer
from fuserl.rewards.protocol import Item

CODE = """
def length(prompt, answer, reference):
    return len(answer) - len(reference or "")

def broken(prompt, answer, reference):
    return 1 / 0

def infinite(prompt, answer, reference):
    return float("inf")
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_scores.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "my_scores"
    sys.modules.pop("my_scores", None)


def item(text: str, reference: str | None = None) -> Item:
    response = Response("s", text)
    return Item(
        f"key of {text}", PromptGroup("p", (Message("user", "ask"),), (response,), reference=reference), response
    )


def test_it_grades_prompt_answer_and_reference(module):
    scorer = FunctionScorer(path=f"{module}.length", right_at=2)
    found = list(scorer.score([item("four"), item("four", "ref")]))
    assert [(score.key, score.reward, score.verdict) for score in found] == [
        ("key of four", 4.0, "right"),
        ("key of four", 1.0, "wrong"),
    ]
    assert next(iter(FunctionScorer(path=f"{module}.length").score([item("x")]))).verdict is None


def test_another_function_another_identity(module):
    one, other = (FunctionScorer(path=f"{module}.{name}").identity() for name in ("length", "broken"))
    assert one != other
    assert one == FunctionScorer(path=f"{module}.length").identity()


@pytest.mark.parametrize(("name", "what"), [("broken", "ZeroDivisionError"), ("infinite", "returned inf")])
def test_what_the_function_does_wrong_is_told_with_its_place(module, name, what):
    with pytest.raises(FuserlError, match=what) as caught:
        list(FunctionScorer(path=f"{module}.{name}").score([item("x")]))
    assert "prompt `p`" in caught.value.where


@pytest.mark.parametrize("path", ["no_such_module.score", "my_scores.nothing", "word"])
def test_a_function_that_is_not_there_is_told_before_anything_is_scored(module, path):
    with pytest.raises(FuserlError, match="cannot be imported"):
        FunctionScorer(path=path)
