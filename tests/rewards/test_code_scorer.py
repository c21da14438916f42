"""Programs are found in answers and examined by their tests, which never meet them."""

from __future__ import annotations

import socket
import threading
import time
from dataclasses import asdict
from decimal import Decimal
from fractions import Fraction
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuserl.errors import FuserlError
from fuserl.records.schema import Message, PromptGroup, Response
from fuserl.rewards import code, programs, sandbox, seccomp, unit_tests
from fuserl.rewards.code import CodeScorer
from fuserl.rewards.inside.wire import Closed, Garbled, Kept, Line, decode, encode
from fuserl.rewards.parallel import in_parallel
from fuserl.rewards.protocol import Item
from fuserl.rewards.sandbox import Bare, Limits
from fuserl.rewards.trial import Calls, Case, Finding, Program, by_calls, by_cases
from fuserl.sources.protocol import Failure

LIMITS = Limits(cpu_seconds=1, wall_seconds=20, memory_mb=256, scratch_mb=8, output_mb=1)
BINARY, WHY = sandbox.bubblewrap()
CELLS = [
    pytest.param(
        sandbox.Bubblewrap(BINARY), id="bubblewrap", marks=pytest.mark.skipif(not BINARY, reason=f"NO SANDBOX: {WHY}")
    ),
    pytest.param(Bare(), id="unsafe"),
]


def group(text: str = "", prompt: str = "Write f.", reference: str | None = None, **extra: object) -> PromptGroup:
    response_extra = {"form": extra.pop("form")} if "form" in extra else {}
    response = Response("ann", text, extra=response_extra)
    return PromptGroup("p", (Message("user", prompt),), (response,), reference=reference, extra=extra)


def item(key: str, *args: object, **extra: object) -> Item:
    made = group(*args, **extra)
    return Item(key, made, made.responses[0])


@pytest.fixture(scope="module")
def scorer():
    return CodeScorer(
        program=programs.auto,
        tests=unit_tests.auto,
        imports=["import math", "from typing import *"],
        limits=asdict(LIMITS),
        workers=2,
        allow_unsafe_code=True,
    )


FENCED = "Here:\n```python\nfirst = 1\n```\nor\n```py\nsecond = 2  # longer\n```\nRun:\n```sh\nls\n```\n"
EXTRACTED = [
    (programs.whole, FENCED, FENCED),
    (programs.first_block, FENCED, "first = 1\n"),
    (programs.last_block, FENCED, "second = 2  # longer\n"),
    (programs.longest_block, FENCED, "second = 2  # longer\n"),
    (programs.last_block, "no fence", "no fence"),
    (programs.last_block, "```\nx = 1\n```", "x = 1\n"),
    (programs.last_block, "```python\nx = 1\nnever closed", "x = 1\nnever closed"),
    (programs.last_block, "```ruby\nx = 1\n```", "x = 1\n"),
    (programs.last_block, "  ```Python\n  x = 1\n  ```", "  x = 1\n"),
    (programs.last_block, "```python title=x\nx = 1\n```", "x = 1\n"),
    (programs.auto, FENCED, "second = 2  # longer\n"),
]


@pytest.mark.parametrize(("extract", "text", "expected"), EXTRACTED)
def test_a_program_is_found_in_an_answer(extract, text, expected):
    made = group(text)
    assert extract(made, made.responses[0]) == expected


