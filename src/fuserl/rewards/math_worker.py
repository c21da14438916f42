"""A process that compares answers with math-verify, one JSON line a comparison; killed when one takes too long.

math-verify's own time-outs are alarms, which neither work in threads nor end a power tower in C. Here a timer of the
kernel ends the whole process: of CPU time, so that a busy machine makes nothing unknown.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys
from functools import lru_cache
from typing import Any

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
from sympy import Basic, MatrixBase

from fuserl.rewards.reading import is_number, tidy, words

LATEX, EXPRESSION = LatexExtractionConfig(), ExprExtractionConfig()
SENTENCE = 3  # words from which on an answer is read as prose
FORMULA = 300  # characters of one expression at most; more is prose


def read(text: str, *, prose: bool) -> list[Any]:
    """What math-verify makes of an answer: mathematics, or nothing.

    Args:
        prose: look for an expression in the text, as its last one or after "answer"; else the text itself is one.
    """
    if prose:
        found = parse(text, [LATEX, EXPRESSION], parsing_timeout=None, raise_on_error=True)
    else:
        body, percent = (text[:-2], "%") if text.endswith(r"\%") else (text, "")  # as math-verify wants it: outside
        found = parse(f"${body}${percent}", [LATEX], parsing_timeout=None, raise_on_error=True)
    return [one for one in found if isinstance(one, Basic | MatrixBase)]


@lru_cache(256)
def read_gold(text: str) -> list[Any]:
    """The right answer, which many responses are compared with."""
    return read(text, prose=False) or read(text, prose=True)


@lru_cache(4096)  # samples of one prompt often agree
def compare(gold: str, answer: str) -> tuple[str, str]:
    """Verdict and reason.

    Returns:
        right, wrong or unknown; unknown is what cannot be read, on either side.
    """
    right, said = tidy(gold), tidy(answer)
    if not any(sign.isalnum() for sign in said):
        return "wrong", "no answer"
    if right == said:
        return "right", ""
    expected = read_gold(right)
    if not expected:
        return "unknown", "the right answer cannot be read"
    prose = len(words(said)) >= (1 if is_number(right) else SENTENCE) or len(said) > FORMULA
    found = read(said, prose=prose)
    if not found:
        return ("wrong", "no expression in the answer") if prose else ("unknown", "the answer cannot be read")
    return ("right" if verify(expected, found, timeout_seconds=None, raise_on_error=True) else "wrong"), ""


def answered(line: bytes) -> dict[str, str]:
    """One comparison; whatever goes wrong in it is unknown."""
    try:
        verdict, why = compare(**json.loads(line))
    except (Exception, RecursionError) as error:
        verdict, why = "unknown", f"{type(error).__name__} in math-verify"
    return {"verdict": verdict, "why": why}


def main(seconds: float, memory_mb: int) -> None:
    """Answer lines until there are no more."""
    logging.disable(logging.WARNING)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    memory = memory_mb << 20
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    compare("1/3", r"the answer is $\frac{2}{6}$ cups")  # patterns are compiled before the first timer starts
    out, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.write(out, b'{"ready": true}\n')
    os.dup2(nowhere, 1)  # what libraries print is no answer
    os.dup2(nowhere, 2)
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        signal.alarm(int(20 * seconds) + 1)
        reply = answered(line)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        os.write(out, json.dumps(reply).encode() + b"\n")


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
