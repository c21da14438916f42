"""LiveCodeBench: problems of contests by date, their hidden tests, and how a sandbox runs them.

Hidden tests lie in the data set as base64 of zlib of a pickle of JSON. A pickle is a program, so it is never run: its
few instructions that can hold one text are read, and any other is refused.

Source: the data set's card (hub, livecodebench/code_generation_lite) and arXiv:2403.07974; wording and grading are ours.
"""

from __future__ import annotations

import base64
import binascii
import json
import pickletools
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import islice
from typing import Any

from fuserl.errors import FuserlError
from fuserl.evaluation.benchmarks.questions import CARD, Questions, Row, read_row, rows
from fuserl.evaluation.benchmarks.readers import worded
from fuserl.records.schema import PromptGroup
from fuserl.rewards.trial import Calls, Case
from fuserl.rewards.unit_tests import Tests

MOST = 1 << 30  # bytes of one problem's hidden tests
HOLDS_TEXT = {"PROTO", "FRAME", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE", "MEMOIZE", "BINPUT",
              "LONG_BINPUT", "PUT", "STOP"}  # fmt: skip
CHECK = """
import json

CASES = json.loads({cases!r})


def check(candidate):
    for number, (given, wanted) in enumerate(CASES, 1):
        got = getattr(candidate(), {name!r})(*given)
        got = list(got) if isinstance(got, tuple) else got
        assert got == wanted, f"case {{number}} of {{len(CASES)}}"
"""


@dataclass(frozen=True)
class Kept(Questions):
    """Questions of several files, of which `keep` takes some.

    Args:
        also: further files or hub names, as `path`.
        keep: whether a row is asked; None: every one.
    """

    also: tuple[str, ...] | list[str] = ()
    keep: Callable[[Row], bool] | None = None

    @cached_property
    def groups(self) -> list[PromptGroup]:
        """All that are kept, in the files' order.

        Raises:
            FuserlError: they cannot be found, a row is not as it must be, two have one id, or none is kept.
        """
        found: dict[str, PromptGroup] = {}
        for where, row in islice(self._taken(), self.limit):
            group = read_row(self.read, where, row, "no question of this benchmark", CARD)
            if group.id in found:
                raise FuserlError(f"the id `{group.id}` appears twice", where=where, hint="take one file out of `also`")
            found[group.id] = group
        if not found:
            raise FuserlError(
                "no question is kept",
                where=self.path,
                hint="widen `questions.keep`, or add files with `questions.also`",
            )
        return list(found.values())

    def _taken(self) -> Iterator[tuple[str, Row]]:
        """(where, row) of those that are kept; a file is opened when the ones before it are read."""
        for path in (self.path, *self.also):
            for where, row in rows(path, self.subset, self.split, self.revision):
                try:
                    taken = self.keep is None or self.keep(row)
                except (KeyError, TypeError, ValueError) as error:
                    raise FuserlError(
                        f"the row cannot be dated ({error!r})",
                        where=where,
                        hint="`questions.keep` reads another column",
                    ) from error
                if taken:
                    yield where, row


def within(row: Row, *, first: str, last: str, column: str) -> bool:
    """Whether a row's day lies between two, both included; days as 2024-08-01.

    >>> within({"contest_date": "2024-11-30T18:30:00"}, first="2024-08-01", last="2024-11-30", column="contest_date")
    True
    """
    return first <= str(row[column])[:10] <= last


def problem(row: Row, *, script: str, function: str) -> PromptGroup:
    """A problem: `question_content`, `starter_code`, tests; the id is the data set's.

    Args:
        script, function: what is asked where a program reads and prints, and where a method is to be written; blanks
            are question and starter.

    Raises:
        ValueError: its tests cannot be read.
    """
    starter, question = str(row.get("starter_code") or ""), str(row["question_content"])
    group = PromptGroup(
        str(row["question_id"]),
        worded(function if starter.strip() else script, question, question=question, starter=starter),
        (),
        "code",
        None,
        {key: row[key] for key in ("public_test_cases", "private_test_cases", "metadata")}
        | {"contest_date": str(row.get("contest_date")), "difficulty": str(row.get("difficulty"))},
    )
    _tests_of(group)
    return group


def all_tests(group: PromptGroup) -> Tests | None:
    """The problem's public and hidden tests; None where they cannot be read."""
    try:
        return _tests_of(group)
    except (KeyError, TypeError, ValueError):
        return None


def _tests_of(group: PromptGroup) -> Tests:
    fields = ("public_test_cases", "private_test_cases", "metadata")
    return _read(*(str(group.extra[field] or "") for field in fields))


@lru_cache(2)  # a problem's answers follow each other; tests are large
def _read(public: str, private: str, metadata: str) -> Tests:
    found = [*_cases(public), *_cases(unpacked(private))]
    if not found:
        raise ValueError("there are no tests")
    kinds = {one.get("testtype", "stdin") for one in found}
    if kinds == {"stdin"}:
        return tuple(Case(str(one["input"]), str(one["output"])) for one in found)
    if kinds != {"functional"}:
        raise ValueError(f"tests of kinds {', '.join(sorted(map(str, kinds)))} do not go together")
    name = json.loads(metadata)["func_name"]
    calls = [([json.loads(line) for line in one["input"].split("\n")], json.loads(one["output"])) for one in found]
    return Calls(tests=CHECK.format(cases=json.dumps(calls), name=str(name)), entry_point="Solution", check="check")


def _cases(text: str) -> list[Mapping[str, Any]]:
    found = json.loads(text) if text else []
    if not isinstance(found, list) or not all(isinstance(one, Mapping) for one in found):
        raise ValueError("tests are no list of objects")
    return found


def unpacked(text: str, most: int = MOST) -> str:
    """Hidden tests as JSON.

    Raises:
        ValueError: they are no packed text, or larger than `most` bytes.
    """
    if not text or text.lstrip().startswith("["):
        return text
    try:
        packed = base64.b64decode(text.encode(), validate=True)
        unzip = zlib.decompressobj()
        content = unzip.decompress(packed, most)
    except (binascii.Error, zlib.error, UnicodeEncodeError) as error:
        raise ValueError(f"hidden tests cannot be unpacked ({error})") from error
    if unzip.unconsumed_tail:
        raise ValueError(f"hidden tests take more than {most >> 20} MB")
    return _text_in(content)


def _text_in(pickled: bytes) -> str:
    """The one text that a pickle holds, read and not run.

    Raises:
        ValueError: it holds anything else.
    """
    texts: list[str] = []
    for operation, argument, _ in pickletools.genops(pickled):
        if operation.name not in HOLDS_TEXT:
            raise ValueError(f"hidden tests hold more than a text ({operation.name})")
        if isinstance(argument, str):
            texts.append(argument)
    if len(texts) != 1:
        raise ValueError(f"hidden tests hold {len(texts)} texts")
    return texts[0]
