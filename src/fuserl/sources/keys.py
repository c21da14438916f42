"""A key of a server: read from the environment, sent, and shown to nobody. Texts of servers are made harmless here."""

from __future__ import annotations

import os
import re

from fuserl.errors import FuserlError

SHORTEST_SECRET = 8  # characters; a shorter key ("none", "EMPTY") is a word, and words stay as they are
LONGEST_LINE = 300  # characters of what a server says


class Key:
    """The key that an environment variable holds, or none.

    Raises:
        FuserlError: the name is none of a variable (a key itself, perhaps: it is not repeated), or a header cannot
            hold the key.
    """

    def __init__(self, variable: str) -> None:
        if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", variable):
            raise FuserlError(
                "this is not the name of an environment variable",
                where="`engine.key_from`",
                hint="export the key as OPENAI_API_KEY, say, and give that name (in capitals) here, not the key",
            )
        self.variable = variable
        self._value = os.environ.get(variable, "").strip()
        if not re.fullmatch(r"[\x21-\x7e]*", self._value):
            raise FuserlError(
                "the key has characters that no key has (a space, a line's end, a quotation mark from a document?)",
                where=f"environment variable `{variable}`",
                hint="export it again",
            )

    def __repr__(self) -> str:
        return f"Key({self.variable})"

    def __bool__(self) -> bool:
        return bool(self._value)

    def reveal(self) -> str:
        """For the header that it is sent in, and nothing else."""
        return self._value

    def hidden(self, text: str) -> str:
        """A text of the server without the key."""
        return text.replace(self._value, "***") if len(self._value) >= SHORTEST_SECRET else text

    def line(self, text: str) -> str:
        """What a server says, as one short printable line without the key."""
        words = " ".join(self.hidden(text).split())
        plain = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words[:LONGEST_LINE])
        return f"{plain[: LONGEST_LINE - 1]}…" if len(words) > LONGEST_LINE else plain
