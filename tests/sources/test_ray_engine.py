"""Actors share a source's requests: the same results as one engine, each once, also where actors die."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import kit
import pytest
import ray_engines
from hydra.utils import instantiate

from fuserl.errors import FuserlError
from fuserl.records.schema import Message
from fuserl.settings import compose, plain
from fuserl.sources.protocol import Answer, Failure, Request, Sampling
from fuserl.sources.ray_actors import RayEngine
from fuserl.sources.source import Source
from fuserl.sources.transformers import TransformersEngine

ray = pytest.importorskip("ray")
TARGET = kit.ROOT / "src/fuserl/miniature/target"
SOURCE = Source("s", str(TARGET), Sampling(max_tokens=12), dtype="float32")


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def started(engine, **settings) -> RayEngine:
    defaults = {"actors": 2, "gpus": 0, "cpus": 1, "block": 10, "restarts": 2, "address": None}
    return RayEngine(SOURCE, engine=engine, **defaults | settings)


def echoing(folder: Path, **settings):
    return partial(ray_engines.Echo, folder=str(folder), **settings)


def requests(num: int, *others: str) -> list[Request]:
    keys = [*(f"k{n}" for n in range(num)), *others]
    return [
        Request(key, (Message("user", f"sort {'dbca'[: n % 4 + 1]}"),), SOURCE.sampling, n)
        for n, key in enumerate(keys)
    ]


def asked(folder: Path) -> Counter[str]:
    return Counter(line.split()[0] for line in (folder / "asked").read_text().splitlines())


def test_two_actors_answer_as_one_engine_does():
    """The engine `transformers`, on a real model."""
    inner = partial(TransformersEngine, batch_tokens=2000, device="cpu")
    alone = {answer.key: answer for answer in inner(SOURCE).answer(requests(50))}
    engine = started(inner)
    got = list(engine.answer(requests(50)))
    engine.close()
    assert len(got) == 50
    assert {answer.key: answer for answer in got} == alone


def test_requests_are_drawn_by_blocks_and_both_actors_work(tmp_path):
    engine, drawn, got = started(echoing(tmp_path)), 0, []

    def stream() -> Iterator[Request]:
        nonlocal drawn
        for request in requests(60, "slow1", "slow2", "slow3"):
            drawn += 1
            yield request

    for answer in engine.answer(stream()):
        got.append(answer.key)
        assert drawn <= len(got) + 2 * 10 + 10
    assert sorted(got) == sorted(request.key for request in requests(60, "slow1", "slow2", "slow3"))
    assert [answer.text for answer in engine.answer(requests(2))] == ["sort d 0", "sort db 1"], "it can be asked again"
    assert list(engine.answer([])) == []
    engine.close()
    assert len(list(tmp_path.glob("closed-*"))) == len(list(tmp_path.glob("started-*"))) == 2


def test_a_dead_actor_is_replaced_and_only_what_is_open_is_asked_again(tmp_path):
    engine = started(echoing(tmp_path, dies_at="k17"), actors=1, block=25)
    got = list(engine.answer(requests(40)))
    assert sorted(answer.key for answer in got) == sorted(request.key for request in requests(40))
    assert {answer.key: answer.text for answer in got}["k17"] == "sort db 17"
    assert len(list(tmp_path.glob("started-*"))) == 2
    repeated = [key for key, times in asked(tmp_path).items() if times > 1]
    assert len(repeated) <= 17, "answers that had not been sent"
    engine.close()


def test_actors_that_die_again_and_again_are_an_error(tmp_path):
    engine = started(echoing(tmp_path, dies_at="always"), actors=1, restarts=1)
    with pytest.raises(FuserlError, match="actors die again and again"):
        list(engine.answer(requests(3, "always")))
    assert len(list(tmp_path.glob("started-*"))) == 2
    engine.close()


def test_errors_of_the_engine_are_told_as_they_are(tmp_path):
    broken = started(echoing(tmp_path, fails=True), actors=1)
    with pytest.raises(FuserlError, match="this model cannot be loaded"):
        list(broken.answer(requests(3)))
    broken.close()
    odd = started(echoing(tmp_path), actors=1)
    with pytest.raises(FuserlError, match=r"an actor's engine failed \(ValueError: an odd request\)"):
        list(odd.answer(requests(0, "odd")))
    (silent,) = odd.answer(requests(0, "silent"))
    assert isinstance(silent, Failure)
    assert (silent.key, silent.passing) == ("silent", True)
    odd.close()


def test_who_leaves_early_can_come_back(tmp_path):
    engine = started(echoing(tmp_path), actors=1, block=40)
    going = engine.answer(requests(0, *(f"slow{n}" for n in range(40))))
    assert isinstance(next(going), Answer)
    going.close()
    assert [answer.key for answer in engine.answer(requests(2))] == ["k0", "k1"]
    engine.close()


def test_more_gpus_than_there_are_is_an_error_at_once(tmp_path):
    with pytest.raises(FuserlError, match="the actors want 500 GPUs, this machine has"):
        started(echoing(tmp_path), gpus=250)


def test_the_configuration_nests_any_engine():
    for inner, target in (("transformers", "transformers.TransformersEngine"), ("vllm", "vllm.VllmEngine")):
        cfg = compose("generate", ["data.path=x", "engine=ray", f"engine@engine.engine={inner}", "engine.gpus=0"])
        assert cfg.engine.engine._target_ == f"fuserl.sources.{target}"
    cfg = compose("generate", ["data.path=x", "engine=ray", "engine.gpus=0", "engine.engine.batch_tokens=100"])
    engine = instantiate(plain(cfg.engine))(SOURCE)
    assert engine.actors.make.func.keywords == {"batch_tokens": 100, "device": "auto"}
    engine.close()


def test_without_ray_the_install_line_is_said(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(FuserlError, match="`ray`") as error:
        started(echoing(tmp_path))
    assert "pip install 'fuserl[ray]'" in error.value.hint


def test_there_is_an_actor_at_least(tmp_path):
    with pytest.raises(FuserlError, match="`actors` is 0"):
        started(echoing(tmp_path), actors=0)
