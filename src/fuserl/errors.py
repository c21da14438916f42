"""The one error that users meet: what is wrong, where, and the way out."""

from __future__ import annotations


class FuserlError(Exception):
    """A mistake in data, configuration or environment that a user can mend.

    Args:
        what: one sentence that says what is wrong.
        where: file, row, field, group, or config key; empty when there is no place to name.
        hint: what to do instead, as a command or a setting where possible.
    """

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what, self.where, self.hint = what, where, hint

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.hint:
            lines.append(f"  hint:  {self.hint}")
        return "\n".join(lines)

    def __reduce__(self):
        return _rebuild, (self.what, self.where, self.hint)


class Stopped(BaseException):
    """The process was asked to end (SIGTERM, Ctrl-C), and has kept what was done.

    Args:
        signal: its number.
        what: what was done, one sentence.
    """

    def __init__(self, signal: int, what: str) -> None:
        super().__init__(what)
        self.signal, self.what = int(signal), what

    @property
    def status(self) -> int:
        """The process's, as shells give it."""
        return 128 + self.signal

    def __str__(self) -> str:
        return f"stopped: {self.what}; the same command goes on from there"


def _rebuild(what: str, where: str, hint: str) -> FuserlError:
    """Data-loader workers and ranks send errors through pickle; keyword arguments do not survive it."""
    return FuserlError(what, where=where, hint=hint)
