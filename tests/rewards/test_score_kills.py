"""`score` is killed at any moment: the result is that of an undisturbed run, and nothing kept is scored twice."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import kit
import openai_server
from openai_server import Server
from scoring_kit import groups

from fuserl.records.manifest import read_manifest
from fuserl.records.store import iter_groups, write_groups

KILLS = 20


def command(tmp_path: Path, output: str, log: str, seconds: float) -> list[str]:
    scorer = [
        "+rewards.length._target_=scoring_kit.Length",
        f"+rewards.length.asked={tmp_path / log}",
        f"+rewards.length.seconds={seconds}",
    ]
    combine = ["combine=weighted", "combine.weights={length: 1.0}", "combine.standardise=domain"]
    where = [f"data.path={tmp_path / 'data'}", f"output={tmp_path / output}"]
    return [sys.executable, "-m", "fuserl", "score", *where, *scorer, *combine]


def started(arguments: list[str]) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(kit.ROOT / "tests/rewards"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def judge(body) -> tuple[str, str, int, int]:
    """Likes the longer one."""
    first, second = (
        part.split("</answer", 1)[0] for part in re.split(r"<answer [AB] \w+>", body["messages"][-1]["content"])[1:]
    )
    return f"[[{'A' if len(first) > len(second) else 'B' if len(second) > len(first) else 'C'}]]", "stop", 1, 1


def whole_lines(path: Path) -> list[str]:
    return path.read_text().split("\n")[:-1] if path.exists() else []


def test_twenty_kills_leave_no_trace(tmp_path):
    write_groups(groups(250), tmp_path / "data")
    done = started(command(tmp_path, "undisturbed", "asked_undisturbed", 0.0))
    assert done.wait(240) == 0, done.stderr.read()

    journal, log, rng = tmp_path / "out/journal/length.jsonl", tmp_path / "asked", Random(4)
    waiting = command(tmp_path, "out", "asked", 0.008)
    kept: set[str] = set()
    asked_again: set[str] = set()
    for _ in range(KILLS):
        seen = len(whole_lines(log))
        process = started(waiting)
        waits = rng.random() > 0.2
        while waits and process.poll() is None and len(whole_lines(log)) == seen:
            time.sleep(0.05)  # mostly until it scores, however slow the machine; else wherever it is
        time.sleep(rng.uniform(0.0, 0.5))
        process.kill()
        process.wait()
        process.stderr.close()
        asked_again |= kept & set(whole_lines(log)[seen:])
        kept |= {json.loads(line)["key"] for line in whole_lines(journal)}
    assert len(kept) > 0, "no kill came while it was scoring"
    last = started(waiting)
    assert last.wait(240) == 0, last.stderr.read()

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


def test_a_judge_that_is_killed_computes_no_comparison_twice(tmp_path, monkeypatch):
    """Pairs are shared by answers, and a kill may come between them: the same questions have the same keys again."""
    write_groups(groups(30, samples=3), tmp_path / "data")
    monkeypatch.setattr(openai_server, "answer_to", judge)

    def arguments(url: str, output: str) -> list[str]:
        settings = [
            "source.path=judge-1", f"engine.url={url}", "engine.concurrency=4", "engine.backoff.first=0.01", "engine.timeout=30"
        ]  # fmt: skip
        where = [f"data.path={tmp_path / 'data'}", f"output={tmp_path / output}", "reward=judge_pairwise"]
        return [sys.executable, "-m", "fuserl", "score", *where, *(f"rewards.judge_pairwise.{one}" for one in settings)]

    rng = Random(5)
    with Server(delay=0.01) as server:
        for _ in range(3):
            seen = len(server.calls)
            process = started(arguments(server.url, "out"))
            while process.poll() is None and len(server.calls) == seen:
                time.sleep(0.02)
            time.sleep(rng.uniform(0.0, 0.5))
            process.kill()
            process.wait()
            process.stderr.close()
        last = started(arguments(server.url, "out"))
        assert last.wait(240) == 0, last.stderr.read()
        assert set(server.computed.values()) == {1}
        assert len(server.calls) > len(server.computed), "no kill came while it was asking"
        computed = len(server.computed)
    with Server() as fresh:
        undisturbed = started(arguments(fresh.url, "undisturbed"))
        assert undisturbed.wait(240) == 0, undisturbed.stderr.read()
        assert len(fresh.computed) == computed
    assert judged(tmp_path / "out") == judged(tmp_path / "undisturbed")


def judged(folder: Path) -> list:
    """Scores without their dates: midnight may fall between two runs."""
    scores = [r.extra["scores"]["judge_pairwise"] for group in iter_groups(folder) for r in group.responses]
    return [(one["reward"], one["verdict"], {k: v for k, v in one["detail"].items() if k != "date"}) for one in scores]
