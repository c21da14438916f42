"""The verb `pipeline`: the stages of a recipe in turn, each starting from the model of the one before."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from fuserl.errors import FuserlError
from fuserl.settings import compose, plain
from fuserl.training.folder import digest
from fuserl.training.run import train
from fuserl.training.summary import say


def pipeline(cfg: DictConfig) -> Path:
    """Run the recipe's stages into `output/NN_name`; finished ones are skipped, a killed one continues.

    Returns:
        The last stage's folder.

    Raises:
        FuserlError: the recipe has no stages, or a stage cannot work; found before the first stage starts.
    """
    stages = list(cfg.recipe.stages or [])
    if not stages:
        raise FuserlError("the recipe has no stages", where="`recipe.stages`", hint="see conf/recipe/ for examples")
    output = Path(cfg.output or Path("runs") / digest("pipeline", plain(cfg)))
    folders = [output / f"{number:02d}_{stage.name}" for number, stage in enumerate(stages, 1)]
    composed = [
        compose("train", [*stage.overrides, *cfg.overrides, f"output='{folder}'", f"seed={cfg.seed}"])
        for stage, folder in zip(stages, folders, strict=True)
    ]
    before: Path | None = None
    for stage, job, folder in zip(stages, composed, folders, strict=True):
        if before is not None:
            job.target.path = str(before / "model")
        say(f"stage {stage.name}")
        train(job)
        before = folder
    return folders[-1]
