"""Random damage to what `compare` reads, to what servers say and to the reference cache: told or read, never a raw traceback."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuserl.errors import FuserlError
from fuserl.evaluation.benchmarks import results
from fuserl.evaluation.runs import find_runs
from fuserl.models.reference_cache import Entry, ReferenceCache, explained
from fuserl.records.schema import Message
from fuserl.sources.keys import Key
from fuserl.sources.protocol import Answer, Failure, Request, Sampling
from fuserl.sources.source import Source
from fuserl.sources.wire import Wire

FUZZ = settings(max_examples=120, derandomize=True, deadline=None, database=None)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
FILES = {
    "config.yaml": b"seed: 0\nobjective: {name: fusesft}\ntarget: {path: m}\n",
    "metrics.csv": b"step,train/loss,val/nll\n1,2.0,1.5\n2,1.0,1.25\n",
    "summary.json": b'{"verb": "train", "steps": 2, "test": {"nll": 1.5}}',
    "test.jsonl": b'{"prompt_id": "p", "prompt": "1?", "answer": "2", "score": 0.5}\n',
}


@FUZZ
@given(name=st.sampled_from(sorted(FILES)), at=st.floats(0, 1), cut=st.integers(0, 20), put=st.binary(max_size=12))
def test_runs_with_a_damaged_file_are_left_out_or_read(name, at, cut, put):
    with tempfile.TemporaryDirectory() as place:
        for run in ("good", "bad"):
            (Path(place) / run).mkdir()
            for file, content in FILES.items():
                (Path(place) / run / file).write_bytes(
                    content.replace(b"seed: 0", b"seed: 1") if run == "bad" else content
                )
        content = (Path(place) / "bad" / name).read_bytes()
        middle = int(at * len(content))
        (Path(place) / "bad" / name).write_bytes(content[:middle] + put + content[middle + cut :])
        runs, left_out = find_runs([place])
        assert 1 <= len(runs) <= 2
        assert len(runs) + len(left_out) == 2
        assert all(one.why for one in left_out)


@FUZZ
@given(content=JSON.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=40))
def test_a_result_of_any_bytes_is_told(content):
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / results.RESULT).write_bytes(content)
        with pytest.raises(FuserlError) as caught:
            results.read(Path(folder))
        assert caught.value.hint


NAMED = st.fixed_dictionaries(
    {},
    optional={
        "choices": JSON
        | st.lists(
            st.fixed_dictionaries(
                {},
                optional={
                    "message": JSON | st.fixed_dictionaries({"content": JSON}),
                    "finish_reason": JSON | st.just("stop"),
                },
            ),
            max_size=2,
        ),
        "usage": JSON | st.dictionaries(st.sampled_from(["prompt_tokens", "completion_tokens"]), JSON),
        "model": JSON,
        "error": JSON,
    },
)


@FUZZ
@given(content=NAMED.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=60))
def test_a_reply_of_any_bytes_is_an_answer_or_a_failure(content):
    wire = Wire(
        Source("s", "m", Sampling(4)),
        {"max_tokens": "max_tokens"},
        {"input": 1.0, "output": 2.0},
        Key("OPENAI_API_KEY"),
    )
    found = wire.read(Request("k", (Message("user", "?"),), Sampling(4), 0), content)
    assert isinstance(found, Answer | Failure)
    if isinstance(found, Answer):
        found.text.encode()
        assert min(found.prompt_tokens, found.response_tokens) >= 0


@settings(max_examples=60, derandomize=True, deadline=None, database=None)
@given(at=st.floats(0, 1, exclude_max=True), size=st.integers(1, 4000), zero=st.booleans())
def test_a_damaged_reference_cache_is_told_or_read(at, size, zero):
    """SQLite checks its structure and not its values, so this holds no number to be the one that was written."""
    keys = [bytes([n]) * 16 for n in range(40)]
    about = {"weights": "w", "dtype": "float32", "backend": "sdpa"}
    with tempfile.TemporaryDirectory() as folder:
        cache = ReferenceCache(Path(folder), **about)
        cache.put([Entry(key, -1.5, 3, np.full(3, -0.5, np.float32)) for key in keys])
        cache.close()
        content = bytearray(cache.path.read_bytes())
        start = int(at * len(content))
        content[start : start + size] = (
            bytes(len(content[start : start + size])) if zero else b"\x5a" * len(content[start : start + size])
        )
        cache.path.write_bytes(content)
        try:
            again = ReferenceCache(Path(folder), **about)
            try:
                with explained("read", again.path):  # as everything that reads it does
                    assert all(isinstance(value, float | None) for key, value in again.get(keys).items() if key in keys)
            finally:
                again.close()
        except FuserlError as error:
            assert error.hint
