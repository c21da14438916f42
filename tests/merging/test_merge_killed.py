"""`fuserl merge` that was killed between its last two steps; `tests/kills` kills it anywhere."""

from __future__ import annotations

import json
from pathlib import Path

from merging_kit import family, merged

OWN = ("seconds", "peak_memory_mb")  # of a manifest: a run's own


def contents(folder: Path) -> dict[str, object]:
    """File -> what is in it."""
    found: dict[str, object] = {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
    told = json.loads((folder / "manifest.json").read_text())
    return found | {"manifest.json": {name: value for name, value in told.items() if name not in OWN}}


def test_a_folder_that_was_killed_before_it_got_its_name_is_made_anew(tmp_path):
    """Between the last two steps: all is written, the lock has gone."""
    out, given = tmp_path / "out", family(tmp_path, "ab")
    wanted = contents(merged(given, out))
    out.rename(tmp_path / "out.part")
    assert contents(merged(given, out)) == wanted
