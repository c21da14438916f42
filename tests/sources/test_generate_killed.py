"""SIGKILL at any moment: nothing is lost, nothing is asked twice, and the data set is that of an undisturbed run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from forking import Nursery
from openai_server import Server, drawn

from fuserl.records.formats import read_groups
from fuserl.records.manifest import read_manifest

KILLS, PROMPTS, SAMPLES, TOGETHER = 20, 40, 3, 4
TWO = ["sources={b:{path:models/b},a:{path:models/a}}", f"samples={SAMPLES}", "data.path=prompts.jsonl"]
WANTED = 2 * PROMPTS * SAMPLES


@pytest.fixture
def nursery(tmp_path):
    rows = [{"prompt_id": f"p{n}", "prompt": f"What is {n}?"} for n in range(PROMPTS)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    nursery = Nursery(
        tmp_path,
        "fuserl.sources.generate",
        "fuserl.sources.endpoint",
        "pyarrow.parquet",
        "answering",
        paths=[Path(__file__).parents[1]],
    )
    yield nursery
    nursery.close()


def journaled(folder: Path) -> set[str]:
    """Keys of whole lines."""
    lines = (line for path in folder.glob("journal/*.jsonl") for line in path.read_bytes().splitlines(keepends=True))
    return {json.loads(line)["key"] for line in lines if line.endswith(b"\n")}


def killed_often(nursery: Nursery, folder: Path, overrides: list[str], chance: random.Random, longest: float, asked):
    """Kill the verb over and over.

    Args:
        asked: tells the keys that have been asked so far.

    Returns:
        Keys that were asked in each run, and keys that were in the journal before it.
    """
    runs, kills = [], 0
    while kills < KILLS:
        before, seen = journaled(folder), len(asked())
        ended = nursery.run("generate", overrides, kill_after=chance.uniform(0, longest))
        kills += not ended
        runs.append((asked()[seen:], before))
        if (folder / "manifest.json").exists():
            assert len(list(read_groups(folder))) == PROMPTS, "a data set that is there is whole"
        if ended:  # it was through before its time was over: the rest of the kills fall on what a finished run does
            longest = min(longest, 0.25)
    assert nursery.run("generate", overrides)
    return runs


def test_on_an_engine_that_counts(nursery, tmp_path):
    engine = ["engine._target_=answering.AnsweringEngine", f"+engine.together={TOGETHER}"]
    assert nursery.run("generate", [*TWO, *engine, "output=undisturbed"])
    slowly = [*TWO, *engine, "output=out", "+engine.log=log", "+engine.seconds=0.02"]
    log = tmp_path / "log"

    def asked() -> list[str]:
        return [line.split()[1] for line in log.read_text().splitlines()] if log.exists() else []

    runs = killed_often(nursery, tmp_path / "out", slowly, random.Random(0), 0.6, asked)
    for keys, before in runs:
        assert not before.intersection(keys), "what the journal held at the kill was asked again"
    computed = Counter(asked())
    assert len(computed) == WANTED
    assert computed.total() <= WANTED + KILLS * TOGETHER, "only those under way at a kill are computed again"
    out, undisturbed = (read_manifest(tmp_path / name) for name in ("out", "undisturbed"))
    assert out.digest == undisturbed.digest
    assert out.files.keys() == {path.name for path in (tmp_path / "out").glob("*.parquet")}, "kills leave no litter"


@pytest.mark.parametrize("honours", [True, False], ids=["keeps", "forgets"])
def test_through_a_server_that_misbehaves_and_counts(nursery, tmp_path, honours):
    """One that honours keys computes nothing twice; one that does not, only what was under way at a kill."""
    concurrency = 4
    with Server(drawn(0.15, at_most=2), delay=0.01, honours=honours) as server:
        engine = ["engine=openai", f"engine.url={server.url}", "engine.backoff.first=0.01"]
        engine.append(f"engine.concurrency={concurrency}")

        def asked() -> list[str]:
            return [call.key for call in list(server.calls)]

        overrides = [*TWO, *engine, "output=out"]
        runs = killed_often(nursery, tmp_path / "out", overrides, random.Random(1), 0.7, asked)
        for keys, before in runs:
            assert not before.intersection(keys), "what the journal held at the kill was asked again"
        assert len(server.computed) == WANTED
        again = server.computed.total() - WANTED
        faults_after_computing = sum(call.attempt for call in server.calls)
        assert again == 0 if honours else again <= KILLS * concurrency + faults_after_computing
        assert nursery.run("generate", [*overrides, "output=undisturbed"])
    out, undisturbed = (read_manifest(tmp_path / name) for name in ("out", "undisturbed"))
    assert out.digest == undisturbed.digest


def test_the_command_itself_killed_and_run_again(tmp_path):
    """The same through `fuserl`, a new interpreter each time; and Ctrl-C, which says what to do."""
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"{n}?"}) + "\n" for n in range(30)))
    engine = ["engine._target_=answering.AnsweringEngine", "+engine.log=log"]
    command = [sys.executable, "-m", "fuserl", "generate", *TWO, *engine, "output=out"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    for blow in (signal.SIGKILL, signal.SIGINT):
        slowly = [*command, "+engine.seconds=0.5"]  # so that it is still at work when the blow falls
        running = subprocess.Popen(
            slowly, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a suite in the background ignores
        )  # fmt: skip
        lines, deadline = _lines(tmp_path), time.monotonic() + 60
        while _lines(tmp_path) < lines + 10:
            assert time.monotonic() < deadline
            assert running.poll() is None
            time.sleep(0.01)
        running.send_signal(blow)
        said = running.communicate()[1]
    assert "run the same command again to continue" in said
    assert running.returncode == 130
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert read_manifest(tmp_path / "out").responses == 30 * 2 * SAMPLES


def _lines(folder: Path) -> int:
    return sum(len(path.read_bytes().splitlines()) for path in folder.glob("out/journal/*.jsonl"))
