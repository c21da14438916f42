"""Which model a path means, and where what is found out about it belongs."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

STAGE = re.compile(r"\d{2,}_")
EVALUATION = "evaluation"  # the folder beside a run's model in which its benchmarks stand


@dataclass(frozen=True)
class Place:
    """A model."""

    path: str  # folder or hub name
    home: Path | None  # the folder of the run that made it; None: nobody's we know

    @property
    def recipe(self) -> Path | None:
        """The folder of the recipe that the run is a stage of."""
        return self.home.parent if self.home and STAGE.match(self.home.name) else None


def model_in(path: str) -> Place:
    """The model of a run's folder, of the last stage of a recipe that made one, or the path as it is."""
    folder = Path(path).expanduser()
    if (folder / "model" / "config.json").exists():
        return Place(str(folder / "model"), folder)
    if (folder / "config.json").exists():
        ours = folder.parent if folder.name == "model" and (folder.parent / "summary.json").exists() else None
        return Place(path, ours or (folder if _merged(folder) else None))
    for stage in sorted(stages(folder), reverse=True):
        found = model_in(str(stage))
        if found.home is not None:
            return found
    return Place(path, None)


def stages(folder: Path) -> list[Path]:
    """The folders of a recipe's stages, in order; none where it is no recipe's."""
    inside = folder.iterdir() if folder.is_dir() else ()
    return sorted(one for one in inside if one.is_dir() and STAGE.match(one.name))


def _merged(folder: Path) -> bool:
    """Whether `fuserl merge` made it."""
    try:
        return json.loads((folder / "manifest.json").read_text(encoding="utf-8")).get("verb") == "merge"
    except (OSError, ValueError, AttributeError):
        return False
