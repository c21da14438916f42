"""A model that is loaded in pieces is the model, of which no process ever held the whole; and it fills the same cache."""

from __future__ import annotations

import multiprocessing
import sqlite3
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kit
import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM
from transformers.models import llama, mixtral

from fuserl.errors import FuserlError
from fuserl.models import reference_cache
from fuserl.models.cut_loading import load_cut_up
from fuserl.models.load import load_policy
from fuserl.models.reference import fill, weights_digest
from fuserl.models.reference_cache import Entry, ReferenceCache
from fuserl.models.reference_together import fill_together
from fuserl.models.scoring import per_token, score_batch
from fuserl.models.sharding import whole

CPU = torch.device("cpu")
LORA = {"r": 2, "target_modules": ["q_proj", "down_proj"]}


def over(count: int, folder: Path, function: Callable, *arguments: Any) -> list[Any]:
    """What `function(mesh, *arguments)` gives in each of so many processes."""
    context = multiprocessing.get_context("fork")
    ends = [context.Pipe(duplex=False) for _ in range(count)]
    meeting = folder / f"meeting{len(list(folder.glob('meeting*')))}"
    ranks = [
        context.Process(target=_rank, args=(rank, count, str(meeting), end, function, arguments))
        for rank, (_, end) in enumerate(ends)
    ]
    for rank in ranks:
        rank.start()
    for _, end in ends:
        end.close()
    found = [there.recv() for there, _ in ends]
    for rank in ranks:
        rank.join()
    return found


def _rank(rank: int, count: int, meeting: str, end: Any, function: Callable, arguments: tuple) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=count)
    torch.manual_seed(0)
    end.send(function(init_device_mesh("cpu", (count,)), *arguments))
    torch.distributed.destroy_process_group()


def saved(folder: Path, name: str = "llama", *, dtype: torch.dtype = torch.float64, **how: Any) -> Path:
    kit.tiny_model(name, dtype).save_pretrained(folder, **how)
    return folder


def described(model: Any) -> dict[str, tuple]:
    """All weights and buffers: bytes, kind, whether it is trained."""
    found = {}
    for name, part in [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]:
        full = part.full_tensor() if isinstance(part, DTensor) else part
        found[name] = (full.detach().double().numpy().tobytes(), full.dtype, part.requires_grad)
    return found


def in_pieces(mesh: Any, path: Path, more: dict[str, Any]) -> tuple[dict[str, tuple], str, bool, list[int]]:
    model = load_cut_up(str(path), mesh, device=CPU, **more)
    parts = list(model.parameters())
    held = [sum(part.to_local().nbytes for part in parts), sum(part.nbytes for part in parts)]
    return described(model), weights_digest(model), all(isinstance(part, DTensor) for part in parts), held


def assert_the_same(path: Path, tmp_path: Path, **more: Any) -> None:
    torch.manual_seed(0)
    alone = load_policy(str(path), **more)
    assert any(weight.requires_grad for weight in alone.parameters())
    for found, digest, all_cut, (mine, every) in over(2, tmp_path, in_pieces, path, more):
        assert found == described(alone)
        assert digest == weights_digest(alone)
        assert all_cut
        assert mine <= 0.6 * every


@pytest.mark.parametrize("name", kit.CONFIGS)
def test_weights_buffers_and_digest_of_every_architecture(name, tmp_path):
    assert_the_same(saved(tmp_path / "model", name, max_shard_size="30KB"), tmp_path)


@pytest.mark.parametrize(
    "more",
    [
        {"dtype": "bfloat16"},
        {"dtype": "float32", "checkpointing": "full"},
        {"lora": LORA, "dtype": "bfloat16"},
        {"lora": LORA | {"init_lora_weights": "pissa"}},  # reads the weights, so the first process loads them
        {"lora": LORA | {"modules_to_save": ["norm"]}},
    ],
    ids=str,
)
def test_dtypes_and_adapters(more, tmp_path):
    assert_the_same(saved(tmp_path / "model", dtype=torch.float32), tmp_path, **more)


def test_tied_weights_stay_tied(tmp_path):
    config = llama.LlamaConfig(**kit.CONFIGS["llama"]().to_diff_dict() | {"tie_word_embeddings": True})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    assert_the_same(tmp_path / "model", tmp_path)


def test_what_files_do_not_hold_weight_by_weight(tmp_path):
    """An adapter that is merged, and experts that are one tensor in memory."""
    base = saved(tmp_path / "base", dtype=torch.float32)
    adapted = load_policy(str(base), lora=LORA | {"init_lora_weights": False})
    adapted.save_pretrained(tmp_path / "adapter")
    assert_the_same(tmp_path / "adapter", tmp_path)
    assert all(weight.requires_grad for weight in load_policy(str(tmp_path / "adapter")).parameters())
    shape = kit.CONFIGS["llama"]().to_diff_dict()
    config = mixtral.MixtralConfig(**shape | {"num_local_experts": 2, "model_type": "mixtral"})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "experts")
    assert_the_same(tmp_path / "experts", tmp_path)


def test_a_damaged_file_is_told_as_without_pieces(tmp_path):
    folder = saved(tmp_path / "model")
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:3000])
    (told,) = over(1, tmp_path, _told, folder)
    assert "cannot be loaded" in told


def _told(mesh: Any, folder: Path) -> str:
    with pytest.raises(FuserlError) as caught:
        load_cut_up(str(folder), mesh, device=CPU)
    return str(caught.value)


