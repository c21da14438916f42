"""The merge method of a configuration, mistakes told in our form."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

from fuserl.errors import FuserlError


def configured(node: Mapping[str, Any]) -> Any:
    """What `merge.method` describes.

    Raises:
        FuserlError: it names nothing that exists, or with settings that it does not take.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    for path in _named(node):
        _require_there(path)
    try:
        return instantiate(dict(node), _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, FuserlError):
            raise error.__cause__ from error
        raise FuserlError(
            f"the method cannot be made: {str(error.__cause__ or error).splitlines()[0]}",
            where=f"`merge.method`, target `{node.get('_target_')}`",
            hint="check the target's name and the settings beside it",
        ) from error


def _named(node: Any) -> list[str]:
    """Dotted paths of all that a node refers to."""
    if not isinstance(node, Mapping):
        return []
    own = node.get("path") if node.get("_target_") == "hydra.utils.get_object" else node.get("_target_")
    return [*([str(own)] if own else []), *(path for value in node.values() for path in _named(value))]


def _require_there(path: str) -> None:
    """Raises: FuserlError: a module has nothing of that name, with the nearest that it has."""
    module, _, name = path.rpartition(".")
    try:
        there = import_module(module)
    except (ImportError, ValueError):
        return  # Hydra says more
    if not hasattr(there, name):
        kinds = sorted(_own(there))
        near = difflib.get_close_matches(name, kinds, n=1)
        raise FuserlError(
            f"there is no `{name}`",
            where=f"`merge`, in `{module}`",
            hint=f"did you mean `{near[0]}`?" if near else f"it has {', '.join(kinds)}",
        )


def _own(module: ModuleType) -> list[str]:
    """Lower-case objects of the module that are no functions or modules: what a setting can name."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and name.islower() and isinstance(value, tuple)
    ]
