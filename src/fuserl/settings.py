"""Composing `conf/`: a verb's settings from its YAML files and the command line, mistakes told in our form."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

import fuserl
from fuserl.errors import FuserlError

LONGEST_NAME = 255  # bytes of a file's or folder's name on every file system that we know
# Settings of a training run that may change between a kill and its resume: they do not change what is computed.
FREE = (
    "output",
    "resume",
    "metric",
    "logger",
    "nonfinite",
    "checkpoint.every",
    "checkpoint.keep",
    "checkpoint.asynchronous",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.nodes",
    "trainer.strategy",
    "trainer.progress_bar",
    "trainer.timeout",
    "cache",
)


def config_folder() -> Path:
    """`conf/`: inside the installed package, or at the root of a checkout."""
    inside = Path(fuserl.__file__).parent / "conf"
    return inside if inside.is_dir() else Path(fuserl.__file__).parents[2] / "conf"


def register_resolvers() -> None:
    """`${package:path}` is a path inside the installed package."""
    OmegaConf.register_new_resolver("package", lambda path: str(Path(fuserl.__file__).parent / path), replace=True)


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The resolved configuration as plain data."""
    return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of a nested mapping with its dotted key; lists are leaves."""
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node


def decisive(config: Mapping[str, Any], free: Collection[str]) -> dict[str, Any]:
    """`dotted.key -> value` of everything that decides a result: all but the settings and groups named in `free`."""
    flat = dict(leaves(config))
    return {key: value for key, value in flat.items() if not any(key == f or key.startswith(f + ".") for f in free)}


def changes(before: Mapping[str, Any], now: Mapping[str, Any], free: Collection[str]) -> str:
    """The first five decisive settings that differ, for a message; empty where none does.

    >>> changes({"seed": 0, "output": "a"}, {"seed": 1, "output": "b"}, ["output"])
    'seed: 0 -> 1'
    """
    old, new = decisive(before, free), decisive(now, free)
    changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    return ", ".join(f"{key}: {old.get(key)!r} -> {new.get(key)!r}" for key in changed[:5])


def digest(verb: str, config: Mapping[str, Any], free: Collection[str]) -> str:
    """Same verb and decisive settings, same name; anything else, another.

    >>> one, other = {"seed": 0, "output": "a"}, {"seed": 0, "output": "b"}
    >>> digest("train", one, ["output"]) == digest("train", other, ["output"])
    True
    """
    content = json.dumps([verb, decisive(config, free)], sort_keys=True, ensure_ascii=False, default=str)
    return f"{verb}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"


def compose(verb: str, overrides: list[str]):
    """The configuration of a verb, without running it.

    Raises:
        FuserlError: a setting or an option of a group does not exist, with the nearest one that does.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    register_resolvers()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(config_folder())):
            try:
                cfg = hydra_compose(verb, overrides)
            except (HydraException, OmegaConfBaseException, ValueError, TypeError, AttributeError) as error:
                raise _config_error(error, verb, overrides, hydra_compose) from error
    finally:
        GlobalHydra.instance().clear()
    _require_complete(cfg)
    return cfg