@pytest.mark.parametrize("sign", ["```", "```\n", " ", "``` `", "\n", "```" + " " * 9999, "a"])
def test_finding_takes_time_linear_in_a_hostile_text(sign):
    started = time.perf_counter()
    for text in (sign * (500_000 // len(sign)), "```" + sign * (500_000 // len(sign)) + "`"):
        made = group(text, BEGUN, entry_point="f")
        for extract in (programs.longest_block, programs.auto):
            extract(made, made.responses[0])
    assert time.perf_counter() - started < 10, "a second is plenty; quadratic time would be hours"


BEGUN = "import math\n\ndef f(x):\n    '''Twice x.'''\n"


@pytest.mark.parametrize(
    ("text", "form", "expected"),
    [
        ("    return 2 * x\n", None, BEGUN + "    return 2 * x\n"),
        ("def f(x):\n    return 2 * x\n", None, f"{BEGUN}\n    pass\n\ndef f(x):\n    return 2 * x\n"),
        ("```python\ndef f(x):\n    return 2 * x\n```", None, f"{BEGUN}\n    pass\n\ndef f(x):\n    return 2 * x\n"),
        ("f = lambda x: 2 * x", "full", f"{BEGUN}\n    pass\n\nf = lambda x: 2 * x"),
        ("    def f(y):\n        return y\n    return f(2 * x)\n", "body", BEGUN + "    def f(y):\n        return y\n    return f(2 * x)\n"),
    ],
)  # fmt: skip
def test_an_answer_completes_the_beginning_in_its_prompt(text, form, expected):
    made = group(text, BEGUN, entry_point="f", **({"form": form} if form else {}))
    assert programs.auto(made, made.responses[0]) == expected
    assert programs.completing(made, made.responses[0]) == expected


CHECK = "def check(candidate):\n    assert candidate(2) == 4\n"
FORMS = [
    (dict(test=CHECK, entry_point="f", prompt=BEGUN), Calls(CHECK, f"{BEGUN}\n    pass\n", "f", "check")),
    (dict(test=CHECK, entry_point="f", prompt="Please."), Calls(CHECK, "", "f", "check")),
    (dict(test_list=["assert set(f(2)) == {4}"], test_imports=["import os"]),
     Calls("assert set(f(2)) == {4}", "import os", "f")),
    (dict(test_list=["assert sum(1, 2) == 4"]), Calls("assert sum(1, 2) == 4", "", "sum")),
    (dict(reference="assert f(2) == 4"), Calls("assert f(2) == 4", "", "f")),
    (dict(reference=CHECK, entry_point="f"), Calls(CHECK, "", "f", "check")),
    (dict(reference='{"inputs": ["1"], "outputs": ["2"]}'), (Case("1", "2"),)),
    (dict(reference='[{"input": "1", "output": "2"}]'), (Case("1", "2"),)),
    (dict(input_output={"inputs": ["1"], "outputs": ["2"]}), (Case("1", "2"),)),
    (dict(reference='{"inputs": ["1"], "outputs": []}'), None),
    (dict(reference='[{"input": 1, "output": "2"}]'), None),
    (dict(reference="42"), None),
    (dict(reference="assert ("), None),
    (dict(reference="[" * 5000), None),
    (dict(), None),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "expected"), FORMS)
def test_tests_are_found_in_their_usual_forms(fields, expected):
    assert unit_tests.auto(group(**fields)) == expected


VERDICTS = [
    ("def f(x): return 2 * x", "assert f(2) == 4", "right", ""),
    ("def f(x): return 3 * x", "assert f(2) == 4", "wrong", "AssertionError in `assert f(2) == 4`"),
    ("def g(x): return x", "assert f(2) == 4", "wrong", "does not define f"),
    ("import nothing_such", "assert f(2) == 4", "wrong", "ModuleNotFoundError"),
    ("def f(x): raise KeyError(x)", "assert f(2) == 4", "wrong", "KeyError: '2' in `assert f(2) == 4`"),
    ("def f(x): raise KeyError(x)", "try: f(2)\nexcept KeyError: pass\nelse: assert False", "right", ""),
    ("def f(x): raise ValueError", "try: f(2)\nexcept KeyError: pass", "wrong", "ValueError"),
    ("def f(x): x.append(3)", "a = [1]\nf(a)\nassert a == [1, 3]", "right", ""),
    ("def f(x): x[0][0] = 3", "a = [[1], 2]\nf(a)\nassert a == [[3], 2]", "right", ""),
    ("def f(x): x.clear()", "a = {1: 2}\nf(a)\nassert a == {}", "right", ""),
    ("def f(x): x = 5", "a = [1]\nassert f(a) is None and a == [1]", "right", ""),
    ("def f(x): yield from range(x)", "assert list(f(3)) == [0, 1, 2]", "right", ""),
    ("def f(x): yield 1; yield f", "assert next(f(3)) == 1", "right", ""),
    ("def f(x): return map(str, x)", "assert list(f((1, 2))) == ['1', '2']", "right", ""),
    ("def f(x): return lambda y: x + y", "assert f(1)(2) == 3", "right", ""),
    (
        "class P:\n def __init__(self, a): self.a = a\ndef f(p): return p.a",
        "assert f(P(3)) == 3 and P(4).a == 4",
        "right",
        "",
    ),
    ("class S:\n def go(self, n): return n", "assert S().go(3) == 3", "right", ""),
    ("class P:\n def __eq__(self, o): return True\ndef f(): return P()", "assert f() == f()", "unknown", "own classes"),
    ("class P:\n def __eq__(self, o): return True\ndef f(): return P()", "assert f() == 7", "wrong", "AssertionError"),
    ("def f(g): return g(1)", "assert f(lambda x: x) == 1", "unknown", "hands over a function"),
    ("def f(g): return g(1)", "try: f(len)\nexcept: pass", "unknown", "hands over"),
    ("import os\ndef f(): os._exit(0)", "try: f()\nexcept: pass", "wrong", "ended"),
    ("K = 10 ** 30\ndef f(): return K", "assert f() == K == 10 ** 30", "right", ""),
    ("def f(x): return x", "assert f(1.5) == 1.5 and f(float('inf')) > 1 and f('\\ud800') == '\\ud800'", "right", ""),
    (
        "from fractions import Fraction\ndef f(x): return Fraction(x, 4)",
        "from fractions import Fraction\nassert f(2) == Fraction(1, 2)",
        "right",
        "",
    ),
    (
        "from collections import Counter\ndef f(x): return Counter(x)",
        "assert f('aab') == {'a': 2, 'b': 1}",
        "right",
        "",
    ),
    (
        "len = lambda x: 99\nall = lambda x: True\ndef f(x): return x",
        "assert len([1]) == 1 and not all([0]) and f(1) == 1",
        "right",
        "",
    ),
    ("def f(x): return 1", "import nothing_such\nassert f(2) == 1", "unknown", "the tests are broken"),
    ("def f(x): return 1", "assert f(", "unknown", "the tests are broken"),
    ("def f(x): return 1", "1 / 0\nassert f(2) == 1", "unknown", "the tests are broken"),
    ("def f(x): return 'a'", "assert f(2) + 1 == 3", "wrong", "cannot use what came back"),
    ("def f(x): return 1", "x = 1", "unknown", "call nothing"),
    ("def f(x): return 1", "while True: pass", "unknown", "the tests were stopped"),
    ("def f(x):\n while True: pass", "assert f(2) == 4", "wrong", "timeout"),
    (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass A:\n x: int\ndef f(): return A(3).x",
        "assert f() == 3",
        "right",
        "",
    ),
    ("def f(): return math.floor(2.5), List[int] is not None", "assert f() == (2, True)", "right", ""),
    ("if __name__ == '__main__': raise SystemExit\ndef f(): return input", "assert f() is not None", "right", ""),
]


@pytest.mark.parametrize("cell", CELLS)
def test_the_examiner_finds_what_the_tests_say(cell):
    """In one go: a process takes its time to start."""

    def tried(case):
        program, tests, *_ = case
        calls = unit_tests.assertions(group(reference=tests)) or Calls(tests, entry_point="f")
        return case, by_calls(Program(program, "import math\nfrom typing import *"), calls, cell, LIMITS)

    few = VERDICTS if cell.safe else VERDICTS[:8]  # the examiner is the same
    for (program, tests, verdict, why), found in in_parallel(tried, few, 3):
        assert found.verdict == verdict, (program, tests, found)
        assert why in found.why, (program, tests, found)


def test_helpers_that_the_task_defines_are_the_tasks_own():
    """HumanEval/32 tests `find_zero` with `poly` of its prompt: a program must not bring its own."""
    prompt = "def poly(x):\n    return x - 2\n\ndef f():\n    '''Zero of poly.'''\n"
    test = "def check(candidate):\n    assert abs(poly(candidate())) < 1e-4\n"
    calls = unit_tests.humaneval(group(prompt=prompt, test=test, entry_point="f"))
    assert calls is not None
    honest, cheat = "def f(): return 2", "def poly(x): return 0\ndef f(): return 5"
    assert by_calls(Program(honest), calls, Bare(), LIMITS).verdict == "right"
    assert by_calls(Program(cheat), calls, Bare(), LIMITS).verdict == "wrong"


@pytest.mark.parametrize("cell", CELLS)
def test_scripts_are_examined_by_what_they_print(cell):
    cases = [Case("2 3\n", "5"), Case("4 5\n", "9\n")]
    script = "import sys\na, b = map(int, sys.stdin.readline().split())\nprint(a + b, ' ')\nprint()"
    assert by_cases(Program(script), cases, cell, LIMITS) == Finding("right")
    guess = "print(5)\nexit()"
    assert by_cases(Program(guess), cases, cell, LIMITS) == Finding("wrong", "case 2 of 2: prints something else")
    assert by_cases(Program("if __name__ == '__main__': print(int(input().split()[0]) + math.pi)", "import math"),
                    [Case("0 0", "3.141592653589793")], cell, LIMITS).verdict == "right"  # fmt: skip
    assert by_cases(Program("1 / 0"), cases, cell, LIMITS).why == "case 1 of 2: ended with code 1"
    assert by_cases(Program(script), [], cell, LIMITS).verdict == "unknown"


def test_scores_are_three_valued_and_name_the_reason(scorer):
    found = {score.key: score for score in scorer.score([
        item("right", "```python\ndef f(x): return x\n```", reference="assert f(1) == 1"),
        item("wrong", "def f(x): return 2", reference="assert f(1) == 1"),
        item("none", "def f(x): return 2", reference="no tests"),
        item("empty", "", reference="assert f(1) == 1"),
    ])}  # fmt: skip
    assert {key: (score.verdict, score.reward) for key, score in found.items()} == {
        "right": ("right", 1.0), "wrong": ("wrong", 0.0), "none": ("unknown", None), "empty": ("wrong", 0.0),
    }  # fmt: skip
    assert found["right"].detail == {}
    assert "assert f(1) == 1" in found["wrong"].detail["why"]
    assert found["none"].detail == {"why": "the group has no unit tests"}


def test_a_sandbox_that_fails_is_a_failure_and_tried_again(scorer, monkeypatch):
    tries = []

    def fails(*args):
        tries.append(args)
        if len(tries) % 2:
            raise OSError("no more processes")
        return Finding("trouble", "the process did not start")

    monkeypatch.setattr(code, "by_calls", fails)
    monkeypatch.setattr(code, "PAUSES", (0.0, 0.0, 0.0))
    (found,) = scorer.score([item("k", "def f(): pass", reference="assert f() is None")])
    assert isinstance(found, Failure)
    assert found.passing
    assert "no more processes" in found.what
    assert len(tries) == 3


def test_a_process_that_never_begins_is_trouble_and_not_wrong(monkeypatch):
    monkeypatch.setattr(sandbox, "BOOT", "raise SystemExit(0)")
    assert (
        by_calls(Program("f = len"), Calls("assert f('') == 0", entry_point="f"), Bare(), LIMITS).verdict == "trouble"
    )
    assert by_cases(Program("print(1)"), [Case("", "1")], Bare(), LIMITS).verdict == "trouble"


@pytest.mark.parametrize(
    "wrong",
    [
        {"imports": ["import nothing_such"]},
        {"limits": asdict(LIMITS) | {"cpu_seconds": 0}},
        {"limits": asdict(LIMITS) | {"cpu_seconds": 1.5}},
        {"limits": asdict(LIMITS) | {"wall_seconds": True}},
        {"limits": {"cpu_seconds": 3}},
        {"limits": asdict(LIMITS) | {"disk_mb": 1}},
        {"workers": -1},
    ],
)
def test_settings_that_cannot_work_are_refused(wrong, monkeypatch):
    monkeypatch.setattr(code, "PAUSES", (0.0,))
    given = dict(program=programs.auto, tests=unit_tests.auto, imports=[], limits=asdict(LIMITS), workers=1)
    with pytest.raises(FuserlError, match=f"rewards.code.*{next(iter(wrong))}"):
        CodeScorer(**(given | wrong), allow_unsafe_code=True)


def test_without_a_sandbox_code_is_refused_unless_it_is_said(monkeypatch, capsys):
    monkeypatch.setattr(sandbox, "bubblewrap", lambda: ("", "bubblewrap (`bwrap`) is not installed"))
    given = dict(program=programs.auto, tests=unit_tests.auto, imports=[], limits=asdict(LIMITS), workers=1)
    with pytest.raises(FuserlError, match="allow_unsafe_code=true") as caught:
        CodeScorer(**given, allow_unsafe_code=False)
    assert "apt-get install bubblewrap" in caught.value.hint
    scorer = CodeScorer(**given, allow_unsafe_code=True)
    assert not scorer.cell.safe
    assert "WARNING" in capsys.readouterr().err
    (found,) = scorer.score([item("k", "def f(): return 1", reference="assert f() == 1")])
    assert found.verdict == "right"


def test_a_bubblewrap_that_does_not_work_is_not_used(monkeypatch, tmp_path):
    for name, script in {"fails": "exit 1", "leaks": "shift $(($# - 9))\nexec python3 -c 'print(1)'"}.items():
        binary = tmp_path / name / "bwrap"
        binary.parent.mkdir()
        binary.write_text(f"#!/bin/sh\n{script}\n")
        binary.chmod(0o755)
        monkeypatch.setenv("PATH", f"{binary.parent}:/usr/bin:/bin")
        found, why = sandbox.bubblewrap.__wrapped__()
        assert found == ""
        assert "does not work here" in why


def test_the_filter_names_a_processor_it_knows():
    assert seccomp.supported("x86_64")
    assert seccomp.supported("aarch64")
    assert not seccomp.supported("sparc")
    assert {len(seccomp.program(machine)) % 8 for machine in seccomp.REFUSED} == {0}


def test_identity_and_context_hold_what_decides_a_score(scorer):
    other = CodeScorer(
        program=partial(programs.completing, block=programs.first_block), tests=unit_tests.mbpp, imports=[],
        limits=asdict(LIMITS), workers=2, allow_unsafe_code=True,
    )  # fmt: skip
    assert other.identity() != scorer.identity()
    assert other.identity()["program"]["block"] == "fuserl.rewards.programs.first_block"
    made = item("k", "x", reference="assert f(1) == 1", form="body")
    assert scorer.context(made)["form"] == "body"
    assert scorer.context(made)["tests"]["tests"] == "assert f(1) == 1"
    assert scorer.context(item("k", "x", reference='[{"input": "1", "output": "2"}]'))["tests"] == [
        {"reads": "1", "prints": "2"}
    ]


def test_work_in_parallel_raises_what_it_raised_and_begins_nothing_more():
    begun = []

    def work(number):
        begun.append(number)
        if number == 3:
            raise FuserlError("three")
        return number

    with pytest.raises(FuserlError, match="three"):
        list(in_parallel(work, range(1000), 2))
    assert len(begun) < 20


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary() | st.fractions()
    | st.decimals(allow_nan=False) | st.complex_numbers(allow_nan=False) | st.builds(range, st.integers(-9, 9)),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text() | st.integers(), inner)
    | st.sets(st.integers() | st.text()) | st.frozensets(st.tuples(st.integers(), st.text())),
    max_leaves=12,
)  # fmt: skip


