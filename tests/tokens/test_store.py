"""The token cache: what it gives back, what its name depends on, damage, two processes at once."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path

import kit
import numpy as np
import pytest
import real_tokenizers as real

from fuserl.errors import FuserlError
from fuserl.records.manifest import digest_of
from fuserl.records.schema import Message, PromptGroup, Response
from fuserl.tokens import cores
from fuserl.tokens import store as store_module
from fuserl.tokens.store import TokenStore, TokenWriter
from fuserl.tokens.templates import load_template
from fuserl.tokens.tokenize import encode_dataset, encode_group, encode_groups

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


def encoded(folder: Path, data: list[PromptGroup] | None = None, made=None, **kwargs) -> TokenStore:
    data = data or groups()
    return encode_dataset(data, made or real.template("gpt2", QWEN), folder, content=digest_of(data), **kwargs)


def test_columns(tmp_path):
    store = encoded(tmp_path)
    nan = np.nan
    assert len(store) == 3
    assert list(store.ids) == ["p0", "p1", "p2"]
    assert [store.domain_names[code] for code in store.domain] == ["math", "general", "general"]
    assert store.sources == ["a", "b"], "sorted, though `b` comes first"
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
    store = encoded(tmp_path, one)
    assert len(store.tokens) == int(store.prompt_tokens[0] + store.branch_tokens[0, 0])


def test_the_folder_holds_no_pickle_and_nothing_half_written(tmp_path):
    store = encoded(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [store.folder.name]
    assert {path.suffix for path in store.folder.iterdir()} == {".npy", ".json"}
    for path in store.folder.glob("*.npy"):
        np.load(path, allow_pickle=False)


def test_the_name_depends_on_content_template_and_tokenizer(tmp_path):
    first = encoded(tmp_path).folder
    assert encoded(tmp_path).folder == first
    other = groups()
    other[1] = PromptGroup("p1", (Message("user", "second?"),), other[1].responses)
    folders = {
        first,
        encoded(tmp_path, other).folder,
        encoded(tmp_path, groups()[:2]).folder,
        encoded(tmp_path, groups()[::-1]).folder,
        encoded(tmp_path, made=real.template("falcon", QWEN)).folder,
        encoded(tmp_path, made=real.template("gpt2", "google-gemma-2-2b-it")).folder,
    }
    assert len(folders) == 6


def _half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _blank(path: Path) -> None:
    """As after a power cut: the right size, but zeros."""
    content = path.read_bytes()
    kept = min(128, len(content) // 2)
    path.write_bytes(content[:kept] + bytes(len(content) - kept))


@pytest.mark.parametrize(
    "name", ["tokens.npy", "rewards.npy", "start.npy", "prompt_start.npy", "valid.npy", "meta.json"]
)
@pytest.mark.parametrize("damage", [_half, _empty, _blank, Path.unlink, lambda path: path.write_bytes(b"\x00" * 200)])
def test_damage_is_mended(tmp_path, name, damage):
    store = encoded(tmp_path)
    right = [store.branch(0, column).tolist() for column in range(4)]
    damage(store.folder / name)
    assert TokenStore.open(store.folder) is None
    again = encoded(tmp_path)
    assert again.folder == store.folder
    assert [again.branch(0, column).tolist() for column in range(4)] == right


@pytest.mark.parametrize("share", [0.1, 0.5, 0.77, 0.999])
@pytest.mark.parametrize("name", ["tokens.npy", "keys.npy", "rewards.npy"])
def test_one_flipped_bit_is_seen(name, share, tmp_path):
    store = encoded(tmp_path)
    path = store.folder / name
    content = bytearray(path.read_bytes())
    content[int(len(content) * share)] ^= 1
    path.write_bytes(content)
    assert TokenStore.open(store.folder) is None


def test_of_large_arrays_blocks_are_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "WHOLE", 0)
    store = encoded(tmp_path)
    assert TokenStore.open(store.folder) is not None
    _blank(store.folder / "tokens.npy")
    assert TokenStore.open(store.folder) is None


def test_foreign_meta_is_mended(tmp_path):
    store = encoded(tmp_path)
    (store.folder / "meta.json").write_text("[]")
    assert TokenStore.open(store.folder) is None
    assert len(encoded(tmp_path)) == 3


def test_a_failed_encoding_leaves_nothing(tmp_path):
    def broken():
        yield from groups()
        raise FuserlError("a bad row")

    with pytest.raises(FuserlError, match="a bad row"):
        encode_dataset(broken(), real.template("gpt2", QWEN), tmp_path, content="x")
    assert not list(tmp_path.iterdir())


def test_a_source_beyond_a_given_numbering_is_named(tmp_path):
    with pytest.raises(FuserlError, match="`b` is not among") as caught, TokenWriter(tmp_path / "x", ["a"]) as writer:
        writer.add(groups()[2], np.arange(4), [np.arange(5)], [0])
    assert caught.value.where == "group `p2`"
    assert not list(tmp_path.iterdir())


def _write_and_die(folder: Path) -> None:
    writer = TokenWriter(folder, ["a", "b"])
    writer.add(groups()[2], np.arange(4), [np.arange(5)], [0])
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_writer_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    killed = multiprocessing.get_context("fork").Process(target=_write_and_die, args=(tmp_path / "same",))
    killed.start()
    killed.join(30)
    assert len(list(tmp_path.iterdir())) == 1
    assert TokenStore.open(tmp_path / "same") is None
    one, two = TokenWriter(tmp_path / "same"), TokenWriter(tmp_path / "same")
    assert sorted(tmp_path.iterdir()) == sorted([one.part, two.part])
    one.close()
    two.close()
    assert [path.name for path in tmp_path.iterdir()] == ["same"]


def test_use_does_not_change_the_tokenizers_digest(tmp_path):
    content = json.loads((kit.shared_data() / "tokenizers/gpt2/tokenizer.json").read_text())
    content["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    made = load_template(
        real.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"), eos_token="<|endoftext|>"),
        chat_template="plain",
    )
    first, second = (encoded(tmp_path / "cache", [real.group("a", "b " * 50)], made) for _ in range(2))
    assert first.folder == second.folder
    assert first.num_tokens.max() > 8, "nothing is truncated"


@pytest.mark.parametrize("batch", [1, 2, 128])
def test_batches_do_not_change_the_tokens(batch):
    made, data = real.template("gpt2", QWEN), [*groups(), *kit.random_groups(5)]
    for group, one in encode_groups(data, made, batch):
        alone = encode_group(group, made)
        assert one.prompt.tolist() == alone.prompt.tolist()
        assert [r.tolist() for r in one.responses] == [r.tolist() for r in alone.responses]
        assert one.untrained == alone.untrained


def test_sources_are_counted_in_the_list_of_two_splits(tmp_path):
    store = encoded(tmp_path)
    both = store.numbered(["a", "aa", "b"])
    np.testing.assert_array_equal(both.source, [[2, 0, 2, 0], [0, 2, -1, -1], [2, -1, -1, -1]])
    assert store.sources == ["a", "b"]
    assert store.numbered(["a", "b"]) is store


def test_texts_come_back_in_any_order(tmp_path):
    data = [replace(group, id=name) for group, name in zip(groups(), ("", "数学 🙂", "p"), strict=True)]
    ids = encoded(tmp_path, data).ids
    assert list(ids) == ["", "数学 🙂", "p"]
    assert list(ids.take(np.array([2, 0]))) == ["p", ""]
    assert (ids[1], list(ids[1:])) == ("数学 🙂", ["数学 🙂", "p"])


def _bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


def test_opening_reads_some_blocks_of_large_arrays_not_all_of_them(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "WHOLE", 10_000_000)
    writer = TokenWriter(tmp_path / "large", ["a", "b"])
    writer.add(groups()[2], np.arange(4), [np.arange(30_000_000)], [0])
    folder = writer.close().folder
    before = _bytes_read()
    assert TokenStore.open(folder) is not None
    assert _bytes_read() - before < 2_000_000, "of 120 million"


def test_nothing_is_a_store_too(tmp_path):
    store = encode_dataset(iter(()), real.template("gpt2", QWEN), tmp_path, content="none")
    assert (len(store), store.rewards.shape, store.sources) == (0, (0, 1), [])
    assert TokenStore.open(store.folder) is not None


def test_a_users_own_setting_of_the_tokenizers_threads_wins(monkeypatch):
    for value in ("true", "false"):
        monkeypatch.setenv(cores.SWITCH, value)
        with cores.all_cores():
            assert os.environ[cores.SWITCH] == value
    monkeypatch.setenv(cores.SWITCH, cores.OURS)
    with cores.all_cores():
        assert os.environ[cores.SWITCH] == "true"
    assert os.environ[cores.SWITCH] == cores.OURS


def test_a_second_call_encodes_nothing(tmp_path, monkeypatch):
    encoded(tmp_path)
    monkeypatch.setattr("fuserl.tokens.tokenize.encode_groups", lambda *args: pytest.fail("encoded again"))
    assert len(encoded(tmp_path)) == 3


def test_progress_is_told(tmp_path):
    told: list[None] = []
    encoded(tmp_path, kit.random_groups(300, 1, 1), progress=lambda: told.append(None))
    assert len(told) == 3, "once a batch"


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
    store = encoded(folder, data, made)
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
