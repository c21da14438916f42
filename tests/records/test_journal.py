"""A journal keeps what was paid for: nothing is lost, nothing is overwritten, one process at a time writes it."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuserl.errors import FuserlError
from fuserl.records import places
from fuserl.records.journal import Journal, locked
from fuserl.records.places import Filling, Places

WRITER = """
import sys
from fuserl.records.journal import Journal
journal = Journal(sys.argv[1])
for number in range(len(journal), 10**9):
    journal.add(f"{number:032x}", {"text": "x" * (number % 3000), "number": number})
    sys.stdout.write(f"{number}\\n")
    sys.stdout.flush()
"""
HOLDER = """
import sys, time
from fuserl.records.journal import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""

FORKER = """
import os
import sys
import time
from fuserl.records.journal import locked
with locked(sys.argv[1]):
    child = os.fork()
    if child:
        print(child, flush=True)
    time.sleep(60)
"""


def python(code: str, *arguments: object) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True)


def filled(path, keys: list[str]) -> Journal:
    journal = Journal(path)
    for number, key in enumerate(keys):
        journal.add(key, {"number": number})
    return journal


@given(
    st.lists(st.tuples(st.text(min_size=1, max_size=6), st.dictionaries(st.text(max_size=4), st.text(max_size=9)))),
    st.sets(st.integers(0, 20)),
)
def test_a_journal_is_a_dictionary_whose_first_values_stay(tmp_path_factory, pairs, reopened):
    path, expected = tmp_path_factory.mktemp("journal") / "j.jsonl", {}
    journal = Journal(path)
    for number, (key, record) in enumerate(pairs):
        if number in reopened:
            journal.close()
            journal = Journal(path)
        assert journal.add(key, record) is (key not in expected)
        expected.setdefault(key, {name: value for name, value in record.items() if name != "key"})
    for each in (journal, Journal(path)):
        assert {key: each[key] for key in each} == expected
        assert list(each) == list(expected)
        assert len(each) == len(expected)
        assert "never asked" not in each
        assert each.get("never asked") is None


def test_what_it_does_not_have_is_a_key_error(tmp_path):
    with Journal(tmp_path / "j.jsonl") as journal, pytest.raises(KeyError):
        journal["a"]


def test_long_and_hard_texts_come_back_exactly(tmp_path):
    texts = ["x" * 100_000, "\n\r\u2028\x00\x85", "\ud800 alone", '"quoted" \\', "漢字 \U0001f469\u200d\U0001f4bb", ""]
    with Journal(tmp_path / "j.jsonl") as journal:
        for number, text in enumerate(texts):
            journal.add(f"{number}", {"text": text})
    again = Journal(tmp_path / "j.jsonl")
    assert [again[key]["text"] for key in again] == texts


def test_a_torn_last_line_is_cut_off_wherever_it_tore(tmp_path):
    path = tmp_path / "j.jsonl"
    filled(path, ["a", "b", "c"]).close()
    whole = path.read_bytes()
    start = whole.rindex(b"\n", 0, -1) + 1
    for cut in range(start, len(whole)):
        path.write_bytes(whole[:cut])
        with Journal(path) as journal:
            assert list(journal) == ["a", "b"]
            assert journal.add("c", {"number": 2})
        assert path.read_bytes() == whole


def test_a_torn_line_longer_than_a_block(tmp_path, monkeypatch):
    path = tmp_path / "j.jsonl"
    filled(path, ["a"]).close()
    whole = path.read_bytes()
    monkeypatch.setattr("fuserl.records.journal.BLOCK", 16)
    for before in (b"", whole):
        path.write_bytes(before + b'{"key": "b", "text": "' + b"x" * 100)
        Journal(path).close()
        assert path.read_bytes() == before


@pytest.mark.parametrize("line", [b"\n", b"{}\n", b"[1]\n", b'{"key": 5}\n', b"\x00\x00\n", b'{"key": "\n', b"null\n"])
def test_a_line_that_is_no_record_is_named(line, tmp_path):
    path = tmp_path / "j.jsonl"
    filled(path, ["a", "b"]).close()
    path.write_bytes(path.read_bytes() + line)
    with pytest.raises(FuserlError, match="no record of a journal") as caught:
        Journal(path)
    assert caught.value.where == f"{path}, line 3"
    assert "asked again" in caught.value.hint


def test_a_record_that_broke_behind_its_key_is_told_when_it_is_read(tmp_path):
    path = tmp_path / "j.jsonl"
    filled(path, ["a", "b"]).close()
    path.write_bytes(path.read_bytes().replace(b'"number": 1', b'"number": ,'))
    journal = Journal(path)
    assert journal["a"] == {"number": 0}
    with pytest.raises(FuserlError, match="no record of a journal"):
        journal["b"]
    os.truncate(path, 0)
    with pytest.raises(FuserlError, match="no record of a journal"):
        journal["a"]


