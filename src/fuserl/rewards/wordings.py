"""What judges of benchmarks are told: our own wording from the configuration, or the authors' own from their file.

Authors fill `{question}` by Python's format, which would read braces in an answer; here their blanks are filled in one pass,
like ours. Their templates have no fences that an answer cannot write, so what an answer repeats of a template's own lines is
parted by a sign that prints nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fuserl.errors import FuserlError
from fuserl.rewards.fences import BLANK, FENCE, JOINER, blanks_of, defused, filled

BRACES = re.compile(r"\{\{|\}\}|\{(\w+)\}")
SHORTEST = 8  # characters of a template's line that are a mark; shorter ones may stand in any answer


@dataclass(frozen=True)
class Wording:
    """One prompt of a judge, with blanks like `{{answer}}`."""

    text: str
    system: str | None = None  # a turn before it; None: the judge's own, if it has one

    @cached_property
    def blanks(self) -> frozenset[str]:
        """What it is filled with."""
        return frozenset(BLANK.findall(self.text)) - {FENCE}

    @cached_property
    def _marks(self) -> re.Pattern[str] | None:
        """The template's own lines, where it has no fence."""
        if f"{{{{{FENCE}}}}}" in self.text:
            return None
        lines = {line.strip() for part in BLANK.sub("\0", self.text).split("\0") for line in part.splitlines()}
        marks = sorted((line for line in lines if len(line) >= SHORTEST), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, marks)), re.IGNORECASE) if marks else None

    def told(self, texts: Mapping[str, str], verdict: re.Pattern[str]) -> str:
        """The prompt, with texts of others in its blanks.

        Args:
            texts: more than the wording has blanks for, if you like.
            verdict: what the judge's own verdict looks like: a text that spells one is parted, so that a judge that only
                quotes it has said nothing.
        """
        return filled(self.text, {name: self._harmless(texts[name], verdict) for name in self.blanks})

    def _harmless(self, text: str, verdict: re.Pattern[str]) -> str:
        text = _parted(verdict, defused(text))
        return _parted(self._marks, text) if self._marks else text


def _parted(pattern: re.Pattern[str], text: str) -> str:
    return pattern.sub(lambda found: found[0][0] + JOINER + found[0][1:], text)


def own(template: str, needed: Iterable[str], known: Iterable[str], where: str) -> Wording:
    """A wording of the configuration.

    Raises:
        FuserlError: it lacks a blank or a fence, or has one that nobody fills.
    """
    blanks_of(template, needed=needed, known=known, where=where)
    return Wording(template)


def authors(
    text: Any, system: Any, names: Mapping[str, str], needed: Iterable[str], known: Iterable[str], where: str
) -> Wording:
    """A wording of the authors' file: `{name}` is a blank, `{{` and `}}` are braces.

    Args:
        names: their names of blanks -> ours, where they differ.

    Raises:
        FuserlError: it is no text, or has other blanks.
    """
    if not isinstance(text, str) or not (system is None or isinstance(system, str)):
        raise FuserlError("the judge's prompt is no text", where=where, hint="give the authors' own file")
    found = {name for name in BRACES.findall(text) if name}
    ours = {names.get(name, name) for name in found}
    needed, known = set(needed), set(known)
    if not needed <= ours <= needed | known:
        wrong = sorted((needed - ours) | (ours - needed - known))[0]
        raise FuserlError(
            f"the judge's prompt {'lacks' if wrong in needed else 'has'} a blank `{wrong}`",
            where=where,
            hint=f"it needs {', '.join(sorted(needed))}, and may have {', '.join(sorted(known)) or 'no other'}",
        )
    single = {"{{": "{", "}}": "}"}
    return Wording(
        BRACES.sub(lambda b: single[b[0]] if b[0] in single else f"{{{{{names.get(b[1], b[1])}}}}}", text), system
    )


def parsed(file: Path, parse: Callable[[str], Any]) -> Any:
    """What a file holds.

    Raises:
        FuserlError: it cannot be read, or is not of this form.
    """
    try:
        return parse(file.read_text(encoding="utf-8"))
    except Exception as error:  # of yaml, json and the file system: there is no common class
        why = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise FuserlError(
            f"the judge's prompts cannot be read ({why})", where=str(file), hint="give the authors' own file"
        ) from error


def of_all(wordings: Mapping[str, Wording]) -> str:
    """All that is asked, as one text, for the hash that is kept with every verdict."""
    return json.dumps({key: [one.system, one.text] for key, one in sorted(wordings.items())})
