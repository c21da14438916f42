"""The type checker of the tests: beartype, with an int welcome where a float is asked for (PEP 484's numeric tower).

jaxtyping's wrapper binds every call's arguments twice over to compare the axes of arrays. A function without arrays has
no axes: beartype alone checks the same annotations in a tenth of the time, and most calls of a run are of such functions.
"""

from __future__ import annotations

import inspect
from types import FunctionType, SimpleNamespace
from typing import Any, get_args, get_type_hints

import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping import _decorator as theirs

typechecker = beartype(conf=BeartypeConf(is_pep484_tower=True, violation_type=jaxtyping.TypeCheckError))
_of_arrays = theirs.jaxtyped


def jaxtyped(*function: Any, **settings: Any) -> Any:
    """jaxtyping's decorator, where there is something for it to do."""
    typechecker = settings.get("typechecker")
    if not typechecker or not function or not _is_plain(function[0]):
        return _of_arrays(*function, **settings)
    (plain,) = function
    hints = {name: _resolved(hint, plain) for name, hint in plain.__annotations__.items()}
    if any(_names_an_array(hint) for hint in hints.values()):
        return _of_arrays(plain, **settings)
    plain.__annotations__ = hints
    return typechecker(plain)


def only_where_there_are_arrays() -> None:
    """Use it wherever jaxtyping's import hook decorates."""
    theirs.jaxtyped = jaxtyping.jaxtyped = jaxtyped


def _is_plain(function: Any) -> bool:
    """Not a class, a property, or something that runs later."""
    runs_later = inspect.isgeneratorfunction, inspect.iscoroutinefunction, inspect.isasyncgenfunction
    return isinstance(function, FunctionType) and not any(later(function) for later in runs_later)


def _resolved(hint: Any, function: FunctionType) -> Any:
    """What a written annotation means; anything, where that is not known yet, as for jaxtyping."""
    try:
        found = get_type_hints(SimpleNamespace(__annotations__={"it": hint}), function.__globals__, include_extras=True)
    except Exception:
        return Any
    return found["it"]


def _names_an_array(hint: Any) -> bool:
    if isinstance(hint, list):  # the arguments of a Callable
        return any(map(_names_an_array, hint))
    return (inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray)) or any(
        map(_names_an_array, get_args(hint))
    )
