"""A scorer of one's own: any function `score(prompt, answer, reference) -> float` that can be imported."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from hydra.utils import get_method

from fuserl.errors import FuserlError
from fuserl.rewards.protocol import Item, Score


class FunctionScorer:
    """Grades by calling a function with the last user turn, the answer and the group's reference.

    Args:
        name: under which the scores are kept.
        path: dotted path of the function, as `my_package.my_module.score`.
        right_at: a score from which an answer is `right`, and `wrong` below; None: no verdict.

    Raises:
        FuserlError: there is no such function.
    """

    def __init__(self, *, path: str, name: str = "function", right_at: float | None = None) -> None:
        self.name, self.path, self.right_at = name, path, right_at
        try:
            self.function = get_method(path)
        except (ImportError, ValueError, AttributeError) as error:
            raise FuserlError(
                f"the function cannot be imported ({str(error).splitlines()[0]})",
                where=f"`rewards.{name}.path={path}`",
                hint="give the dotted path of a function in a module that Python finds (PYTHONPATH)",
            ) from error

    def identity(self) -> Mapping[str, Any]:
        """The function by its path and by the text of its module: an edited function scores anew."""
        try:
            code = inspect.getsource(inspect.getmodule(self.function) or self.function)
        except (OSError, TypeError):
            code = ""
        digest = hashlib.sha256(code.encode()).hexdigest()[:16]
        return {"function": self.path, "module": digest, "right_at": self.right_at}

    def context(self, item: Item) -> None:
        """Prompt, reference and response are all it sees."""

    def score(self, items: Iterable[Item]) -> Iterator[Score]:
        """One call an item.

        Raises:
            FuserlError: the function raises, or returns no finite number.
        """
        for item in items:
            reward = self._called(item)
            verdict = None if self.right_at is None else "right" if reward >= self.right_at else "wrong"
            yield Score(item.key, reward, verdict)

    def close(self) -> None:
        """There is nothing to give back."""

    def _called(self, item: Item) -> float:
        try:
            reward = float(self.function(item.group.prompt[-1].content, item.response.text, item.group.reference))
        except FuserlError:
            raise
        except Exception as error:  # somebody's function may raise anything
            raise FuserlError(
                f"the function raised {type(error).__name__}: {error}",
                where=f"`{self.path}`, prompt `{item.group.id}`, source `{item.response.source}`",
                hint="mend the function and run the same command again; what was scored before is kept",
            ) from error
        if not math.isfinite(reward):
            raise FuserlError(
                f"the function returned {reward}",
                where=f"`{self.path}`, prompt `{item.group.id}`, source `{item.response.source}`",
                hint="it must return a finite number",
            )
        return reward
