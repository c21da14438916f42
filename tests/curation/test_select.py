"""The verb: on 4 sources x 5 samples x 1,000 prompts it is deterministic, its counts add up, its pairs keep the rule."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from curation.select_kit import DOMAINS, SOURCES, contents, groups_of, lay, report, run, world

from fuserl.curation.ledger import totals

PROTOCOL = (
    "rules.duplicate_responses=null",  # the slowest one, which has tests of its own
    "sft=top",
    "po=pairs_in_window",
    "po.among=per_source",
    "domains={chinese:{sft_share:1.0,sft:{_target_:fuserl.curation.keep.Top,size:1,verdict:any,sources:[birch],without:null}},"
    "math:{sft_share:0.6,po:{_target_:fuserl.curation.keep.Pairs,among:best_source,chosen:right,rejected:wrong,min_gap:0.01,max_gap:0.1}}}",
    "mixture.po={instruction:100,math:30,code:40}",
)


def start(path: Path, output: Path) -> subprocess.Popen:
    """`fuserl select` in a process of its own, where annotations are not checked at every call."""
    command = [sys.executable, "-m", "fuserl", "select", f"data.path={path}", f"output={output}", *PROTOCOL]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment, text=True)


def ended(job: subprocess.Popen) -> str:
    """What it said, once it has done all."""
    _, said = job.communicate()
    assert job.returncode == 0, said
    return said


@pytest.fixture(scope="module")
def groups():
    return world(1000)


@pytest.fixture(scope="module")
def selected(groups, tmp_path_factory):
    folder = tmp_path_factory.mktemp("select")
    path = lay(groups, folder / "in.jsonl")
    ended(start(path, folder / "out"))
    return path, folder / "out"


def test_again_from_shuffled_rows_it_gives_the_same_bytes(groups, selected, tmp_path):
    _, first = selected
    mixed = [
        replace(one, responses=tuple(random.Random(7).sample(one.responses, len(one.responses)))) for one in groups
    ]
    random.Random(3).shuffle(mixed)
    shuffled = tmp_path / "out"
    ended(start(lay(mixed, tmp_path / "shuffled.jsonl.gz"), shuffled))
    changed = {name for name, digest in contents(first).items() if contents(shuffled)[name] != digest}
    assert not changed
    for what in ("steps", "examples", "measures"):
        assert report(shuffled)[what] == report(first)[what]


def killed_when(path: Path, output: Path, there: str) -> bool:
    """Start it, and kill it as soon as a file of this name is there; whether it was still running."""
    job = start(path, output)
    while job.poll() is None and not list(output.glob(there)):
        time.sleep(0.002)
    job.send_signal(signal.SIGKILL)
    job.communicate()
    return job.returncode == -signal.SIGKILL


def test_killed_twice_it_ends_with_the_same_bytes_and_does_nothing_twice(selected, tmp_path):
    path, first = selected
    output = tmp_path / "out"
    assert killed_when(path, output, "work/groups.part/groups-*.parquet")
    assert killed_when(path, output, "work/rules/00.json")
    read = (output / "work/groups/manifest.json").stat().st_mtime_ns
    assert killed_when(path, output, "sft/train.part/*.parquet") or killed_when(path, output, "report.html")
    assert (output / "work/groups/manifest.json").stat().st_mtime_ns == read, "the input was read again"
    ended(start(path, output))
    assert contents(output) == contents(first)
    assert not list(output.glob("work")) + list(output.rglob("*.part"))


def test_what_went_in_is_what_was_dropped_and_what_came_out(groups, selected):
    """Counted afresh from the input, the list of what was dropped, and the data sets."""
    _, folder = selected
    told = report(folder)
    listed = [json.loads(line) for line in (folder / "dropped.jsonl").read_text().splitlines()]
    assert len({tuple(row.values()) for row in listed}) == len(listed)
    by_step = Counter((row["step"], row["source"] is None) for row in listed)
    entries = told["steps"]
    assert totals(entries[0])[0][0] == len(groups)
    assert totals(entries[0])[1][0] == sum(len(one.responses) for one in groups)
    for before, after in pairwise(entries):
        assert totals(before)[0][2] == totals(after)[0][0]
        assert totals(before)[1][3] == totals(after)[1][0]
    for entry in entries[1:]:
        assert totals(entry)[0][1] == by_step[entry["step"], True]
        assert totals(entry)[1][1] == by_step[entry["step"], False]
        for counts in entry["prompts"].values():
            assert counts[0] == counts[1] + counts[2]
        for counts in (row for of in entry["responses"].values() for row in of.values()):
            assert counts[0] == sum(counts[1:])
    clean = totals(entries[-1])[0][2]
    assert clean == sum(sum(side["given"]["prompts"].values()) for side in told["sides"].values())
    for name, side in told["sides"].items():
        given, kept = (sum(side[what]["prompts"].values()) for what in ("given", "kept"))
        assert given == kept + sum(number for *_, number in side["dropped"])
        out = groups_of(folder / name)
        assert len(out) == sum(side["written"]["prompts"].values())
        assert Counter(one.domain for one in out) == Counter(side["written"]["prompts"])
        assert Counter((one.domain, r.source) for one in out for r in one.responses) == Counter(
            {(d, s): n for d, of in side["written"]["responses"].items() for s, n in of.items()}
        )
    whole = {row["prompt_id"] for row in listed if row["source"] is None}
    written = {one.id for name in told["sides"] for one in groups_of(folder / name)}
    assert whole.isdisjoint(written)
    assert whole | written == {one.id for one in groups}, "nothing is dropped silently"


def test_the_flaws_that_were_put_in_are_the_ones_that_were_found(groups, selected):
    _, folder = selected
    found = {entry["step"]: totals(entry) for entry in report(folder)["steps"]}
    responses = [(one, r) for one in groups for r in one.responses]
    cut = [r for _, r in responses if r.finish_reason == "length"]
    assert found["empty"][1][1] == sum(not r.text for _, r in responses) > 100
    assert found["truncated"][1][1] == len(cut) > 100
    assert found["refused"][1][1] == sum("can't help" in r.text for _, r in responses) > 50
    assert found["duplicate_prompts"][0][1] == 20
    assert found["duplicate_prompts"][1][2] > 15 * len(SOURCES) * 4
    assert found["blank"][1][1] == 0


def test_selected_pairs_keep_the_rule(groups, selected):
    """Every pair by a naive count over the input: in one source, its best against its worst, in the window."""
    _, folder = selected
    before = {one.id: one for one in groups}
    gone = [json.loads(line) for line in (folder / "dropped.jsonl").read_text().splitlines()]
    without = {(row["prompt_id"], row["source"], row["sample"]) for row in gone if row["source"]}
    num_pairs = Counter()
    for one in groups_of(folder / "po/train") + groups_of(folder / "po/validation"):
        clean = [r for r in before[one.id].responses if (one.id, r.source, r.sample) not in without]
        for source in {r.source for r in one.responses}:
            kept = sorted((r for r in one.responses if r.source == source), key=lambda r: r.reward)
            assert len(kept) == 2
            own = [r for r in clean if r.source == source]
            high = [r.reward for r in own if one.domain != "math" or r.verdict == "right"]
            low = [r.reward for r in own if one.domain != "math" or r.verdict == "wrong"]
            assert (kept[1].reward, kept[0].reward) == (max(high), min(low))
            assert 0.01 - 1e-9 <= kept[1].reward - kept[0].reward <= 0.1 + 1e-9
            num_pairs[one.domain] += 1
        if one.domain == "math":
            assert len(one.responses) == 2
            best = max(r.reward for r in clean if r.verdict == "right")
            assert max(r.reward for r in one.responses) == best
    assert num_pairs["instruction"] > 150
    assert num_pairs["math"] > 15
    assert num_pairs["chinese"] == 0


def test_each_domain_follows_its_protocol(groups, selected):
    _, folder = selected
    sft = groups_of(folder / "sft/train")
    assert {len(one.responses) for one in sft if one.domain == "instruction"} == {4}
    chinese = [one for one in sft if one.domain == "chinese"]
    assert {(r.source, r.reward) for one in chinese for r in one.responses} == {("birch", None)}
    given = report(folder)["sides"]["po/train"]["given"]["prompts"]
    assert set(given) == set(DOMAINS) - {"chinese"}
    assert report(folder)["sides"]["po/train"]["mixture"]["instruction"][::2] == [100, 100]
    assert report(folder)["sides"]["po/train"]["written"]["prompts"] == {"instruction": 100, "math": 30, "code": 40}


def test_a_finished_folder_is_left_alone(selected):
    path, folder = selected
    times = {
        file: file.stat().st_mtime_ns
        for file in folder.rglob("*")
        if file.is_file() and file.name not in (".lock", "inputs.json", "config.yaml")
    }
    assert "nothing to do" in ended(start(path, folder))
    assert all(file.stat().st_mtime_ns == time for file, time in times.items())


def test_without_an_output_the_folder_is_named_by_the_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = lay(world(40), tmp_path / "small.jsonl")
    folder = run(f"data.path={small}", "rules=none")
    assert folder.parent == Path("runs")
    assert folder.name.startswith("select-")
    other = run(f"data.path={small}", "rules=none", "sft_share=0.5")
    assert other != folder
