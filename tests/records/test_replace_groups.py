"""A data set that is written anew in its folder: readers see the old one or the new one, and nothing between."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import kit
import pytest

from fuserl.errors import FuserlError
from fuserl.records import store
from fuserl.records.formats import read_groups
from fuserl.records.manifest import digest_of, read_manifest
from fuserl.records.store import replace_groups

REPLACER = """
import sys
from fuserl.records.schema import Message, PromptGroup, Response
from fuserl.records.store import replace_groups
for number in range(1, 10**9):
    answers = (Response("s", str(number)),)
    replace_groups([PromptGroup(f"p{n}", (Message("user", "a"),), answers) for n in range(number)], sys.argv[1])
    print("ready", flush=True)
"""


def parquet(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.parquet")}


def test_the_new_set_takes_the_place_of_the_old_and_other_things_stay(tmp_path):
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal" / "a.jsonl").write_text("{}\n")
    first = replace_groups(kit.random_groups(3), tmp_path, manifest_extra={"a": 1})
    second = replace_groups(kit.random_groups(5, seed=1), tmp_path, manifest_extra={"b": 2})
    assert first.digest != second.digest
    assert second.digest == digest_of(kit.random_groups(5, seed=1)) == digest_of(read_groups(tmp_path))
    assert parquet(tmp_path) == set(second.files)
    assert read_manifest(tmp_path).extra == {"b": 2}
    assert {path.name for path in tmp_path.iterdir()} == {"journal", "manifest.json", *second.files}
    same = replace_groups(kit.random_groups(5, seed=1), tmp_path)
    assert same.digest == second.digest
    assert list(read_groups(tmp_path)) == kit.random_groups(5, seed=1)


def test_it_may_be_made_from_itself(tmp_path):
    replace_groups(kit.random_groups(6), tmp_path)
    replace_groups((group for group in read_groups(tmp_path) if group.id != "p2"), tmp_path)
    assert [group.id for group in read_groups(tmp_path)] == ["p0", "p1", "p3", "p4", "p5"]


def test_an_error_on_the_way_leaves_the_old_set(tmp_path):
    old = replace_groups(kit.random_groups(3), tmp_path)

    def broken():
        yield from kit.random_groups(2, seed=9)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace_groups(broken(), tmp_path)
    assert read_manifest(tmp_path) == old
    assert list(read_groups(tmp_path)) == kit.random_groups(3)
    assert {path.name for path in tmp_path.iterdir()} == {"manifest.json", *old.files}


def test_killed_before_the_manifest_the_old_set_is_whole_and_the_next_cleans_up(tmp_path, monkeypatch):
    replace_groups(kit.random_groups(3), tmp_path)

    def killed(folder, manifest):
        if folder == tmp_path:
            raise SystemExit("as good as killed")
        original(folder, manifest)

    original = store.write_manifest
    monkeypatch.setattr(store, "write_manifest", killed)
    with pytest.raises(SystemExit):
        replace_groups(kit.random_groups(4, seed=1), tmp_path)
    assert len(parquet(tmp_path)) == 2, "the new files lie there already"
    assert list(read_groups(tmp_path)) == kit.random_groups(3)
    monkeypatch.undo()
    last = replace_groups(kit.random_groups(5, seed=2), tmp_path)
    assert parquet(tmp_path) == set(last.files)


def test_killed_at_any_moment_a_reader_finds_a_whole_set(tmp_path):
    folder = tmp_path / "set"
    for tenths in (1, 3, 5):
        writer = subprocess.Popen([sys.executable, "-c", REPLACER, str(folder)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout
        assert writer.stdout.readline() == "ready\n"
        time.sleep(tenths / 10)
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        groups = list(read_groups(folder))
        assert {response.text for group in groups for response in group.responses} == {str(len(groups))}


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(FuserlError, match="cannot be written") as caught:
        replace_groups(kit.random_groups(1), tmp_path / "file")
    assert "output=DIR" in caught.value.hint