@given(VALUES)
def test_values_arrive_as_they_were_sent(value):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sender = threading.Thread(target=lambda: Line(ours.fileno()).send(encode(value, Kept())))
        sender.start()
        arrived = decode(Line(theirs.fileno()).receive(), Kept())
        sender.join()
    assert arrived == value
    assert repr(arrived) == repr(value) or isinstance(value, dict | set | frozenset | list | tuple)


class Sly(int):
    def __eq__(self, other):
        return True

    __hash__ = int.__hash__


def test_no_method_of_a_sent_value_survives():
    for value in (Sly(3), [Sly(3)], {"a": Sly(3)}, {Sly(3)}, Fraction(1, 3), Decimal("1.50")):
        arrived = decode(encode(value, Kept()), Kept())
        assert "Sly" not in repr(type(arrived)) + repr(arrived)
    assert decode(encode(Sly(3), Kept()), Kept()) != 4


@pytest.mark.parametrize("value", [print, object(), [len], {"a": Fraction}])
def test_what_cannot_be_copied_is_kept_or_refused(value):
    with pytest.raises(Garbled):
        encode(value, Kept())


@given(st.binary(max_size=60))
def test_any_bytes_are_a_value_or_refused(message):
    try:
        value = decode(message, Kept())
    except Garbled:
        return
    assert decode(encode(value, Kept()), Kept()) == value or value != value or "nan" in repr(value)


@pytest.mark.parametrize(
    "message",
    [b"", b"x", b"izz;", b"i5", b"s9:abc", b"s-1:abc", b"l3:N", b"S1:l0:", b"d1:l0:N", b"rNNN", b"q3:1/0", b"k0;", b"NN",
     b"l1:" * 5000 + b"N", b"l99999999999:N", b"s1:\xff"],
)  # fmt: skip
def test_what_is_no_value_is_refused(message):
    with pytest.raises(Garbled):
        decode(message, Kept())


@pytest.mark.parametrize("said", [b"nothex!!", b"-0000001", b"ffffffff", b"00800001", b""])
def test_what_is_no_message_is_refused(said):
    ours, theirs = socket.socketpair()
    with theirs:
        with ours:
            ours.sendall(said)
        with pytest.raises((Garbled, Closed)):
            Line(theirs.fileno()).receive()
