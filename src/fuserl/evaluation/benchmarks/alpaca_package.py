"""The package `alpaca-eval`: imported when it is needed, and kept from changing anything around it."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module, metadata
from typing import Any

from fuserl.errors import FuserlError

INSTALL = "`pip install 'fuserl[eval]'`"


def alpaca(module: str) -> Any:
    """A module of the package, as `metrics.glm_winrate`.

    Raises:
        FuserlError: the package is not installed, or cannot be imported.
    """
    try:
        with quiet(), _no_dotenv():
            return import_module(f"alpaca_eval.{module}")
    except (ImportError, OSError, KeyError) as error:  # it also asks for the user's name
        missing = isinstance(error, ModuleNotFoundError) and error.name == "alpaca_eval"
        what = "`alpaca-eval` is not installed" if missing else f"`alpaca-eval` cannot be imported ({error})"
        old = isinstance(error, ModuleNotFoundError) and error.name == "pkg_resources"
        hint = "`pip install 'setuptools<81'`: newer ones lack `pkg_resources`, which it needs" if old else INSTALL
        raise FuserlError(what, where="`benchmark=alpaca_eval`", hint=hint) from error


def version() -> str:
    """Of the package that is installed."""
    return metadata.version("alpaca-eval")


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings, and no lines of the root logger, which the package writes to; its level and handlers stay."""
    root, before = logging.getLogger(), logging.root.manager.disable
    level, silent = root.level, logging.NullHandler()  # with none, its first line would add one to the terminal
    root.addHandler(silent)
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        root.removeHandler(silent)
        root.setLevel(level)


@contextmanager
def _no_dotenv() -> Iterator[None]:
    """The package would load the next `.env` file above it into the environment."""
    name = "PYTHON_DOTENV_DISABLED"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
