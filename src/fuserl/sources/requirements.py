"""What engines need before they start: packages that only some use, and settings that make sense."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from fuserl.errors import FuserlError


def needed(package: str, engine: str) -> ModuleType:
    """The package, whose name is that of our extra.

    Raises:
        FuserlError: it is not installed, or cannot be imported.
    """
    try:
        return import_module(package)
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == package
        what = f"`{package}` is not installed" if missing else f"`{package}` cannot be imported ({error})"
        hint = f"`pip install 'fuserl[{package}]'`, or another engine: `engine=transformers` needs nothing more"
        raise FuserlError(what, where=f"`engine={engine}`", hint=hint) from error


def require_counts(**settings: object) -> None:
    """Settings of an engine that count something.

    Raises:
        FuserlError: one is no whole number, or less than 1.
    """
    for name, value in settings.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise FuserlError(
                f"`{name}` is {value!r}", where=f"`engine.{name}`", hint="it must be a whole number, 1 or more"
            )
