"""Columns that grow while groups pass, and texts as two arrays instead of a list of objects."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np


class GrowingArray:
    """A one-dimensional .npy file that is appended to; its header is true once it is closed."""

    def __init__(self, path: Path, dtype: Any) -> None:
        self.dtype, self.length = np.dtype(dtype), 0
        self.file = path.open("wb")
        self._header()

    def append(self, values: np.ndarray) -> int:
        """Write values behind the others; where they begin."""
        start = self.length
        self.file.write(np.ascontiguousarray(values, dtype=self.dtype).tobytes())
        self.length += len(values)
        return start

    def finish(self) -> None:
        """Write the header anew, for as many values as came, and flush. The file stays open."""
        self.file.seek(0)
        self._header()
        self.file.flush()

    def _header(self) -> None:
        # the format leaves room in the header for the first dimension to grow
        descr = np.lib.format.dtype_to_descr(self.dtype)
        header = {"descr": descr, "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(self.file, header)


class Strings(Sequence[str]):
    """Texts that lie end to end in one UTF-8 buffer."""

    def __init__(self, text: np.ndarray, ends: np.ndarray, rows: np.ndarray | None = None) -> None:
        self.text, self.ends = text, ends
        self.rows = np.arange(len(ends)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return Strings(self.text, self.ends, self.rows[number])
        row = int(self.rows[number])
        start = int(self.ends[row - 1]) if row else 0
        return self.text[start : int(self.ends[row])].tobytes().decode("utf-8")

    def __iter__(self) -> Iterator[str]:
        return (self[number] for number in range(len(self)))

    def take(self, rows: np.ndarray) -> Strings:
        """Some of them, in that order; nothing is copied but their places."""
        return Strings(self.text, self.ends, self.rows[rows])


class Codes:
    """Names as numbers: in the order of a given list, or sorted once all are known."""

    def __init__(self, names: Sequence[str] | None = None) -> None:
        self.fixed = names is not None
        self.number = {name: number for number, name in enumerate(names or ())}
        self.values = array("i")

    def add(self, name: str) -> None:
        """Append one.

        Raises:
            KeyError: the list is given and lacks it.
        """
        if name not in self.number:
            if self.fixed:
                raise KeyError(name)
            self.number[name] = len(self.number)
        self.values.append(self.number[name])

    def finish(self) -> tuple[list[str], np.ndarray]:
        """(the names, int32 [n] each value's place among them)."""
        names = list(self.number) if self.fixed else sorted(self.number)
        place = {name: number for number, name in enumerate(names)}
        moved = np.array([place[name] for name in self.number] or [0], dtype=np.int32)
        return names, moved[np.frombuffer(self.values, dtype=np.int32)]