def check_values(verb: str, overrides: list[str], cfg: DictConfig) -> None:
    """Every value that was given is of the kind of the one in `conf/` that it replaces, and no name too long for any file.

    A number may be null (each verb says whether that means something) or `auto`, and `weights` one number or several. What is
    null or text in `conf/` may become anything here.

    Raises:
        FuserlError: text, a list, a mapping or a truth value where a number belongs, a number where a truth value does,
            something else where a list does; NaN; a text that no path can hold.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    groups = [one for one in overrides if _is_group(one.lstrip("+~").split("=")[0])]
    if len(groups) == len(overrides):
        return
    with initialize_config_dir(version_base="1.3", config_dir=str(config_folder())):
        composed = hydra_compose(verb, groups)
    usual = dict(leaves(OmegaConf.to_container(composed, resolve=False)))
    for key, value in leaves(OmegaConf.to_container(cfg, resolve=False)):
        before = usual.get(key)
        if isinstance(before, str) and before.startswith("${") and value != before:
            before = OmegaConf.select(composed, key, throw_on_resolution_failure=False)
        wanted = "" if value == before else _impossible(value) or _misfit(key, before, value)
        if wanted:
            known = "" if before in (None, "???") else f"in `conf/` it is {str(before)[:80]}; "
            raise FuserlError(
                f"`{key}` must be {wanted}, not {str(value)[:80]!r}",
                where=f"`fuserl {verb}`",
                hint=f"{known}`fuserl {verb} --help` lists the settings",
            )


def _is_group(key: str) -> bool:
    return key.startswith("hydra/") or (config_folder() / key.split("@")[0]).is_dir()


def _impossible(value: Any) -> str:
    """What should have stood there, where no setting can be such; empty otherwise."""
    if isinstance(value, list):
        return next(filter(None, map(_impossible, value)), "")
    if isinstance(value, float) and math.isnan(value):
        return "a number"
    if not isinstance(value, str):
        return ""
    if "\0" in value:
        return "a text without NUL"
    one_word = not re.search(r"[\s{]", value)  # no prompt and no template
    long = one_word and max(len(os.fsencode(part)) for part in value.split("/")) > LONGEST_NAME
    return f"a name of at most {LONGEST_NAME} bytes" if long else ""


def _misfit(key: str, usual: Any, value: Any) -> str:
    """What should have stood there; empty where it fits."""
    if isinstance(value, str) and ("${" in value or value == "auto"):
        return ""
    if isinstance(usual, bool):
        return "" if isinstance(value, bool) or value is None else "true or false"
    if isinstance(usual, int | float):
        fits = value is None or (isinstance(value, int | float) and not isinstance(value, bool))
        return "" if fits or (isinstance(value, list) and key.endswith("weights")) else "a number"
    if isinstance(usual, list):
        return "" if isinstance(value, list) or value is None else "a list, as in [a,b]"
    return (
        "a text" if isinstance(usual, str) and "${" not in usual and usual != "???" and isinstance(value, list) else ""
    )


def _require_complete(cfg) -> None:
    missing = sorted(key for key, value in leaves(OmegaConf.to_container(cfg, resolve=False)) if value == "???")
    if missing:
        raise FuserlError(
            f"{', '.join(f'`{key}`' for key in missing)} must be given", hint=f"add `{missing[0]}=...` to the command"
        )


def _config_error(error: Exception, verb: str, overrides: list[str], hydra_compose: Callable) -> FuserlError:
    """Hydra's complaint in our form, with the nearest existing key."""
    text = " ".join(" ".join(str(part) for part in (error, error.__cause__) if part).split())
    key = re.search(r"Key '([^']+)' is not in struct", text) or re.search(r"Could not override '([^']+)'", text)
    if key:
        named = [o.split("=")[0].lstrip("+~") for o in overrides]
        whole = re.search(r"full_key: (\S+)", text)  # where several overrides end alike
        fitting = [name for name in named if key[1] in name.split(".")] or [name for name in named if key[1] in name]
        wanted = next((name for name in named if whole and name == whole[1]), next(iter(fitting), key[1]))
        groups = [o for o in overrides if "/" not in o and (config_folder() / o.split("=")[0]).is_dir()]
        try:
            known = [k for k, _ in leaves(OmegaConf.to_container(hydra_compose(verb, groups)))]
        except Exception:  # the groups themselves may be wrong; then there is no list to choose from
            known = []
        near = difflib.get_close_matches(wanted, known, n=1, cutoff=0.5)
        hint = f"did you mean `{near[0]}`?" if near else f"`fuserl {verb} --help` lists the settings"
        if near and wanted.startswith(f"{near[0]}."):  # one more of sources, of columns, ...
            hint = f"`+{wanted}=...` adds it"
        return FuserlError(f"there is no setting `{wanted}`", where=f"`fuserl {verb}`", hint=hint)
    return FuserlError(
        text, where=f"settings of `fuserl {verb}`", hint=f"`fuserl {verb} --help` lists settings and groups"
    )


def require_whole(least: int, **named: Any) -> None:
    """Settings that are whole numbers from `least` on, or null. `__` in a name stands for a dot.

    Raises:
        FuserlError: one is not.
    """
    for name, value in named.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            key = name.replace("__", ".")
            raise FuserlError(
                f"`{key}` is {str(value)[:80]!r}",
                where=f"`{key}`",
                hint=f"it must be a whole number from {least} on, or null",
            )
