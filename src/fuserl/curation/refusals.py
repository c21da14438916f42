"""A rule for answers that refuse. It knows them by how they begin, from a list in the configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping

from fuserl.curation.texts import excerpt, normalised, words
from fuserl.errors import FuserlError
from fuserl.records.schema import PromptGroup, Response

START = 400  # characters of the answer that patterns see
_APOSTROPHES = str.maketrans(dict.fromkeys("’‘ʼ`´", "'"))
_BEFORE = re.compile(r"[\W_]+")  # quotation marks and Markdown's signs before the first word


class Refused:
    """An answer that begins as refusals do and ends soon.

    Patterns see what `opening` makes of the text, and must match from its first word on.

    Args:
        patterns: what an answer does -> regular expression.
        parts: what patterns call <name> -> the expression it stands for.
        unless: of answers that begin so and go on to help; None: nothing excuses.
        longest: words; a longer answer that begins so goes on to help; None: length does not matter.

    Raises:
        FuserlError: a pattern is no regular expression.
    """

    def __init__(
        self, name: str, patterns: Mapping[str, str], parts: Mapping[str, str], unless: str | None, longest: int | None
    ) -> None:
        self.name, self.longest = name, longest
        self._refusals = {what: self._compiled(f"patterns.{what}", text, parts) for what, text in patterns.items()}
        self._excuse = None if unless is None else self._compiled("unless", unless, parts)

    def __call__(self, group: PromptGroup, response: Response) -> str | None:
        """Why the response goes, None: it stays."""
        start = opening(response.text)
        what = next((what for what, pattern in self._refusals.items() if pattern.match(start)), None)
        if what is None or (self._excuse is not None and self._excuse.match(start)):
            return None
        if self.longest is not None and len(words(normalised(response.text))) > self.longest:
            return None
        return f"{what}: {excerpt(response.text)}"

    def _compiled(self, setting: str, pattern: str, parts: Mapping[str, str]) -> re.Pattern[str]:
        for name, part in parts.items():
            pattern = pattern.replace(f"<{name}>", f"(?:{part})")
        try:
            return re.compile(pattern)
        except re.error as error:
            raise FuserlError(
                f"the pattern is no regular expression ({error})",
                where=f"`{setting}` of the rule `{self.name}`",
                hint="it is matched from the answer's first word on, in small letters",
            ) from error


def opening(text: str) -> str:
    """The first signs of an answer as patterns see them: small letters, single spaces, straight apostrophes.

    >>> opening("**I’m  sorry**, but ...")
    "i'm sorry, but ..."
    """
    small = normalised(text[: 2 * START]).translate(_APOSTROPHES).replace("*", "")
    before = _BEFORE.match(small)
    return small[before.end() if before else 0 :][:START]
