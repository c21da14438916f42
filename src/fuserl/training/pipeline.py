"""The verb `pipeline`: the stages of a recipe in turn, each starting from the model of the one before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from fuserl.errors import FuserlError
from fuserl.settings import compose, plain
from fuserl.terminal import say
from fuserl.training.folder import digest
from fuserl.training.run import train


def pipeline(cfg: DictConfig) -> Path:
    """Run the recipe's stages into `output/NN_name`; finished ones are skipped, a killed one continues.

    Returns:
        The last stage's folder.

    Raises:
        FuserlError: the recipe has no stages, or a stage cannot work; found before the first stage starts.
    """
    settings = plain(cfg)
    stages = _checked(settings["recipe"].get("stages"))
    output = Path(cfg.output or Path("runs") / digest("pipeline", settings))
    folders = [output / f"{number:02d}_{name}" for number, (name, _) in enumerate(stages, 1)]
    shared = _texts(settings["overrides"], "overrides")
    composed = [
        compose("train", [*overrides, *shared, f"output='{folder}'", f"seed={cfg.seed}"])
        for (_, overrides), folder in zip(stages, folders, strict=True)
    ]
    before: Path | None = None
    for (name, _), job, folder in zip(stages, composed, folders, strict=True):
        if before is not None:
            job.target.path = str(before / "model")
        say(f"stage {name}")
        train(job)
        before = folder
    return folders[-1]


def _checked(stages: Any) -> list[tuple[str, list[str]]]:
    """(name, overrides) of every stage."""
    hint = "see conf/recipe/ for examples"
    if not isinstance(stages, list) or not stages:
        raise FuserlError("the recipe has no stages", where="`recipe.stages`", hint=hint)
    for number, stage in enumerate(stages):
        name = stage.get("name") if isinstance(stage, dict) else None
        if not isinstance(name, str) or not name or "/" in name:
            raise FuserlError(
                "a stage needs a name that can name a folder", where=f"`recipe.stages[{number}].name`", hint=hint
            )
    return [
        (stage["name"], _texts(stage.get("overrides"), f"recipe.stages[{number}].overrides"))
        for number, stage in enumerate(stages)
    ]


def _texts(value: Any, key: str) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise FuserlError(
            "overrides are a list of texts",
            where=f"`{key}`",
            hint="""such as `'overrides=["max_steps=10","seed=1"]'`""",
        )
    return value
