"""Random damage to what we read back: a clear error, or what was written; never another answer, never a traceback."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from fuserl.errors import FuserlError
from fuserl.records.formats import read_groups
from fuserl.records.journal import Journal
from fuserl.records.manifest import read_manifest
from fuserl.records.schema import Message, PromptGroup, Response
from fuserl.records.store import iter_groups, write_groups

FUZZ = settings(max_examples=150, derandomize=True, deadline=None, database=None)
SHORT = settings(max_examples=60, derandomize=True, deadline=None, database=None)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
FIELDS = (
    "prompt_id",
    "prompt",
    "responses",
    "domain",
    "reference",
    "extra",
    "chosen",
    "rejected",
    "messages",
    "conversations",
)
RESPONSE = st.dictionaries(
    st.sampled_from(["source", "sample", "text", "reward", "verdict", "weight", "extra"]), JSON, max_size=7
)
ROW = st.dictionaries(st.sampled_from(FIELDS), JSON | st.lists(RESPONSE, max_size=3), max_size=8)
GROUPS = [
    PromptGroup(
        f"p{n}", (Message("user", f"{n}?"),), (Response("s", f"answer {n}", 0, 0.5), Response("t", "no", 0, 0.25))
    )
    for n in range(6)
]


@st.composite
def damages(draw) -> Any:
    """A function that flips, cuts, doubles, zeroes or inserts bytes somewhere."""
    kind = draw(st.sampled_from(["flip", "cut", "zero", "insert", "remove"]))
    place, size, bit = draw(st.floats(0, 1, exclude_max=True)), draw(st.integers(1, 9)), draw(st.integers(0, 7))

    def damage(content: bytes) -> bytes:
        at = int(place * len(content))
        before, after = content[:at], content[at:]
        changed = {
            "flip": lambda: before + bytes([after[0] ^ (1 << bit)]) + after[1:],
            "cut": lambda: before,
            "zero": lambda: before + bytes(min(size, len(after))) + after[size:],
            "insert": lambda: before + b'{"a"}\n'[:size] + after,
            "remove": lambda: before + after[size:],
        }
        return changed[kind]()

    return damage


@FUZZ
@given(rows=st.lists(ROW | JSON, min_size=1, max_size=3))
def test_rows_of_any_json(rows):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "d.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in rows))
        for how in ("error", "skip"):
            try:
                groups = list(read_groups(path, on_bad_row=how))
            except FuserlError as error:
                assert error.hint, error
                assert error.where, error
            else:
                assert all(group.responses and group.prompt for group in groups)


@FUZZ
@given(content=st.binary(max_size=200) | st.text(max_size=80).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_files_of_any_bytes(content):
    for name in ("d.jsonl", "d.json", "d.jsonl.gz", "d.parquet", "manifest.json"):
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / name).write_bytes(content)
            try:
                list(read_groups(Path(folder) if name == "manifest.json" else Path(folder) / name))
            except FuserlError as error:
                assert error.where, error


@SHORT
@given(damage=damages())
def test_a_damaged_file_of_rows_gives_other_rows_only_where_they_are_rows(damage):
    rows = [json.dumps({"prompt": f"{n}?", "responses": [{"source": "s", "text": f"a {n}"}]}) for n in range(5)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "d.jsonl"
        path.write_bytes(damage("\n".join(rows).encode()))
        try:
            assert all(group.responses for group in read_groups(path))
        except FuserlError as error:
            assert error.where, error


COLUMN = st.sampled_from(
    [
        pa.array([1, 2]), pa.array([1.5, None]), pa.array(["a", None]), pa.array([b"x", b"\xff"]), pa.array([True, False]),
        pa.array([[1], []]), pa.array([[{"role": "user", "content": 7}], None]), pa.array([{"a": 1}, {"a": None}]), pa.nulls(2),
        pa.array([1, 2], pa.timestamp("ns")), pa.array(["a", "b"]).dictionary_encode(), pa.array([[["x"]], [[]]]),
        pa.array([[{"source": "s", "text": None}], [{"source": None, "text": "t"}]]), pa.array([1, 2], pa.decimal128(9, 2)),
    ]
)  # fmt: skip


@FUZZ
@given(columns=st.dictionaries(st.sampled_from(FIELDS), COLUMN, min_size=1, max_size=5))
def test_parquet_of_surprising_types(columns):
    with tempfile.TemporaryDirectory() as folder:
        pq.write_table(pa.table(columns), Path(folder) / "d.parquet")
        for how in ("error", "skip"):
            try:
                list(read_groups(Path(folder) / "d.parquet", on_bad_row=how))
            except FuserlError as error:
                assert error.where, error


@FUZZ
@given(damage=damages(), which=st.sampled_from(["manifest.json", "part"]))
def test_a_damaged_data_set_is_refused_or_what_was_written(damage, which):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "set"
        write_groups(GROUPS, folder)
        path = folder / which if which == "manifest.json" else next(folder.glob("*.parquet"))
        path.write_bytes(damage(path.read_bytes()))
        try:
            read_manifest(folder)
            assert list(iter_groups(folder)) == GROUPS
        except FuserlError as error:
            assert error.where, error
            assert error.hint, error


@FUZZ
@given(damage=damages())
def test_a_damaged_journal_keeps_the_rest_and_never_gives_another_answer(damage):
    """Also where the key, the end of a line, or the checksum is what was hit."""
    records = {f"key-{n}": {"text": f"the answer {n} é", "reward": n / 8} for n in range(6)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "j.jsonl"
        with Journal(path) as journal:
            for key, record in records.items():
                journal.add(key, record)
        size = path.stat().st_size
        path.write_bytes(damage(path.read_bytes()))
        refused = 0
        try:
            with Journal(path) as journal:
                for key in list(journal):
                    try:
                        assert records.get(key, journal[key]) == journal[key]
                    except FuserlError as error:
                        assert "line" in error.hint
                        refused += 1
                lost = sum(key not in journal for key in records) + refused
                assert lost <= 2 or len(path.read_bytes()) < size, "one hit, at most two records"
        except FuserlError as error:
            assert error.where, error


def test_every_single_bit_of_a_record_is_guarded(tmp_path):
    path = tmp_path / "j.jsonl"
    with Journal(path) as journal:
        journal.add("k", {"text": "42", "reward": 0.5})
    content = path.read_bytes()
    for at in range(len(content) - 1):
        for bit in range(8):
            path.write_bytes(content[:at] + bytes([content[at] ^ (1 << bit)]) + content[at + 1 :])
            try:
                with Journal(path) as journal:
                    assert journal.get("k") in (None, {"text": "42", "reward": 0.5}), (at, bit)
            except FuserlError:
                continue


def test_a_journal_without_checksums_is_read(tmp_path):
    (tmp_path / "j.jsonl").write_text('{"key": "k", "text": "42"}\n')
    with Journal(tmp_path / "j.jsonl") as journal:
        assert journal["k"] == {"text": "42"}


@SHORT
@given(damage=damages(), which=st.sampled_from(["rows.bin", "samples.jsonl", "meta.json"]))
def test_damaged_distributions_are_refused_or_what_was_written(damage, which):
    from fuserl.distributions.appending import DistributionsWriter
    from fuserl.distributions.store import Distributions
    from fuserl.distributions.topk import TopK

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "s"
        with DistributionsWriter(folder, k=2, vocabulary=50, made_from={"a": 1}) as writer:
            for n in range(4):
                ids = np.full((3, 2), [n + 1, n + 2])
                writer.add(f"t{n}", TopK(ids, np.full((3, 2), -1.0)), ce=np.full(3, 0.5, np.float32))
        good = {key: Distributions(folder)[key].rows.tobytes() for key in Distributions(folder)}
        (folder / which).write_bytes(damage((folder / which).read_bytes()))
        try:
            store = Distributions(folder, {"a": 1})
            assert all(good.get(key, store[key].rows.tobytes()) == store[key].rows.tobytes() for key in store)
        except FuserlError as error:
            assert error.where, error
