"""The type checker of the tests: beartype, with an int welcome where a float is asked for (PEP 484's numeric tower).

jaxtyping's wrapper binds every call's arguments twice over to compare the axes of arrays. A function without arrays has
no axes: beartype alone checks the same annotations in a tenth of the time, and most calls of a run are of such functions.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any, get_args

import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping import _decorator as theirs

typechecker = beartype(conf=BeartypeConf(is_pep484_tower=True, violation_type=jaxtyping.TypeCheckError))
_of_arrays = theirs.jaxtyped


def jaxtyped(function: Any = theirs._sentinel, *, typechecker: Callable | object | None = theirs._sentinel) -> Any:
    """jaxtyping's decorator, where there is something for it to do."""
    if not _is_plain(function) or typechecker in (None, theirs._sentinel):
        return _of_arrays(function, typechecker=typechecker)
    hints = {
        name: theirs._destring_annotation(hint, function.__globals__) for name, hint in function.__annotations__.items()
    }
    if any(_names_an_array(hint) for hint in hints.values()):
        return _of_arrays(function, typechecker=typechecker)
    function.__annotations__ = hints
    return typechecker(function)


def only_where_there_are_arrays() -> None:
    """Use it wherever jaxtyping's import hook decorates."""
    theirs.jaxtyped = jaxtyping.jaxtyped = jaxtyped


def _is_plain(function: Any) -> bool:
    """Not a class, a property, or something that runs later."""
    runs_later = inspect.isgeneratorfunction, inspect.iscoroutinefunction, inspect.isasyncgenfunction
    return isinstance(function, FunctionType) and not any(later(function) for later in runs_later)


def _names_an_array(hint: Any) -> bool:
    if isinstance(hint, list):  # the arguments of a Callable
        return any(map(_names_an_array, hint))
    return (inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray)) or any(
        map(_names_an_array, get_args(hint))
    )
