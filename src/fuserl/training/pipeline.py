"""The verb `pipeline`: the stages of a recipe in turn, each one a verb with its overrides.

In a recipe `${stage:NAME}` is the folder of an earlier stage. A stage that trains starts from the model of the last one
that did, unless it says where to start with `target.path`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError

from fuserl.curation.select import select
from fuserl.errors import FuserlError
from fuserl.rewards.score import score
from fuserl.settings import compose, plain
from fuserl.sources.generate import generate
from fuserl.terminal import say
from fuserl.training.folder import digest
from fuserl.training.run import train

VERBS: Mapping[str, Callable[[DictConfig], Any]] = {
    "generate": generate,
    "score": score,
    "select": select,
    "train": train,
}
HINT = "see conf/recipe/ for examples"


@dataclass(frozen=True)
class Stage:
    """One verb of a recipe."""

    name: str
    verb: str
    overrides: tuple[str, ...]

    def trains_on(self) -> bool:
        """Whether it starts from the model of the stage that trained before it."""
        return self.verb == "train" and not any(o.lstrip("+").startswith("target.path=") for o in self.overrides)


def pipeline(cfg: DictConfig) -> Path:
    """Run the recipe's stages into `output/NN_name`; finished ones are skipped, a killed one continues.

    Returns:
        The last stage's folder.

    Raises:
        FuserlError: the recipe has no stages, or a stage cannot work; found before the first stage starts.
    """
    model: Path | None = None
    planned = jobs(cfg)
    for stage, job in planned:
        if stage.trains_on() and model is not None:
            job.target.path = str(model)
        say(f"stage {stage.name}")
        VERBS[stage.verb](job)
        if stage.verb == "train":
            model = Path(job.output) / "model"
    return Path(planned[-1][1].output)


def jobs(cfg: DictConfig) -> list[tuple[Stage, DictConfig]]:
    """Every stage with its composed settings, in order.

    Raises:
        FuserlError: the recipe is broken, or a stage's settings are.
    """
    unresolved: Any = OmegaConf.to_container(cfg, resolve=False)
    names = _names(unresolved["recipe"].get("stages"))
    output = Path(cfg.output or Path("runs") / digest("pipeline", unresolved))
    folders = {name: output / f"{number:02d}_{name}" for number, name in enumerate(names, 1)}
    OmegaConf.register_new_resolver("stage", lambda name: str(_folder(name, folders)), replace=True)
    try:
        stages = _stages(plain(cfg))
    except InterpolationResolutionError as error:
        raise FuserlError(
            str(error.__cause__ or error).splitlines()[0],
            where="`recipe.stages`",
            hint=f"stages are {', '.join(folders)}",
        ) from error
    return [(stage, _composed(stage, folders[stage.name], cfg.seed)) for stage in stages]


def _names(stages: Any) -> list[str]:
    """Of the stages, each of which can name a folder."""
    if not isinstance(stages, list) or not stages:
        raise FuserlError("the recipe has no stages", where="`recipe.stages`", hint=HINT)
    names: list[str] = []
    for number, stage in enumerate(stages):
        name = stage.get("name") if isinstance(stage, dict) else None
        if not isinstance(name, str) or not name or "/" in name or name in names:
            raise FuserlError(
                "a stage needs a name that can name a folder, and that no other stage has",
                where=f"`recipe.stages[{number}].name`",
                hint=HINT,
            )
        names.append(name)
    return names


def _folder(name: str, folders: Mapping[str, Path]) -> Path:
    if name not in folders:
        raise KeyError(f"the recipe has no stage `{name}`")
    return folders[name]


def _stages(settings: Mapping[str, Any]) -> list[Stage]:
    """The stages with the overrides that the recipe and the command line give them."""
    given, rows = settings["overrides"], settings["recipe"]["stages"]
    by_stage = given if isinstance(given, dict) else {}
    everywhere = () if isinstance(given, dict) else _texts(given, "overrides")
    if unknown := sorted(by_stage.keys() - {row["name"] for row in rows}):
        raise FuserlError(
            f"the recipe has no stage `{unknown[0]}`",
            where="`overrides`",
            hint=f"it has {', '.join(row['name'] for row in rows)}",
        )
    stages = []
    for number, row in enumerate(rows):
        verb = row.get("verb", "train")
        if verb not in VERBS:
            raise FuserlError(
                f"`{verb}` is no verb of a stage",
                where=f"`recipe.stages[{number}].verb`",
                hint=f"one of {', '.join(VERBS)}",
            )
        own = _texts(row.get("overrides"), f"recipe.stages[{number}].overrides")
        more = _texts(by_stage.get(row["name"]), f"overrides.{row['name']}")
        stages.append(Stage(row["name"], verb, (*own, *everywhere, *more)))
    return stages


def _composed(stage: Stage, folder: Path, seed: int) -> DictConfig:
    job = compose(stage.verb, list(stage.overrides))
    job.output = str(folder)
    if "seed" in job:
        job.seed = seed
    return job


def _texts(value: Any, key: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise FuserlError(
            "overrides are a list of texts",
            where=f"`{key}`",
            hint="""such as `'overrides=["max_steps=10","seed=1"]'`, or by stage `'overrides={sft: ["max_steps=10"]}'`""",
        )
    return tuple(value)