def test_a_full_disk_keeps_what_was_written_and_the_journal_whole(tmp_path):
    path = tmp_path / "j.jsonl"
    journal = filled(path, ["a", "b"])
    size = path.stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, hard))
        with pytest.raises(FuserlError, match="cannot be written") as caught:
            journal.add("c", {"text": "x" * 100})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "make room" in caught.value.hint
    assert path.stat().st_size == size, "the part that fitted is taken back"
    assert "c" not in journal
    assert journal.add("c", {"number": 2})
    journal.close()
    assert list(Journal(path)) == ["a", "b", "c"]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("x")
    for open_it in (lambda: Journal(tmp_path / "file" / "j.jsonl"), lambda: locked(tmp_path / "file").__enter__()):
        with pytest.raises(FuserlError, match="cannot be") as caught:
            open_it()
        assert "output=DIR" in caught.value.hint


def test_killed_while_writing_it_loses_no_record_that_was_confirmed(tmp_path):
    path, chance = tmp_path / "j.jsonl", random.Random(0)
    confirmed = -1
    for _ in range(6):
        writer = python(WRITER, path)
        assert writer.stdout
        first = writer.stdout.readline()
        time.sleep(chance.uniform(0, 0.05))
        os.kill(writer.pid, signal.SIGKILL)
        lines = [line for line in (first + writer.stdout.read()).splitlines(keepends=True) if line.endswith("\n")]
        writer.wait()
        assert int(first) in (confirmed + 1, confirmed + 2), "one may be written that was not yet confirmed"
        confirmed = int(lines[-1])
        with Journal(path) as journal:
            assert len(journal) in (confirmed + 1, confirmed + 2)
            for number in (0, confirmed // 2, confirmed):
                assert journal[f"{number:032x}"] == {"text": "x" * (number % 3000), "number": number}
            confirmed = len(journal) - 1


def test_two_processes_cannot_hold_a_folder_and_a_killed_one_lets_go(tmp_path):
    holder = python(HOLDER, tmp_path)
    try:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(FuserlError, match="another process is working"), locked(tmp_path):
            pytest.fail("two at once")
    finally:
        holder.kill()
        holder.wait()
    with locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_a_child_of_a_killed_process_does_not_hold_its_folder(tmp_path):
    """As loader processes, which see some seconds late that nobody is left."""
    holder = python(FORKER, tmp_path)
    assert holder.stdout
    child = int(holder.stdout.readline())
    try:
        with pytest.raises(FuserlError, match="another process is working"), locked(tmp_path):
            pytest.fail("two at once")
        holder.kill()
        holder.wait()
        os.kill(child, 0)  # is there
        with locked(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


def test_places_are_a_dictionary_however_often_they_are_sorted(monkeypatch):
    monkeypatch.setattr(places, "FEW", 5)
    chance, found, expected = random.Random(0), Places(), {}
    first = Filling()
    for offset, key in enumerate(chance.choices(range(40), k=60)):
        first.add(str(key).encode(), offset)
        expected.setdefault(str(key), offset)
    found.add_all(first)
    for offset in range(60, 300):
        key = str(chance.randrange(200))
        assert found.find(key) == expected.get(key)
        if key not in expected:
            found.add(key, offset)
            expected[key] = offset
    assert {key: found.find(key) for key in expected} == expected
    assert len(found) == len(expected)


def test_places_hold_keys_whose_first_halves_are_equal(monkeypatch):
    monkeypatch.setattr(places, "_digest", lambda key: b"\x07" * 8 + key.ljust(8, b"\0"))
    found, several = Places(), Filling()
    for number in range(30):
        several.add(f"k{number}".encode(), number)
    found.add_all(several)
    assert [found.find(f"k{number}") for number in range(30)] == list(range(30))
    assert found.find("k30") is None


def test_a_key_takes_24_bytes_of_memory_not_its_text(tmp_path):
    path, number = tmp_path / "j.jsonl", 10_000
    path.write_bytes(b"".join(b'{"key": "%032x", "text": "%s"}\n' % (n, b"x" * 200) for n in range(number)))
    tracemalloc.start()
    try:
        journal = Journal(path)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(journal) == number
    assert held < 30 * number
    assert journal[f"{number - 1:032x}"] == {"text": "x" * 200}


def test_the_file_is_json_lines_that_anybody_can_read(tmp_path):
    filled(tmp_path / "j.jsonl", ["a", "b"]).close()
    rows = [json.loads(line) for line in (tmp_path / "j.jsonl").read_text().splitlines()]
    assert [row.pop("crc32") for row in rows]
    assert rows == [{"key": "a", "number": 0}, {"key": "b", "number": 1}]
