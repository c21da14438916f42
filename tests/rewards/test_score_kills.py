"""`score` is killed at any moment: the result is that of an undisturbed run, and nothing kept is scored twice."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import kit
import openai_server
import pytest
from forking import Nursery
from openai_server import Server
from scoring_kit import groups

from fuserl.records.manifest import read_manifest
from fuserl.records.store import iter_groups, write_groups

KILLS = 20
REWARDS = kit.ROOT / "tests/rewards"


@pytest.fixture(scope="module")
def nursery(tmp_path_factory) -> Iterator[Nursery]:
    """A process with everything imported, whose children are killed."""
    imports = ("fuserl.rewards.score", "fuserl.sources.endpoint", "pyarrow.parquet", "scoring_kit")
    nursery = Nursery(tmp_path_factory.mktemp("nursery"), *imports, paths=[REWARDS])
    yield nursery
    nursery.close()


def overrides(tmp_path: Path, output: str, log: str, seconds: float) -> list[str]:
    scorer = [
        "+rewards.length._target_=scoring_kit.Length",
        f"+rewards.length.asked={tmp_path / log}",
        f"+rewards.length.seconds={seconds}",
    ]
    combine = ["combine=weighted", "combine.weights={length: 1.0}", "combine.standardise=domain"]
    where = [f"data.path={tmp_path / 'data'}", f"output={tmp_path / output}"]
    return [*where, *scorer, *combine]


def run_command(overrides: list[str]) -> None:
    """`fuserl score` in an interpreter of its own."""
    environment = {**os.environ, "PYTHONPATH": str(REWARDS), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "fuserl", "score", *overrides]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def judge(body) -> tuple[str, str, int, int]:
    """Likes the longer one."""
    first, second = (
        part.split("</answer", 1)[0] for part in re.split(r"<answer [AB] \w+>", body["messages"][-1]["content"])[1:]
    )
    return f"[[{'A' if len(first) > len(second) else 'B' if len(second) > len(first) else 'C'}]]", "stop", 1, 1


def whole_lines(path: Path) -> list[str]:
    return path.read_text().split("\n")[:-1] if path.exists() else []


def test_twenty_kills_leave_no_trace(tmp_path, nursery):
    write_groups(groups(250), tmp_path / "data")
    run_command(overrides(tmp_path, "undisturbed", "asked_undisturbed", 0.0))

    journal, log, rng = tmp_path / "out/journal/length.jsonl", tmp_path / "asked", Random(4)
    waiting = overrides(tmp_path, "out", "asked", 0.008)
    kept: set[str] = set()
    asked_again: set[str] = set()
    for _ in range(KILLS):
        seen = len(whole_lines(log))
        scores = None if rng.random() <= 0.2 else lambda seen=seen: len(whole_lines(log)) > seen
        # mostly once it scores, however slow the machine; else wherever it is
        nursery.run("score", waiting, kill_when=scores, kill_after=rng.uniform(0.0, 0.5))
        asked_again |= kept & set(whole_lines(log)[seen:])
        kept |= {json.loads(line)["key"] for line in whole_lines(journal)}
    assert len(kept) > 0, "no kill came while it was scoring"
    assert nursery.run("score", waiting)

    assert not asked_again, "what was kept was scored again"
    keys = whole_lines(journal)
    assert (
        len(keys)
        == len({json.loads(line)["key"] for line in keys})
        == len(set(whole_lines(tmp_path / "asked_undisturbed")))
    )
    assert len(whole_lines(log)) <= len(keys) + KILLS, "a kill costs at most the answer in flight"
    assert read_manifest(tmp_path / "out").digest == read_manifest(tmp_path / "undisturbed").digest
    assert list(iter_groups(tmp_path / "out")) == list(iter_groups(tmp_path / "undisturbed"))


def test_a_judge_that_is_killed_computes_no_comparison_twice(tmp_path, nursery, monkeypatch):
    """Pairs are shared by answers, and a kill may come between them: the same questions have the same keys again."""
    write_groups(groups(30, samples=3), tmp_path / "data")
    monkeypatch.setattr(openai_server, "answer_to", judge)

    def arguments(url: str, output: str) -> list[str]:
        settings = [
            "source.path=judge-1", f"engine.url={url}", "engine.concurrency=4", "engine.backoff.first=0.01", "engine.timeout=30"
        ]  # fmt: skip
        where = [f"data.path={tmp_path / 'data'}", f"output={tmp_path / output}", "reward=judge_pairwise"]
        return [*where, *(f"rewards.judge_pairwise.{one}" for one in settings)]

    rng = Random(5)
    with Server(delay=0.01) as server:
        for _ in range(3):
            seen = len(server.calls)
            nursery.run(
                "score", arguments(server.url, "out"),
                kill_when=lambda seen=seen: len(server.calls) > seen, kill_after=rng.uniform(0.0, 0.5),
            )  # fmt: skip
        assert nursery.run("score", arguments(server.url, "out"))
        assert set(server.computed.values()) == {1}
        assert len(server.calls) > len(server.computed), "no kill came while it was asking"
        computed = len(server.computed)
    with Server() as fresh:
        assert nursery.run("score", arguments(fresh.url, "undisturbed"))
        assert len(fresh.computed) == computed
    assert judged(tmp_path / "out") == judged(tmp_path / "undisturbed")


def judged(folder: Path) -> list:
    """Scores without their dates: midnight may fall between two runs."""
    scores = [r.extra["scores"]["judge_pairwise"] for group in iter_groups(folder) for r in group.responses]
    return [(one["reward"], one["verdict"], {k: v for k, v in one["detail"].items() if k != "date"}) for one in scores]
