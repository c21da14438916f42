"""The verb `pipeline`: the stages of a recipe in turn, each one a verb with its overrides.

In a recipe `${stage:NAME}` is the folder of an earlier stage. A stage that trains starts from the model of the last one
that trained or merged, unless it says where to start with `target.path`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError

from fuserl.curation.select import select
from fuserl.distributions.align import align
from fuserl.errors import FuserlError
from fuserl.evaluation.compare import compare
from fuserl.evaluation.evaluate import evaluate
from fuserl.evaluation.story import write_story
from fuserl.merging.merge import merge
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
    "align": align,
    "train": train,
    "merge": merge,
    "evaluate": evaluate,
    "compare": compare,
}
MODELS = {"train": "model", "merge": "."}  # verbs that write a model, and where in their folder it lies
HINT = "see conf/recipe/ for examples"


@dataclass(frozen=True)
class Stage:
    """One verb of a recipe."""

    name: str
    verb: str
    overrides: tuple[str, ...]

    def trains_on(self) -> bool:
        """Whether it starts from the model that a stage before it has made."""
        return self.verb == "train" and not any(o.lstrip("+").startswith("target.path=") for o in self.overrides)


def pipeline(cfg: DictConfig, shared: Path | None = None) -> Path:
    """Run the recipe's stages into `output/NN_name`; finished ones are skipped, a killed one continues; then its report.

    Args:
        shared: folder of a sweep, where stages are named by content and equal ones are run once.

    Returns:
        The last stage's folder.

    Raises:
        FuserlError: the recipe has no stages, or a stage cannot work; found before the first stage starts.
    """
    planned = jobs(cfg, shared)
    for stage, job in planned:
        say(f"stage {stage.name}")
        VERBS[stage.verb](job)
    if shared is None and (page := write_story(Path(planned[-1][1].output).parent)):
        say(f"report: {page}")
    return Path(planned[-1][1].output)


def jobs(cfg: DictConfig, shared: Path | None = None) -> list[tuple[Stage, DictConfig]]:
    """Every stage with its composed settings, in order.

    Raises:
        FuserlError: the recipe is broken, or a stage's settings are.
    """
    unresolved: Any = OmegaConf.to_container(cfg, resolve=False)
    names = _names(unresolved["recipe"].get("stages"))
    output = Path(cfg.output or Path("runs") / digest("pipeline", unresolved))
    _check_overrides(unresolved["overrides"], names)
    folders: dict[str, Path] = {}
    OmegaConf.register_new_resolver("stage", lambda name: str(_folder(name, folders, names)), replace=True)
    planned: list[tuple[Stage, DictConfig]] = []
    model: Path | None = None
    for number, name in enumerate(names):
        stage = _stage(cfg, number, name)
        job = compose(stage.verb, list(stage.overrides))
        if "seed" in job:
            job.seed = cfg.seed
        if stage.trains_on() and model is not None:
            job.target.path = str(model)
        own = _by_content(stage, job, shared) if shared else f"{number + 1:02d}_{name}"
        folders[name] = (shared or output) / own
        job.output = str(folders[name])
        if stage.verb in MODELS:
            model = folders[name] / MODELS[stage.verb]
        planned.append((stage, job))
    return planned


def _by_content(stage: Stage, job: DictConfig, shared: Path) -> str:
    """Named by what decides its result: by the names of the stages it reads, not by where their folder lies."""
    inside = f"{shared}/"

    def placeless(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: placeless(one) for key, one in value.items()}
        return value.replace(inside, "") if isinstance(value, str) else value

    return digest(stage.verb, placeless(plain(job)))


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


def _folder(name: str, folders: Mapping[str, Path], names: Sequence[str]) -> Path:
    if name in folders:
        return folders[name]
    raise KeyError(f"the stage `{name}` comes later" if name in names else f"the recipe has no stage `{name}`")


def _check_overrides(given: Any, names: Sequence[str]) -> None:
    """`overrides` are texts for every stage, or texts by the name of a stage."""
    if not isinstance(given, dict):
        _texts(given, "overrides")
        return
    if unknown := sorted(given.keys() - set(names)):
        raise FuserlError(
            f"the recipe has no stage `{unknown[0]}`", where="`overrides`", hint=f"it has {', '.join(names)}"
        )


def _stage(cfg: DictConfig, number: int, name: str) -> Stage:
    """With the overrides that the recipe and the command line give it."""
    try:
        row: Any = OmegaConf.to_container(cfg.recipe.stages[number], resolve=True)
        given: Any = OmegaConf.to_container(cfg.overrides, resolve=True) if OmegaConf.is_config(cfg.overrides) else None
    except InterpolationResolutionError as error:
        raise FuserlError(
            str(error.__cause__ or error).splitlines()[0],
            where="`recipe.stages`",
            hint=f"stages are {', '.join(row['name'] for row in OmegaConf.to_container(cfg.recipe.stages, resolve=False))}",  # type: ignore[union-attr]
        ) from error
    verb = row.get("verb", "train")
    if verb not in VERBS:
        raise FuserlError(
            f"`{verb}` is no verb of a stage",
            where=f"`recipe.stages[{number}].verb`",
            hint=f"one of {', '.join(VERBS)}",
        )
    own = _texts(row.get("overrides"), f"recipe.stages[{number}].overrides")
    if isinstance(given, dict):
        return Stage(name, verb, (*own, *_texts(given.get(name), f"overrides.{name}")))
    return Stage(name, verb, (*own, *_texts(given, "overrides")))


def _texts(value: Any, key: str) -> tuple[str, ...]:
    """A list of overrides; lists inside it, such as interpolations bring, are laid flat."""
    if value is None:
        return ()
    flat = list(_flat(value))
    if not isinstance(value, list) or not all(isinstance(item, str) for item in flat):
        raise FuserlError(
            "overrides are a list of texts",
            where=f"`{key}`",
            hint="""such as `'overrides=["max_steps=10","seed=1"]'`, or by stage `'overrides={sft: ["max_steps=10"]}'`""",
        )
    return tuple(flat)


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for item in value:
            yield from _flat(item)
    else:
        yield value
