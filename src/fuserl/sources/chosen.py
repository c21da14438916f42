"""Which sources a command asks, and on what engine each: from `conf/generate.yaml` and the command line."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from fuserl.errors import FuserlError
from fuserl.sources.protocol import Engine
from fuserl.sources.source import Source, source_of


@dataclass(frozen=True)
class Chosen:
    """A source with the engine that will answer for it, not started yet."""

    source: Source
    start: Callable[[Source], Engine]


def chosen_sources(settings: Mapping[str, Any]) -> list[Chosen]:
    """The sources of a resolved configuration.

    Raises:
        FuserlError: there is none, or a setting of a source or an engine is wrong; no engine has been started.
    """
    sources = settings["sources"]
    if not sources:
        raise FuserlError(
            "no source is chosen",
            where="`source`",
            hint="give `source=NAME` of conf/source/, or `source=own sources.own.path=FOLDER_OR_HUB_NAME`",
        )
    return [_chosen(key, given, settings) for key, given in sources.items()]


def _chosen(key: str, given: Any, settings: Mapping[str, Any]) -> Chosen:
    if not isinstance(given, Mapping):
        raise FuserlError(
            f"a source has settings, not {given!r}", where=f"`sources.{key}`", hint=f"give `+sources.{key}.path=FOLDER`"
        )
    unsaid = {name: value for name, value in settings["unsaid"].items() if name not in ("name", "path")}
    said = {**unsaid, **given, "sampling": {**unsaid["sampling"], **(given.get("sampling") or {})}}
    if settings["samples"] is not None:
        said["samples"] = settings["samples"]
    if settings["max_tokens"] is not None:
        said["sampling"]["max_tokens"] = settings["max_tokens"]
    name, own_engine = said.pop("name", None) or key, said.pop("engine", None)
    return Chosen(source_of(str(name), said), engine_of(settings["engine"], own_engine, f"sources.{key}.engine"))


def engine_of(common: Mapping[str, Any], own: Any, where: str) -> Callable[[Source], Engine]:
    """The engine's class with its settings: its own where they name a class, else laid over the common ones.

    Raises:
        FuserlError: it does not take these settings.
    """
    if own is None:
        node, where = common, "engine"
    else:
        whole = isinstance(own, Mapping) and "_target_" in own
        node = own if whole else OmegaConf.to_container(OmegaConf.merge(common, own))
    try:
        start = instantiate(node, _convert_="all")
        inspect.signature(start).bind(None)
    except (InstantiationException, TypeError, ValueError) as error:
        if isinstance(error.__cause__, FuserlError):
            raise error.__cause__ from None
        why = str(error.__cause__ or error).splitlines()[0]
        raise FuserlError(
            f"the engine's settings are not understood ({why})",
            where=f"`{where}`",
            hint="conf/engine/ shows what each engine takes",
        ) from error
    return start
