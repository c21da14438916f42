"""Reward models on many GPUs: classifiers in actors of Ray, as `engine=ray` has engines of sources."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

from fuserl.errors import FuserlError
from fuserl.rewards.classifier import Classifier
from fuserl.sources.protocol import Failure
from fuserl.sources.ray_actors import Actors


class Row(NamedTuple):
    """Token ids of a conversation."""

    key: str  # its place among those that were asked for together
    ids: Sequence[int]


class Number(NamedTuple):
    """What a model says of a row."""

    key: str  # of the row
    value: float


class Numbers:
    """A classifier as actors want it: rows in, numbers with the rows' keys out."""

    def __init__(self, make: Callable[[], Classifier]) -> None:
        self.classifier = make()

    def identity(self) -> Mapping[str, Any]:
        """The classifier's, on the machine where it works: another may have other devices, and so another dtype."""
        return dict(self.classifier.identity())

    def answer(self, rows: Sequence[Row]) -> Iterator[Number]:
        """A number each, in any order."""
        for place, value in self.classifier.numbers([row.ids for row in rows]):
            yield Number(rows[place].key, value)

    def close(self) -> None:
        """Give back the device's memory."""
        self.classifier.close()


class RayForwards:
    """A `Classifier` of many: each actor holds the whole model and gets blocks of conversations.

    Args:
        classifier: what each actor runs, called with the checkpoint and those of `settings` that are not the actors'.
        actors, gpus, cpus, block, restarts, address: see `ray_actors.Actors`; a block is a number of conversations.

    Raises:
        FuserlError: Ray is not installed, cannot be reached, or has not the GPUs asked for; the model cannot be made.
    """

    def __init__(
        self,
        path: str,
        *,
        classifier: Callable[..., Classifier],
        actors: int,
        gpus: float,
        cpus: float,
        block: int,
        restarts: int,
        address: str | None,
        **settings: Any,
    ) -> None:
        self.open = partial(
            Actors, partial(Numbers, partial(classifier, path, **settings)), where="classifier", actors=actors, gpus=gpus,
            cpus=cpus, block=block, restarts=restarts, address=address,
        )  # fmt: skip

    @cached_property
    def actors(self) -> Actors:
        """Started when something is asked for."""
        return self.open()

    def identity(self) -> Mapping[str, Any]:
        """The actors' own, so numbers do not depend on who drives them; where they run is not of it."""
        return self.actors.tell("identity")

    def numbers(self, rows: Sequence[Sequence[int]]) -> Iterator[tuple[int, float]]:
        """See `Classifier`; the longest go out first, in blocks of like lengths.

        Raises:
            FuserlError: a model cannot be loaded or does not fit, actors die again and again, or one said nothing.
        """
        places = sorted(range(len(rows)), key=lambda place: -len(rows[place]))
        for found in self.actors.results(Row(str(place), rows[place]) for place in places):
            if isinstance(found, Failure):
                raise FuserlError(
                    "a reward model said nothing of a conversation", where="`classifier=ray`", hint="run it again"
                )
            yield int(found.key), found.value

    def close(self) -> None:
        """End the actors."""
        if "actors" in vars(self):
            self.actors.close()
            del self.actors
