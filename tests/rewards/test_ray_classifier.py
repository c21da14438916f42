"""A reward model in actors says what one in this process says, each answer once, also where an actor is killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny_rewards

from fuserl.errors import FuserlError
from fuserl.rewards.classifier_ray import RayForwards

ray = pytest.importorskip("ray")
TEXTS = ["", "4", "four", "The answer is 4.", "I do not know", "5", "2 + 2 = 4, as 1 + 1 = 2", "x" * 60]
ON_RAY = ("classifier@.classifier=ray", *(f"rewards.reward_model.classifier.{one}" for one in ("gpus=0", "block=2")))


class Lengths:
    """Says how long a row is; who was asked what stands in a folder. One process dies at a row of `deadly` tokens."""

    def __init__(self, path: str, *, deadly: int | None = None, silent: bool = False) -> None:
        self.folder, self.deadly, self.silent = Path(path), deadly, silent

    def identity(self) -> Mapping[str, Any]:
        """Where it stands."""
        return {"process": os.getpid()}

    def numbers(self, rows: Sequence[Sequence[int]]) -> Iterator[tuple[int, float]]:
        """Slowly, where it shall die: what it has said is sent by then."""
        for place, row in enumerate(rows):
            if len(row) == self.deadly and not (self.folder / "died").exists():
                (self.folder / "died").touch()
                time.sleep(0.8)
                os.kill(os.getpid(), signal.SIGKILL)
            with (self.folder / "asked").open("a") as file:
                file.write(f"{len(row)}\n")
            if self.deadly is not None:
                time.sleep(0.15)
            if not self.silent:
                yield place, float(len(row))

    def close(self) -> None:
        """Nothing is held."""


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def lengths(folder: Path, **settings: Any) -> RayForwards:
    actors = {"actors": 1, "gpus": 0, "cpus": 1, "block": 6, "restarts": 1, "address": None}
    return RayForwards(str(folder), classifier=partial(Lengths, **settings), **actors)


def test_actors_score_as_one_process_does(tmp_path):
    folder = tiny_rewards.save("llama", tmp_path)
    alone, many = tiny_rewards.load(folder), tiny_rewards.load(folder, *ON_RAY)
    assert many.identity() == alone.identity(), "who scores is no part of a score's name"
    wanted = {score.key: score.reward for score in alone.score(tiny_rewards.items(TEXTS))}
    for _ in range(2):  # a second window finds the actors as they are
        found = list(many.score(tiny_rewards.items(TEXTS)))
        assert len(found) == len(TEXTS)
        assert {score.key: score.reward for score in found} == pytest.approx(wanted, abs=1e-5)
    many.close()


def test_a_killed_actor_is_replaced_and_what_it_said_is_not_asked_again(tmp_path):
    rows = [[0] * n for n in range(1, 13)]
    classifier = lengths(tmp_path, deadly=8)
    found = dict(classifier.numbers(rows))
    classifier.close()
    assert found == {place: len(row) for place, row in enumerate(rows)}
    asked = [int(line) for line in (tmp_path / "asked").read_text().split()]
    assert (tmp_path / "died").exists()
    assert asked.count(12) == asked.count(11) == 1, "sent before the actor died"
    assert set(asked) == set(range(1, 13))


def test_a_conversation_without_a_number_is_an_error(tmp_path):
    classifier = lengths(tmp_path, silent=True)
    with pytest.raises(FuserlError, match="said nothing of a conversation"):
        list(classifier.numbers([[0]]))
    classifier.close()


def test_who_asks_nothing_starts_nothing(tmp_path):
    classifier = lengths(tmp_path)
    classifier.close()
    assert list(lengths(tmp_path).numbers([])) == []
    with pytest.raises(FuserlError, match="the actors want 500 GPUs") as caught:
        RayForwards(
            str(tmp_path), classifier=Lengths, actors=2, gpus=250, cpus=1, block=1, restarts=0, address=None
        ).identity()
    assert "classifier.gpus" in caught.value.where
