"""The token cache: what it gives back, what its name depends on, damage, two processes at once."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import kit
import numpy as np
import pytest
import real_tokenizers as real

from fuserl.records.schema import Message, PromptGroup, Response
from fuserl.tokens.store import TokenStore, TokenWriter
from fuserl.tokens.templates import load_template
from fuserl.tokens.tokenize import encode_dataset, encode_group

QWEN = "Qwen-Qwen2.5-7B-Instruct"


def groups() -> list[PromptGroup]:
    """Ragged, with copies, without some rewards."""
    rows = [
        Response("b", "yes", 0, 0.5, "right", weight=2.0),
        Response("a", "no", 0, None, "wrong"),
        Response("b", "yes", 1, 0.25, "unknown"),
        Response("a", "no", 1, -1.0),
    ]
    return [
        PromptGroup("p0", (Message("user", "first?"),), tuple(rows), domain="math"),
        PromptGroup("p1", (Message("user", "second 🙂"),), tuple(rows[1:3])),
        PromptGroup("p2", (Message("user", "<|im_end|>"),), tuple(rows[:1])),
    ]


def encoded(folder: Path, data: list[PromptGroup] | None = None, **kwargs) -> TokenStore:
    return encode_dataset(
        data or groups(), real.template("gpt2", QWEN), folder, **({"source_names": ["a", "b"]} | kwargs)
    )


def test_columns(tmp_path):
    store = encoded(tmp_path)
    nan = np.nan
    assert len(store) == 3
    assert (store.ids, store.domains, store.sources) == (["p0", "p1", "p2"], ["math", "general", "general"], ["a", "b"])
    np.testing.assert_array_equal(store.rewards, [[0.5, nan, 0.25, -1], [nan, 0.25, nan, nan], [0.5, nan, nan, nan]])
    np.testing.assert_array_equal(store.given, [[2, nan, nan, nan], [nan] * 4, [2, nan, nan, nan]])
    np.testing.assert_array_equal(store.source, [[1, 0, 1, 0], [0, 1, -1, -1], [1, -1, -1, -1]])
    np.testing.assert_array_equal(store.verdict, [[1, 0, 2, -1], [0, 2, -1, -1], [1, -1, -1, -1]])
    np.testing.assert_array_equal(store.valid, [[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    np.testing.assert_array_equal(store.duplicate_of, [[0, 1, 0, 1], [0, 1, -1, -1], [0, -1, -1, -1]])
    np.testing.assert_array_equal(store.num_tokens, np.asarray(store.branch_tokens) - store.untrained)


def test_tokens_come_back_and_lie_in_mapped_int32(tmp_path):
    store, made = encoded(tmp_path), real.template("gpt2", QWEN)
    assert isinstance(store.tokens, np.memmap)
    assert store.tokens.dtype == np.int32
    for row, group in enumerate(groups()):
        alone = encode_group(group, made)
        assert store.prompt(row).tolist() == alone.prompt.tolist()
        for column, branch in enumerate(alone.responses):
            assert store.branch(row, column).tolist() == branch.tolist()
            assert store.untrained[row, column] == alone.untrained[column]


def test_copies_are_written_once(tmp_path):
    one = [PromptGroup("p", (Message("user", "q"),), tuple(Response("a", "same", n) for n in range(50)))]
    store = encoded(tmp_path, one, source_names=["a"])
    assert len(store.tokens) == int(store.prompt_tokens[0] + store.branch_tokens[0, 0])


def test_the_folder_holds_no_pickle_and_nothing_half_written(tmp_path):
    store = encoded(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [store.folder.name]
    assert {path.suffix for path in store.folder.iterdir()} == {".npy", ".json"}
    for path in store.folder.glob("*.npy"):
        np.load(path, allow_pickle=False)


def test_the_name_depends_on_content_template_tokenizer_and_sources(tmp_path):
    first = encoded(tmp_path).folder
    assert encoded(tmp_path).folder == first
    other = groups()
    other[1] = PromptGroup("p1", (Message("user", "second?"),), other[1].responses)
    folders = {
        first,
        encoded(tmp_path, other).folder,
        encoded(tmp_path, groups()[:2]).folder,
        encoded(tmp_path, groups()[::-1]).folder,
        encoded(tmp_path, source_names=["b", "a"]).folder,
        encode_dataset(groups(), real.template("gpt2", QWEN), tmp_path, source_names=["a", "b", "c"]).folder,
        encode_dataset(groups(), real.template("falcon", QWEN), tmp_path, source_names=["a", "b"]).folder,
        encode_dataset(
            groups(), real.template("gpt2", "google-gemma-2-2b-it"), tmp_path, source_names=["a", "b"]
        ).folder,
    }
    assert len(folders) == 8


def _half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "name", ["tokens.npy", "rewards.npy", "start.npy", "prompt_start.npy", "valid.npy", "meta.json"]
)
@pytest.mark.parametrize("damage", [_half, Path.unlink, lambda path: path.write_bytes(b"\x00" * 200)])
def test_damage_is_mended(tmp_path, name, damage):
    store = encoded(tmp_path)
    right = [store.branch(0, column).tolist() for column in range(4)]
    damage(store.folder / name)
    assert TokenStore.open(store.folder) is None
    again = encoded(tmp_path)
    assert again.folder == store.folder
    assert [again.branch(0, column).tolist() for column in range(4)] == right


def test_a_second_call_encodes_nothing(tmp_path, monkeypatch):
    encoded(tmp_path)
    monkeypatch.setattr("fuserl.tokens.tokenize.encode_groups", lambda *args: pytest.fail("encoded again"))
    assert len(encoded(tmp_path)) == 3


def test_progress_is_told(tmp_path):
    told: list[int] = []
    encoded(tmp_path, kit.random_groups(300, 1, 1), source_names=["s0"], progress=told.append)
    assert told == sorted(told)
    assert told[-1] == 256


def test_two_writers_of_the_same_folder_both_end_well(tmp_path):
    """The slower one finds the folder in place and leaves it."""
    writers = [TokenWriter(tmp_path / "same", ["a", "b"]) for _ in range(2)]
    for writer in writers:
        writer.add(groups()[2], np.arange(4), [np.arange(5)], [0])
    stores = [writer.close() for writer in writers]
    assert [store.branch(0, 0).tolist() for store in stores] == [[0, 1, 2, 3, 4]] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["same"]


def _encode_in_a_process(folder: Path, tokenizer: str, barrier, results) -> None:
    made = load_template(
        real.PreTrainedTokenizerFast(tokenizer_file=tokenizer, eos_token="<|endoftext|>"), chat_template="plain"
    )
    data = kit.random_groups(200, 2, 2)
    barrier.wait(60)
    store = encode_dataset(data, made, folder, source_names=["s0", "s1"])
    results.put((store.folder.name, int(np.asarray(store.tokens, dtype=np.int64).sum())))


def test_two_processes_at_once(tmp_path):
    tokenizer = kit.shared_data() / "tokenizers/gpt2/tokenizer.json"
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(2), context.Queue()
    workers = [
        context.Process(target=_encode_in_a_process, args=(tmp_path, str(tokenizer), barrier, results))
        for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    first, second = results.get(timeout=60), results.get(timeout=60)
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert first == second
    assert [path.name for path in tmp_path.iterdir()] == [first[0]]
    assert json.loads((tmp_path / first[0] / "meta.json").read_text())["sources"] == ["s0", "s1"]
