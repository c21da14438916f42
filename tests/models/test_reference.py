"""The reference cache: content decides, only what is missing is computed, and neither kills nor company harm it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import subprocess
import time
from multiprocessing.context import ForkProcess
from pathlib import Path

import kit
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from fuserl.errors import FuserlError
from fuserl.models import reference_cache
from fuserl.models.reference import fill, weights_digest
from fuserl.models.reference_cache import Entry, ReferenceCache
from fuserl.models.scoring import per_token, score_batch, score_padded
from fuserl.records.schema import PromptGroup
from fuserl.tokens.collate import collate
from fuserl.tokens.store import TokenStore, TokenWriter, response_key


def open_cache(folder: Path, **other: str) -> ReferenceCache:
    return ReferenceCache(folder / "cache", **{"weights": "w", "dtype": "float64", "backend": "sdpa"} | other)


def fill_all(model, store: TokenStore, cache: ReferenceCache, used: np.ndarray | None = None, **options) -> np.ndarray:
    used = np.array(store.valid) if used is None else used
    return fill(model, store, used, cache, **{"max_tokens": 64, "backend": "sdpa"} | options)


def never(model, batch):
    raise AssertionError("nothing may be computed")


def written(folder: Path, groups: list[tuple[list[int], list[list[int]]]], *, untrained: int = 0) -> TokenStore:
    """A store of the given token ids."""
    writer = TokenWriter(folder, ["s0", "s1"])
    for prompt, branches in groups:
        group = kit.random_groups(1, 1, len(branches))[0]
        ids = [np.array(branch, np.int32) for branch in branches]
        writer.add(
            PromptGroup(str(prompt), group.prompt, group.responses),
            np.array(prompt, np.int32),
            ids,
            [untrained] * len(ids),
        )
    return writer.close()


def contents(path: Path) -> dict[bytes, float]:
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        found = dict(database.execute("SELECT key, logps FROM logps"))
    database.close()
    return found


# what is stored


def test_values_are_the_models_log_probs(tmp_path):
    store, model, cache = kit.token_store(tmp_path), kit.tiny_model(), open_cache(tmp_path)
    filled = fill_all(model, store, cache)
    with torch.no_grad():
        batch = collate(store, range(len(store)), np.array(store.valid))
        padded = score_padded(model, batch)
    assert_allclose(filled, padded[batch.row].numpy(), rtol=0, atol=1e-5)
    assert filled.dtype == np.float64
    assert (cache.hits, cache.misses) == (0, 12)
    assert cache.seconds > 0


@pytest.mark.parametrize("max_tokens", [1, 40, 10_000], ids=["a pack a group", "some packs", "one pack"])
def test_values_do_not_depend_on_the_packs(max_tokens, tmp_path):
    store, model = kit.token_store(tmp_path), kit.tiny_model()
    done: list[tuple[int, int]] = []
    filled = fill_all(
        model, store, open_cache(tmp_path), max_tokens=max_tokens, progress=lambda now, of: done.append((now, of))
    )
    assert done == [(number + 1, len(done)) for number in range(len(done))]
    assert_allclose(filled, fill_all(model, store, open_cache(tmp_path, weights="again")), rtol=0, atol=1e-6)


def test_unused_responses_are_zero_and_cost_nothing(tmp_path):
    store, cache = kit.token_store(tmp_path), open_cache(tmp_path)
    used = np.zeros_like(store.valid)
    assert_array_equal(fill_all(kit.tiny_model(), store, cache, used, score=never), np.zeros(used.shape))
    used[1, 2] = True
    filled = fill_all(kit.tiny_model(), store, cache, used)
    assert (filled != 0).tolist() == used.tolist()
    assert (cache.hits, cache.misses) == (0, 1)


def test_identical_responses_are_one_entry(tmp_path):
    store, cache = written(tmp_path / "store", [([5, 6], [[7, 8], [9, 2], [7, 8]])]), open_cache(tmp_path)
    filled = fill_all(kit.tiny_model(), store, cache)
    assert filled[0, 0] == filled[0, 2] != filled[0, 1]
    assert cache.misses == len(contents(cache.path)) == 2


def test_the_models_mode_comes_back_and_no_gradient_is_kept(tmp_path):
    store, model = kit.token_store(tmp_path), kit.tiny_model().train()
    modes = []
    fill_all(
        model, store, open_cache(tmp_path), score=lambda m, batch: modes.append(m.training) or score_batch(m, batch)
    )
    assert modes
    assert not any(modes)
    assert model.training
    assert all(weight.grad is None for weight in model.parameters())


# what hits and what misses


def test_a_second_fill_computes_nothing(tmp_path):
    store, model = kit.token_store(tmp_path), kit.tiny_model()
    first = open_cache(tmp_path)
    filled = fill_all(model, store, first)
    assert_array_equal(fill_all(model, store, first, score=never), filled)
    assert first.hits == 12
    first.close()
    again = open_cache(tmp_path)
    assert_array_equal(fill_all(model, store, again, score=never), filled)
    assert (again.hits, again.misses) == (12, 0)


@pytest.mark.parametrize("other", [{"weights": "other"}, {"dtype": "bfloat16"}, {"backend": "flex"}], ids=str)
def test_weights_dtype_and_kernel_separate_entries(other, tmp_path):
    store, model = kit.token_store(tmp_path), kit.tiny_model()
    fill_all(model, store, open_cache(tmp_path))
    cache = open_cache(tmp_path, **other)
    fill_all(model, store, cache)
    assert (cache.hits, cache.misses) == (0, 12)


def test_content_not_place_addresses_an_entry(tmp_path):
    """Order, subsets and copies of the data find what another order left."""
    groups = [([5, 6], [[7, 8], [9, 2]]), ([3, 4, 5], [[7, 8, 2], [10, 11]]), ([20], [[21, 22], [7, 8]])]
    model, cache = kit.tiny_model(), open_cache(tmp_path)
    filled = fill_all(model, written(tmp_path / "a", groups), cache)
    turned = written(tmp_path / "b", [(prompt, branches[::-1]) for prompt, branches in groups[::-1]])
    assert_array_equal(fill_all(model, turned, cache, score=never), filled[::-1, ::-1])
    some = written(tmp_path / "c", [groups[1], groups[1]])
    assert_array_equal(fill_all(model, some, cache, score=never), filled[[1, 1]])


def test_one_more_source_computes_only_that_source(tmp_path):
    store, model, cache = kit.token_store(tmp_path, kit.random_groups(4, 3, 2)), kit.tiny_model(), open_cache(tmp_path)
    two = np.array(store.valid & (np.asarray(store.source) < 2))
    before = fill_all(model, store, cache, two)
    seen = []

    def counted(m, batch):
        seen.extend(batch.source[batch.row >= 0].tolist())
        return score_batch(m, batch)

    after = fill_all(model, store, cache, score=counted)
    assert set(seen) == {2}
    assert (cache.hits, cache.misses) == (16, 16 + 8)
    assert_array_equal(after[two], before[two])


def test_the_key_holds_all_that_changes_the_number_and_nothing_else():
    ids = np.array
    key = response_key(ids([1, 2]), ids([3, 4]), 0)
    assert key == response_key(ids([1, 2], np.int64), ids([3, 4], np.int32), 0)
    others = [
        response_key(ids([1]), ids([2, 3, 4]), 0),  # the boundary
        response_key(ids([1, 2, 3]), ids([4]), 0),
        response_key(ids([1, 2]), ids([3, 4]), 1),  # the trained span
        response_key(ids([1, 2]), ids([3]), 0),  # truncation
        response_key(ids([2, 1]), ids([3, 4]), 0),  # the prompt
        response_key(ids([], np.int32), ids([1, 2, 3, 4]), 0),
        response_key(ids([1, 2]), ids([3, 4, 0]), 0),
    ]
    assert len({key, *others}) == len(others) + 1


def test_truncated_and_whole_responses_do_not_mix(tmp_path):
    store = written(tmp_path / "store", [([5, 6], [[7, 8, 9, 10], [11, 2]])])
    model, cache = kit.tiny_model(), open_cache(tmp_path)
    whole, cut = fill_all(model, store, cache), fill_all(model, store, cache, truncate=4)
    assert whole[0, 0] != cut[0, 0]
    assert whole[0, 1] == cut[0, 1]
    assert (cache.hits, cache.misses) == (1, 3)
    short = written(tmp_path / "short", [([5, 6], [[7, 8], [11, 2]])])
    assert_array_equal(fill_all(model, short, cache, score=never), cut)


def test_untrained_tokens_are_context_only(tmp_path):
    model, cache = kit.tiny_model(), open_cache(tmp_path)
    trained = fill_all(model, written(tmp_path / "a", [([5, 6], [[7, 8, 9]])]), cache)
    context = fill_all(model, written(tmp_path / "b", [([5, 6], [[7, 8, 9]])], untrained=1), cache)
    first = fill_all(model, written(tmp_path / "c", [([5, 6], [[7]])]), cache)
    assert_allclose(trained, context + first, rtol=0, atol=1e-6)
    assert cache.misses == 3


def test_buffers_that_are_saved_with_the_weights_count():
    model, digests = kit.tiny_model(), []
    for value in (0.0, 1.0):
        model.register_buffer("correction", torch.tensor(value))
        digests.append(weights_digest(model))
    assert digests[0] != digests[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_the_digest_tells_weights_apart(dtype):
    model = kit.tiny_model(dtype=dtype)
    digest = weights_digest(model)
    assert digest == weights_digest(kit.tiny_model(dtype=dtype))
    assert digest != weights_digest(model.to(torch.float16))
    other = kit.tiny_model(dtype=dtype)
    other.model.layers[1].mlp.up_proj.weight.data[3, 4] *= -1
    assert digest != weights_digest(other)


def test_the_digest_tells_configurations_apart(tmp_path):
    """The same weights under another rotary base give other numbers."""
    store, digests, values = kit.token_store(tmp_path), [], []
    for base in (1e4, 1e6):
        model = kit.tiny_model()
        inverse = base ** -(torch.arange(0, 8, 2) / 8)
        model.config.rope_parameters = {"rope_type": "default", "rope_theta": base}
        model.model.rotary_emb.inv_freq.copy_(inverse)
        digests.append(weights_digest(model))
        values.append(fill_all(model, store, open_cache(tmp_path, weights=str(base))))
    assert abs(values[0] - values[1]).max() > 1e-3
    assert digests[0] != digests[1]


# kills and company


def started(tmp_path: Path, store: TokenStore, seconds: float, columns: str = "0,1", result: str = "0") -> ForkProcess:
    """A job of its own process, which has everything imported already."""
    place = (tmp_path / "cache", store.folder, seconds, columns, tmp_path / f"{result}.npy")
    process = multiprocessing.get_context("fork").Process(target=filled_slowly, args=place, daemon=True)
    process.start()
    return process


def filled_slowly(folder: Path, store_folder: Path, seconds: float, columns: str, result: Path) -> None:
    """One pack a group, and a pause before each, so that a kill or another process comes in between."""
    store = TokenStore(store_folder)
    cache = ReferenceCache(folder, weights="w", dtype="float64", backend="sdpa")

    def slowly(model, batch):
        time.sleep(seconds)
        return score_batch(model, batch)

    used = np.zeros_like(store.valid)
    used[:, [int(column) for column in columns.split(",")]] = True
    filled = fill(kit.tiny_model(), store, used, cache, max_tokens=1, backend="sdpa", score=slowly)
    np.save(result, filled)
    result.with_suffix(".txt").write_text(f"{cache.hits} {cache.misses}")


def wait_for_entries(path: Path, count: int, process: ForkProcess) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.is_alive():
        if path.exists():
            try:
                database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
                (found,) = database.execute("SELECT count(*) FROM logps").fetchone()
                database.close()
                if found >= count:
                    return
            except sqlite3.OperationalError:  # the table is not there yet
                pass
        time.sleep(0.02)
    process.kill()
    pytest.fail(f"the worker never wrote {count} entries")


def test_a_killed_fill_is_taken_up_where_it_was(tmp_path):
    store, model = kit.token_store(tmp_path, kit.random_groups(40, 1, 2)), kit.tiny_model()
    path = open_cache(tmp_path).path
    process = started(tmp_path, store, 0.03)
    wait_for_entries(path, 6, process)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    there = contents(path)
    assert 6 <= len(there) < 80
    assert len(there) % 2 == 0, "packs of two responses are written whole or not at all"
    cache = open_cache(tmp_path)
    filled = fill_all(model, store, cache)
    assert (cache.hits, cache.misses) == (len(there), 80 - len(there))
    assert_allclose(filled, fill_all(model, store, open_cache(tmp_path, weights="alone")), rtol=0, atol=1e-6)


OVERLAPPING = ["0,1,2", "1,2,3", "0,3"]  # columns of three jobs


def finished(tmp_path: Path, processes: dict[int, ForkProcess]) -> list[tuple[int, ...]]:
    """(hits, misses) of each."""
    for process in processes.values():
        process.join(timeout=120)
    assert [process.exitcode for process in processes.values()] == [0] * len(processes)
    return [tuple(map(int, (tmp_path / f"{job}.txt").read_text().split())) for job in processes]


def assert_results(tmp_path: Path, store: TokenStore, jobs: dict[int, str]) -> None:
    """Every job ended with the numbers that are in the cache, and these are right."""
    shared = fill_all(kit.tiny_model(), store, open_cache(tmp_path), score=never)
    for number, columns in jobs.items():
        mine = [int(column) for column in columns.split(",")]
        assert_array_equal(np.load(tmp_path / f"{number}.npy")[:, mine], shared[:, mine])
    alone = fill_all(kit.tiny_model(), store, open_cache(tmp_path, weights="alone"))
    assert_allclose(shared, alone, rtol=0, atol=1e-6)


def test_three_processes_share_the_work(tmp_path):
    """Each waits for what another computes: nothing is computed twice, and all end with the same numbers."""
    store = kit.token_store(tmp_path, kit.random_groups(20, 2, 2))
    jobs = dict(enumerate(OVERLAPPING))
    processes = {job: started(tmp_path, store, 0.02, columns, str(job)) for job, columns in jobs.items()}
    counts = finished(tmp_path, processes)
    assert sum(misses for _, misses in counts) == 80, counts
    assert [hits + misses for hits, misses in counts] == [60, 60, 40]
    assert len(contents(open_cache(tmp_path).path)) == 80
    assert_results(tmp_path, store, jobs)


@pytest.mark.parametrize("after", [1, 50], ids="killed after {} entries".format)
def test_what_a_killed_process_had_claimed_is_taken_over(after, tmp_path):
    store = kit.token_store(tmp_path, kit.random_groups(30, 2, 2))
    path = open_cache(tmp_path).path
    jobs = dict(enumerate(OVERLAPPING))
    others = {job: started(tmp_path, store, 0.03, columns, str(job)) for job, columns in jobs.items()}
    victim = others.pop(0)
    wait_for_entries(path, after, victim)
    claimed = "SELECT count(*) FROM claims WHERE owner LIKE ?"
    cache = open_cache(tmp_path)
    while victim.is_alive() and cache.database.execute(claimed, [f"%|{victim.pid}|%"]).fetchone() == (0,):
        time.sleep(0.001)
    victim.kill()  # it stays a zombie until it is asked how it ended
    finished(tmp_path, others)
    assert not (tmp_path / "0.npy").exists()
    victim.join()
    assert len(contents(path)) == 120
    assert cache.database.execute("SELECT COUNT(*) FROM claims").fetchone() == (0,), "no claim is left behind"
    assert_results(tmp_path, store, {job: columns for job, columns in jobs.items() if job > 0})


def test_who_waits_says_so_once(tmp_path):
    """Everything is claimed by another, which dies while it is waited for."""
    store, cache = kit.token_store(tmp_path), open_cache(tmp_path)
    other = subprocess.Popen(["sleep", "60"])
    owner = f"{reference_cache._machine()}|{other.pid}|{reference_cache._started(other.pid)}|x"
    claim = [(bytes(key), owner, time.time()) for key in np.asarray(store.keys)[np.asarray(store.valid)]]
    cache.database.executemany("INSERT INTO claims VALUES (?, ?, ?)", claim)
    told = []

    def waiting(count: int) -> None:
        told.append(count)
        other.kill()  # and nobody reaps it yet

    filled = fill_all(kit.tiny_model(), store, cache, waiting=waiting)
    other.wait()
    assert told == [12]
    assert cache.misses == 12
    assert (filled < 0).all()


def test_claims_of_the_living_hold_and_others_do_not(tmp_path):
    mine, other = open_cache(tmp_path), open_cache(tmp_path)
    assert other.claim([b"a", b"b"]).mine == {b"a", b"b"}
    assert mine.claim([b"a", b"c"]).mine == {b"c"}
    other.put([Entry(b"a", -1.0, 2)])
    assert mine.claim([b"a", b"b"]) == (set(), {b"a": -1.0})
    machine, pid, started_at, _ = other.owner.split("|")
    for gone in (f"{machine}|{pid}|{started_at}0|x", f"{machine}|{2**22 + 1}|1|x"):  # a later process, and none
        mine.database.execute("UPDATE claims SET owner = ? WHERE key = ?", (gone, b"b"))
        assert mine.claim([b"b"]).mine == {b"b"}
    for silent in ("elsewhere|1|1|x", other.owner):  # another machine's, and a stopped process's
        mine.database.execute("UPDATE claims SET owner = ?, beat = ? WHERE key = ?", (silent, time.time(), b"b"))
        assert mine.claim([b"b"]).mine == set()
        mine.database.execute("UPDATE claims SET beat = beat - 121 WHERE key = ?", (b"b",))
        assert mine.claim([b"b"]).mine == {b"b"}


def test_claims_stay_alive_while_a_long_pack_is_computed(tmp_path, monkeypatch):
    monkeypatch.setattr(reference_cache, "BEAT", 0.01)
    cache = open_cache(tmp_path)
    with cache.claiming():
        cache.claim([b"a"])
        cache.database.execute("UPDATE claims SET beat = 0")
        deadline = time.monotonic() + 30
        while cache.database.execute("SELECT beat FROM claims").fetchone() == (0.0,):
            assert time.monotonic() < deadline, "no sign of life"
            time.sleep(0.01)
    assert cache.database.execute("SELECT COUNT(*) FROM claims").fetchone() == (0,)


def test_whoever_comes_second_takes_the_number_that_stands(tmp_path):
    """A claim that was taken over while its owner was only slow: both go on with the same sums."""
    store, cache = written(tmp_path / "store", [([5, 6], [[7, 8]])]), open_cache(tmp_path)

    def slow(model, batch):
        open_cache(tmp_path).put([Entry(bytes(store.keys[0, 0]), -123.0, 2)])
        return score_batch(model, batch)

    assert fill_all(kit.tiny_model(), store, cache, score=slow).tolist() == [[-123.0]]


def test_a_whole_split_is_recalled_without_looking_at_entries(tmp_path):
    store, model = kit.token_store(tmp_path, kit.random_groups(6, 2, 2)), kit.tiny_model()
    first = fill_all(model, store, open_cache(tmp_path))
    cache = open_cache(tmp_path)
    cache.database.execute("DELETE FROM logps")
    assert_array_equal(fill_all(model, store, cache, score=never), first)
    assert (cache.hits, cache.misses) == (24, 0)
    fewer = np.array(store.valid)
    fewer[0, 0] = False
    with pytest.raises(AssertionError, match="nothing may be computed"):
        fill_all(model, store, cache, fewer, score=never)


@pytest.mark.parametrize("damage", ["emptied", "cut", "a bit turned"])
def test_damaged_sums_of_a_split_are_made_anew(damage, tmp_path):
    store, model = kit.token_store(tmp_path), kit.tiny_model()
    cache = open_cache(tmp_path)
    first = fill_all(model, store, cache)
    (path,) = cache.splits.iterdir()
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes({"emptied": b"", "cut": path.read_bytes()[:-8], "a bit turned": bytes(content)}[damage])
    assert_array_equal(fill_all(model, store, cache, score=never), first)
    assert cache.recall(path.stem) is not None


def test_log_probs_a_token_are_kept_on_request(tmp_path):
    store, model = kit.token_store(tmp_path, kit.random_groups(4, 2, 2)), kit.tiny_model()
    cache = open_cache(tmp_path)
    sums = fill_all(model, store, cache)
    key = bytes(store.keys[1, 2])
    assert cache.tokens([key]) == {}
    seen = []

    def tokens(model, batch):
        seen.append(per_token(model, batch, backend="sdpa", rows=4096))
        return seen[-1]

    again = fill_all(model, store, cache, per_token=tokens, max_tokens=10_000)
    assert cache.misses == 32, "sums alone are not enough"
    assert_array_equal(again, sums, "the sums that were there stand")
    order = [bytes(key) for key in np.asarray(store.keys)[np.asarray(store.valid)]]
    kept = cache.tokens(order)
    assert len(kept[key]) == store.num_tokens[1, 2]
    assert_allclose(kept[key].sum(dtype=np.float64), sums[1, 2], rtol=0, atol=1e-6)
    assert_array_equal(np.concatenate([kept[key] for key in order]), torch.cat(seen).numpy(), "to the bit")
    fill_all(model, store, cache, per_token=never)
    assert cache.misses == 32


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("size", [0, 1, 7])
def test_log_probs_a_token_come_back_as_they_were(dtype, size, tmp_path):
    cache, tokens = open_cache(tmp_path), np.random.default_rng(0).normal(size=size).astype(dtype)
    cache.put([Entry(b"a", float(tokens.sum()), size, tokens)])
    assert_array_equal(cache.tokens([b"a"])[b"a"], tokens)


def test_the_count_is_of_the_tokens_that_were_used(tmp_path):
    store = written(tmp_path / "store", [([5, 6], [[7, 8, 9, 10], [11, 2]])], untrained=1)
    cache = open_cache(tmp_path)
    fill_all(kit.tiny_model(), store, cache, truncate=4)
    assert sorted(cache.database.execute("SELECT num_tokens FROM logps")) == [(1,), (1,)]


def _open_together(folder: Path, gate, answers) -> None:
    gate.wait()
    try:
        open_cache(folder).put([Entry(os.getpid().to_bytes(8, "big"), 1.0, 1)])
        answers.put(None)
    except BaseException as error:
        answers.put(repr(error))


def test_processes_may_create_the_file_at_the_same_moment(tmp_path):
    context, count = multiprocessing.get_context("fork"), 4
    for attempt in range(5):
        gate, answers = context.Barrier(count), context.Queue()
        folder = tmp_path / str(attempt)
        processes = [context.Process(target=_open_together, args=(folder, gate, answers)) for _ in range(count)]
        for process in processes:
            process.start()
        assert [answers.get(timeout=30) for _ in processes] == [None] * count
        for process in processes:
            process.join()
        assert len(contents(open_cache(folder).path)) == count


def test_the_first_writer_of_an_entry_stands(tmp_path):
    one, two = open_cache(tmp_path), open_cache(tmp_path)
    one.put([Entry(b"a", -1.0, 2)])
    two.put([Entry(b"a", -1.5, 2), Entry(b"b", -3.0, 4)])
    assert one.get([b"a", b"b", b"c"]) == two.get([b"c", b"b", b"a"]) == {b"a": -1.0, b"b": -3.0}


def test_a_transaction_that_breaks_leaves_nothing(tmp_path):
    def rows():
        yield Entry(b"a", -1.0, 2)
        raise KeyboardInterrupt

    cache = open_cache(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        cache.put(rows())
    assert cache.get([b"a"]) == {}
    cache.put([Entry(b"b", -2.0, 1)])
    assert cache.get([b"a", b"b"]) == {b"b": -2.0}


def test_many_keys_are_read_in_parts(tmp_path):
    cache = open_cache(tmp_path)
    rows = [Entry(number.to_bytes(4, "big"), float(-number), 1) for number in range(2345)]
    cache.put(rows)
    assert cache.get([row.key for row in rows]) == {row.key: row.logps for row in rows}


def test_a_damaged_file_is_an_error_with_a_way_out(tmp_path):
    path = open_cache(tmp_path).path
    for leftover in path.parent.iterdir():
        leftover.unlink()
    path.write_bytes(b"this is no database" * 100)
    with pytest.raises(FuserlError, match="reference cache cannot be opened") as caught:
        open_cache(tmp_path)
    assert "delete the file" in str(caught.value)
    assert path.name in str(caught.value)


def test_damage_that_shows_later_is_an_error_with_a_way_out(tmp_path):
    store, cache = kit.token_store(tmp_path), open_cache(tmp_path)
    fill_all(kit.tiny_model(), store, cache)
    cache.close()
    content = bytearray(cache.path.read_bytes())
    content[4096:] = b"x" * (len(content) - 4096)
    cache.path.write_bytes(content)
    with pytest.raises(FuserlError, match="reference cache cannot be (opened|used)") as caught:
        fill_all(kit.tiny_model(), store, open_cache(tmp_path), np.array(store.valid) & (np.asarray(store.source) < 1))
    assert "delete the file" in str(caught.value)


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(FuserlError, match="reference cache cannot be opened"):
        open_cache(tmp_path)


def test_a_flipped_bit_is_computed_again_or_told_and_never_a_value(tmp_path, capfd):
    """Every 97th bit of the page that holds the entries."""
    rng = np.random.default_rng(0)
    rows = [Entry(bytes([number]) * 16, float(rng.normal()), 3, rng.normal(size=3)) for number in range(1, 21)]
    cache = open_cache(tmp_path)
    cache.put(rows)
    cache.close()
    whole, truth = cache.path.read_bytes(), {row.key: row for row in rows}
    place = whole.index(rows[0].key) // 4096 * 4096
    again = 0
    for bit in range(place * 8, (place + 4096) * 8, 97):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        cache.path.write_bytes(content)
        try:
            cache = open_cache(tmp_path)
            found = cache.get(truth, with_tokens=True)
            tokens = cache.tokens(found)
            cache.close()
        except (FuserlError, sqlite3.DatabaseError):
            continue
        again += len(found) < len(rows)
        assert found == {key: truth[key].logps for key in found}
        for key, values in tokens.items():
            assert_array_equal(values, truth[key].tokens)
    assert again > 10
    assert "damaged reference log-probs are computed again" in capfd.readouterr().err
