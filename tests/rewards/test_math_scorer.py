"""Answers are found where they stand and compared as mathematics; nothing that is asked can hang the scorer."""

from __future__ import annotations

import sys
import threading
import time
from functools import partial
from itertools import count, islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuserl.errors import FuserlError
from fuserl.records.schema import Message, PromptGroup, Response
from fuserl.rewards import answers, reading
from fuserl.rewards.literal import LiteralScorer, equal
from fuserl.rewards.math import MathScorer
from fuserl.rewards.protocol import Item
from fuserl.rewards.workers import NotStarted, Unanswered, Worker

AUTO = partial(
    answers.first_of,
    ways=[answers.json_field, answers.boxed, partial(answers.after, marker="####"), answers.ending],
)
GOLD = partial(answers.gold, field="auto")


def item(key: str, text: str, reference: str | None, **extra: object) -> Item:
    response = Response("ann", text)
    return Item(key, PromptGroup("p", (Message("user", "?"),), (response,), reference=reference, extra=extra), response)


@pytest.fixture(scope="module")
def scorer():
    made = MathScorer(answer=AUTO, gold=GOLD, timeout_seconds=0.4, memory_mb=1024, workers=2)
    yield made
    made.close()


FOUND = [
    (answers.boxed, r"\boxed{1} then \boxed{\frac{1}{2}} end", r"\frac{1}{2}"),
    (answers.boxed, r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
    (answers.boxed, r"\boxed{1", None),
    (answers.boxed, r"\fbox{7}", "7"),
    (answers.boxed, "none", None),
    (answers.boxed, r"\boxed{}", None),
    (partial(answers.after, marker="A:"), "A: 1\nmore\nA: 2 \nend", "2"),
    (partial(answers.after, marker="A:"), "nothing", None),
    (partial(answers.after, marker="A:"), "A:\n", None),
    (answers.json_field, '```json\n{"reasoning": "\\"answer\\": 3", "answer": "42"}\n```', "42"),
    (answers.json_field, '{"answer": 42}', "42"),
    (answers.json_field, '{"answer": 42.0,', "42.0"),
    (answers.json_field, '{"answer": 1,000\n}', "1,000"),
    (answers.json_field, '{"answer": "cut off', "cut off"),
    (answers.json_field, '{"answer": "\\frac{1}{2}"}', r"\frac{1}{2}"),
    (answers.json_field, '{"answer": "\\\\frac{1}{2}"}', r"\frac{1}{2}"),
    (answers.json_field, '{"answer": "a\\n b"}', "a\n b"),
    (answers.json_field, '{"answer": [1, 2]}', "[1, 2]"),
    (answers.json_field, '{"answer": ""}', ""),
    (answers.json_field, '{"reasoning": "none"}', None),
    (answers.json_field, '"answer"', None),
    (answers.last_number, "It costs 1,250.50 for 3, or -.5", "-.5"),
    (answers.last_number, "no number", None),
    (answers.ending, "one\n\ntwo\nthree\n", "two\nthree"),
    (answers.ending, "  \n", None),
    (answers.whole, " x ", "x"),
    (AUTO, 'so \\boxed{1}\n{"answer": "2"}', "2"),
    (AUTO, "so 3\n#### 4", "4"),
    (AUTO, "", None),
]


@pytest.mark.parametrize(("way", "text", "expected"), FOUND)
def test_an_answer_is_found_where_it_stands(way, text, expected):
    assert way(text) == expected


@pytest.mark.parametrize(
    "sign", ["\\boxed{", '"answer":', "\\", "{", '"answer": "\\', "9", "A:", "####", "$", "√(", " \n"]
)
def test_looking_takes_time_linear_in_a_hostile_text(sign):
    started = time.perf_counter()
    for way in (AUTO, answers.boxed, answers.json_field, partial(answers.after, marker="A:"), answers.last_number):
        found = way(sign * (1_000_000 // len(sign)))
        reading.words(reading.tidy(found or ""))
    assert time.perf_counter() - started < 5, "a second for a megabyte is plenty; quadratic time would be hours"


@given(st.text(max_size=200))
def test_any_text_can_be_looked_at_and_tidied(text):
    for way in (AUTO, answers.json_field, answers.last_number):
        found = way(text)
        assert found is None or isinstance(reading.tidy(found), str)


VERDICTS = [
    ("7", "He has 7 apples.", "right"),
    ("7", "He has 7 apples. No: 8.", "wrong"),
    ("1/2", r"\boxed{\frac{1}{2}}", "right"),
    ("1/2", r"\boxed{0.5}", "right"),
    ("1,250", r"\boxed{\$1250}", "right"),
    ("60", '{"answer": "60%"}', "right"),
    ("-10", '{"answer": "-10°F"}', "right"),
    ("50", '{"answer": "50 miles per hour"}', "right"),
    ("2\\sqrt{3}", r"\boxed{\sqrt{12}}", "right"),
    ("2\\sqrt{3}", '{"answer": "2√3"}', "right"),
    ("6", '{"answer": "6*sqrt(2)"}', "wrong"),
    ("5", '{"answer": "5/2"}', "wrong"),
    ("2", '{"answer": "2, -1"}', "wrong"),
    ("1210", '{"answer": "80 * 8 + 90 * 6 + 30 = 1210"}', "right"),
    ("x^2+2x+1", r"\boxed{(x+1)^2}", "right"),
    ("x^2+2x+1", r"\boxed{(x+2)^2}", "wrong"),
    ("\\{1,2\\}", r"\boxed{\{2,1\}}", "right"),
    ("the solution is\n#### 42", "#### 42", "right"),
    ("7", "", "wrong"),
    ("7", '{"answer": "___"}', "wrong"),
    ("7", "I cannot tell.", "wrong"),
    ("7", '{"answer": "\\\\sqrt{2"}', "unknown"),
    ("Evelyn", r"\boxed{Evelyn}", "right"),
    ("\\frac{1", r"\boxed{2}", "unknown"),
    ("2", '{"answer": "2xy"}', "wrong"),
    ("3xy", r"\boxed{3yx}", "right"),
    ("3xy", r"\boxed{3xy+z}", "wrong"),
    ("10", '{"answer": "10km"}', "right"),
    (None, r"\boxed{7}", "unknown"),
]


def test_verdicts_have_three_values(scorer):
    items = [item(str(number), text, gold) for number, (gold, text, _) in enumerate(VERDICTS)]
    found = {score.key: score for score in scorer.score(items)}
    told = {key: (score.verdict, score.reward, dict(score.detail)) for key, score in found.items()}
    for number, (gold, text, verdict) in enumerate(VERDICTS):
        score = found[str(number)]
        assert score.verdict == verdict, (gold, text, told[str(number)])
        assert score.reward == {"right": 1.0, "wrong": 0.0, "unknown": None}[verdict]


def test_the_right_answer_stands_where_the_setting_says():
    group = item("k", "", "so it is \\boxed{3}", reference_answer=4, gold="y = #### 5").group
    assert GOLD(group) == "4"
    assert answers.gold(group, field="reference") == "3"
    assert answers.gold(group, field="gold") == "5"
    assert answers.gold(group, field="gold", answer=answers.whole) == "y = #### 5"
    assert answers.gold(group, field="none") is None
    assert GOLD(item("k", "", "12").group) == "12"


HOSTILE = [
    "9^{9^{9^{9}}}",
    "((((10!)!)!)!)!",
    r"\sum_{i=1}^{10^{12}} i^{i}",
    "(x+1)^{99999999}",
    "(" * 900,
    r"\frac{" * 300,
    r"\sqrt{" * 40 + "2" + "}" * 40,
    "1" * 299,
    "9**9**9**9",
    "\\begin{pmatrix}" + "1&" * 90 + "\\end{pmatrix}",
    "\x00\ud7ff\u202e" * 50,
]


def test_hostile_expressions_end_and_are_never_right(scorer):
    items = [item(f"h{n}", rf"\boxed{{{text}}}", "7") for n, text in enumerate(HOSTILE)]
    items += [item("r1", r"\boxed{7}", "7"), item("long", "x " * 1_000_000 + r"\boxed{8}", "7")]
    started = time.monotonic()
    found = {score.key: score for score in scorer.score(items)}
    assert time.monotonic() - started < 20 * len(items)
    assert found["r1"].verdict == "right", "the one after a worker that was killed finds a new one"
    assert found["long"].verdict == "wrong"
    assert not {key for key, score in found.items() if score.verdict == "right"} - {"r1"}
    assert found["h0"].verdict == "unknown", "a time-out is ours, not the answer's"
    assert "timeout" in found["h0"].detail["why"] or "math-verify" in found["h0"].detail["why"]


def test_a_worker_that_hangs_is_replaced():
    worker = Worker([sys.executable, "-c", HANGS])
    with pytest.raises(Unanswered, match="timeout"):
        worker.ask({"hang": True})
    assert worker.ask({"hang": False}) == {"hang": False}
    worker.stop()
    worker.stop()


HANGS = """
import json, signal, sys
signal.signal(signal.SIGALRM, signal.SIG_DFL)
print('{"ready": true}', flush=True)
for line in sys.stdin:
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    while json.loads(line)["hang"]: pass
    signal.setitimer(signal.ITIMER_REAL, 0)
    print(line, end="", flush=True)
"""


def test_a_worker_that_cannot_start_says_why():
    with pytest.raises(NotStarted, match="No module named nothing_of_that_name"):
        Worker([sys.executable, "-m", "nothing_of_that_name"]).ask({})


def test_it_works_in_threads_and_draws_items_as_it_needs_them(scorer):
    drawn = count()

    def endless():
        while True:
            number = next(drawn)
            yield item(str(number), f"\\boxed{{{number}}}", "3")

    found = []
    thread = threading.Thread(target=lambda: found.extend(islice(scorer.score(endless()), 20)))
    thread.start()
    thread.join(120)
    assert not thread.is_alive()
    assert {score.key for score in found if score.verdict == "right"} == {"3"}
    assert next(drawn) <= 24, "never more in hand than two a worker"


def test_a_missing_library_is_told_with_its_install_line(monkeypatch):
    monkeypatch.setattr("fuserl.rewards.math.LIBRARIES", ("no-such-library",))
    with pytest.raises(FuserlError, match=r"pip install 'math-verify\[antlr4_9_3\]'"):
        MathScorer(answer=AUTO, gold=GOLD, timeout_seconds=1, memory_mb=1024, workers=1)


@pytest.mark.parametrize(
    "wrong", [{"timeout_seconds": 0}, {"timeout_seconds": True}, {"memory_mb": 10}, {"workers": 0}, {"workers": "many"}]
)
def test_settings_that_cannot_work_are_refused(wrong):
    given = dict(answer=AUTO, gold=GOLD, timeout_seconds=1, memory_mb=1024, workers=1) | wrong
    with pytest.raises(FuserlError, match=f"rewards.math.{next(iter(wrong))}"):
        MathScorer(**given)


def test_identity_and_context_hold_what_decides_a_score(scorer):
    other = MathScorer(answer=answers.boxed, gold=GOLD, timeout_seconds=1, memory_mb=1024, workers=1)
    assert other.identity() != scorer.identity()
    assert scorer.identity()["answer"]["ways"][2] == {"function": "fuserl.rewards.answers.after", "marker": "####"}
    assert scorer.context(item("k", "", "5", reference_answer="6")) == "6"


LITERALS = [
    ("'a'", "a", True),
    ("'a'", '"a"', True),
    ("[1, 2]", "[1,2]", True),
    ("{1: 2}", "{1:2}", True),
    ("''", "", True),
    ("'1'", "1", True),
    ("1", "2", False),
    ("'a\\nb'", "a\nb", True),
    ("True", "true", False),
    ("[1]", "__import__('os').system('true')", False),
    ("[1]", "(" * 1999, False),
    ("[1]", "-" * 1999 + "1", False),
    ("{1}", "{[1]}", False),
]


@pytest.mark.parametrize(("gold", "answer", "same"), LITERALS)
def test_literals_are_compared_by_value_and_never_run(gold, answer, same):
    assert equal(gold, answer) is same


def test_literals_are_graded():
    scorer = LiteralScorer(answer=answers.json_field, gold=partial(answers.gold, field="auto", answer=answers.whole))
    items = [item("r", '{"answer": "[1]"}', "[ 1 ]"), item("w", "none", "[1]"), item("u", '{"answer": 1}', None)]
    assert [score.verdict for score in scorer.score(items)] == ["right", "wrong", "unknown"]
    assert scorer.context(items[0]) == "[ 1 ]"
