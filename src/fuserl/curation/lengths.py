"""Rules that look at a response's extent: nothing in it, cut off, too short, too long."""

from __future__ import annotations

from dataclasses import dataclass

from fuserl.curation.texts import NOTHING, excerpt, kinds, normalised, words
from fuserl.errors import FuserlError
from fuserl.records.schema import PromptGroup, Response


@dataclass(frozen=True)
class Empty:
    """Nothing to read: no letter, digit or symbol."""

    name: str

    def __call__(self, group: PromptGroup, response: Response) -> str | None:
        """Why the response goes, None: it stays."""
        table = kinds()
        return None if any(table[ord(sign)] != NOTHING for sign in response.text) else "there is no text"


@dataclass(frozen=True)
class Truncated:
    """Cut by the limit on new tokens, as the engine that wrote it says."""

    name: str

    def __call__(self, group: PromptGroup, response: Response) -> str | None:
        """Why the response goes, None: it stays."""
        return f"cut off: {excerpt(response.text[-60:])}" if response.finish_reason == "length" else None


@dataclass(frozen=True)
class Length:
    """Fewer or more words than wanted; see `texts.words`. A limit of null is none.

    Raises:
        FuserlError: nothing fits between the limits.
    """

    name: str
    least: int | None
    most: int | None

    def __post_init__(self) -> None:
        if (self.least or 0) < 0 or (self.most is not None and self.most < (self.least or 0)):
            raise FuserlError(
                f"no text has from {self.least} to {self.most} words",
                where=f"`least` and `most` of the rule `{self.name}`",
                hint="`most` must not be below `least`; null is no limit",
            )

    def __call__(self, group: PromptGroup, response: Response) -> str | None:
        """Why the response goes, None: it stays."""
        if self.least is None and self.most is None:
            return None
        count = len(words(normalised(response.text)))
        if self.least is not None and count < self.least:
            return f"{count} words, at least {self.least} are wanted: {excerpt(response.text, 60)}"
        if self.most is not None and count > self.most:
            return f"{count} words, at most {self.most} are wanted"
        return None