class Alive(TorchDispatchMode):
    """Most bytes of tensors that were in memory at once."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        for leaf in tree_leaves(out):
            if type(leaf) is torch.Tensor and leaf.device.type == "cpu":
                storage = leaf.untyped_storage()
                key = storage._cdata
                if key not in self.sizes:
                    self.sizes[key] = storage.nbytes()
                    weakref.finalize(storage, self.sizes.pop, key, None)
                self.most = max(self.most, sum(self.sizes.values()))
        return out


def _most(mesh: Any, folder: Path, load: Callable) -> tuple[int, int]:
    with Alive() as alive:
        model = load(str(folder), mesh, device=CPU)
    return alive.most, sum(weight.nbytes for weight in model.parameters())


def test_no_process_ever_holds_the_whole_model(tmp_path):
    """Beside its share, one layer (whole, and cut up) or what is in no layer."""
    shape = kit.CONFIGS["llama"]().to_diff_dict() | {"num_hidden_layers": 24, "intermediate_size": 96}
    model = AutoModelForCausalLM.from_config(llama.LlamaConfig(**shape))
    model.save_pretrained(tmp_path / "model")
    layer = sum(weight.nbytes for weight in model.model.layers[0].parameters())
    rest = sum(weight.nbytes for weight in model.parameters()) - 24 * layer
    for most, every in over(2, tmp_path, _most, tmp_path / "model", load_cut_up):
        assert most <= every / 2 + 2 * max(layer, rest) + 4096 < 0.8 * every
    ((most, every),) = over(1, tmp_path, _most, tmp_path / "model", _as_before)
    assert most >= every, "the law can fail"


def _as_before(path: str, mesh: Any, *, device: torch.device) -> Any:
    return load_policy(path).to(torch.float64).to(torch.float32)


def open_cache(folder: Path) -> ReferenceCache:
    return ReferenceCache(folder, weights="w", dtype="float64", backend="sdpa")


def entries(folder: Path) -> set[tuple]:
    (path,) = folder.glob("*.sqlite")
    with sqlite3.connect(path) as database:
        found = set(database.execute("SELECT key, logps, num_tokens, tokens FROM logps"))
        claims = database.execute("SELECT COUNT(*) FROM claims").fetchone()[0]
    database.close()
    assert claims == 0
    return found


def _score(model: Any, batch: Any) -> torch.Tensor:
    return whole(model, lambda: score_batch(model, batch))


def _tokens(model: Any, batch: Any) -> torch.Tensor:
    return whole(model, lambda: per_token(model, batch, backend="sdpa", rows=4096))


def _never(model: Any, batch: Any) -> torch.Tensor:
    raise AssertionError("nothing may be computed")


def _filled(mesh: Any, path: Path, store: Any, used: np.ndarray, folder: Path, more: dict[str, Any]) -> tuple:
    model = load_cut_up(str(path), mesh, device=CPU)
    cache = open_cache(folder)
    values = fill_together(model, store, used, cache, **{"max_tokens": 64, "score": _score} | more)
    cache.close()
    return values, cache.hits, cache.misses


@pytest.mark.parametrize(("count", "tokens"), [(2, False), (3, True)])
def test_a_cache_filled_in_pieces_is_that_of_one_process(count, tokens, tmp_path):
    path, store = saved(tmp_path / "model"), kit.token_store(tmp_path / "store", kit.random_groups(7))
    used = np.array(store.valid)
    more: dict[str, Any] = {"per_token": _tokens} if tokens else {}
    alone = open_cache(tmp_path / "alone")
    wanted = fill(load_policy(str(path)), store, used, alone, max_tokens=64, score=_score, **more)
    assert alone.misses > count
    some = used & (np.arange(len(used)) < 3)[:, None]
    for part, also in ((some, more), (used, more), (used, {"score": _never} if not tokens else {"per_token": _never})):
        done = over(count, tmp_path, _filled, path, store, part, tmp_path / "together", also)
        for values, *_ in done:
            assert_array_equal(values, np.where(part, wanted, 0.0))
        hits, misses = done[0][1:]
        assert (misses == 0) == (_never in also.values())
        assert hits + misses == len(entries(tmp_path / "together"))
    assert entries(tmp_path / "together") == entries(tmp_path / "alone")


def test_what_others_compute_is_waited_for_and_taken_over(tmp_path, monkeypatch):
    """Another job claims one response and dies; it has computed a second one, in other bits, which stand."""
    monkeypatch.setattr(reference_cache, "STALE", 1.0)
    path, store = saved(tmp_path / "model"), kit.token_store(tmp_path / "store", kit.random_groups(5))
    used = np.array(store.valid)
    other = open_cache(tmp_path / "together")
    claimed, computed = (bytes(store.keys[row, 0]) for row in (0, 3))
    other.claim([claimed])
    other.put([Entry(computed, -123.0, 3)])
    owner = other.owner.replace("|", "elsewhere|", 1)
    other.database.execute("UPDATE claims SET owner = ?", (owner,))
    other.close()
    (values, hits, _), (also, *_) = over(2, tmp_path, _filled, path, store, used, tmp_path / "together", {})
    assert_array_equal(values, also)
    assert values[3, 0] == -123.0
    assert hits == 1
    assert (values[used] < 0).all()
    assert len(entries(tmp_path / "together")) > 2
