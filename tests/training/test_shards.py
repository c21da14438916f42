"""Checkpoints in pieces, in one process: what is written is what is read, and a broken write harms nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from fuserl.training import shards
from fuserl.training.checkpoints import damage
from fuserl.training.shards import Pieces, put_together

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


class Tied(nn.Module):
    """Embeddings and head are one, a part is frozen, a buffer is saved."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed, self.head = nn.Embedding(7, 3), nn.Linear(3, 7, bias=False)
        self.head.weight = self.embed.weight
        self.frozen, self.norm = nn.Linear(3, 3).requires_grad_(False), nn.BatchNorm1d(3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.frozen(self.embed(ids))))


def trained(seed: int, steps: int) -> tuple[Tied, torch.optim.Optimizer]:
    model = Tied(seed)
    optimizer = torch.optim.AdamW(
        [weight for weight in model.parameters() if weight.requires_grad], lr=0.1 * (seed + 1)
    )
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.arange(7)).square().sum().backward()
        optimizer.step()
    return model, optimizer


@pytest.fixture(autouse=True, scope="module")
def alone() -> Iterator[None]:
    """A process group of one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def write(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    tensors, rest = Pieces(model, optimizer).all()
    shards.write(folder, tensors, {"global_step": 3} | rest, dist.group.WORLD)


def in_one_piece(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    saved = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("frozen")}
    return {"global_step": 3, "state_dict": saved, "optimizer_states": [optimizer.state_dict()]}


def assert_equal(ours: dict, theirs: dict) -> None:
    assert ours["state_dict"].keys() == theirs["state_dict"].keys()
    for name, tensor in theirs["state_dict"].items():
        assert torch.equal(ours["state_dict"][name], tensor), name
    (mine,), (other,) = ours["optimizer_states"], theirs["optimizer_states"]
    assert mine["param_groups"] == other["param_groups"]
    assert mine["state"].keys() == other["state"].keys()
    for at, states in other["state"].items():
        assert all(torch.equal(mine["state"][at][key], value) for key, value in states.items())


def test_pieces_put_together_are_what_one_process_would_have_written(tmp_path):
    run = trained(0, 3)
    write(tmp_path / "step-3.ckpt", *run)
    found = put_together(tmp_path / "step-3.ckpt")
    assert found.keys() == {"global_step", "state_dict", "optimizer_states"}
    assert_equal(found, in_one_piece(*run))


@pytest.mark.parametrize("form", ["pieces", "whole"])
def test_another_run_takes_all_of_it(form, tmp_path):
    run, other = trained(0, 3), trained(1, 0 if form == "pieces" else 2)
    frozen = other[0].frozen.weight.clone()
    write(tmp_path / "step-3.ckpt", *run)
    pieces = Pieces(*other)
    rest = pieces.read(tmp_path / "step-3.ckpt") if form == "pieces" else pieces.take(in_one_piece(*run))
    assert rest == {"global_step": 3}
    assert_equal(in_one_piece(*other), in_one_piece(*run))
    assert torch.equal(other[0].frozen.weight, frozen)
    assert other[0].head.weight is other[0].embed.weight


def test_a_write_that_breaks_leaves_the_checkpoint_before_it(tmp_path, monkeypatch):
    run = trained(0, 3)
    write(tmp_path / "step-3.ckpt", *run)

    def breaks(*_):
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(shards.torch, "save", breaks)
        with pytest.raises(OSError, match="no space"):
            write(tmp_path / "step-4.ckpt", *run)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-3.ckpt", "step-4.part"]
    assert_equal(put_together(tmp_path / "step-3.ckpt"), in_one_piece(*run))
    write(tmp_path / "step-5.ckpt", *run)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-3.ckpt", "step-5.ckpt"]


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
@pytest.mark.parametrize("file", ["rest.pt", "shard-00001-model-00001-of-00001.safetensors"])
def test_damage_in_any_file_is_seen(file, share, tmp_path):
    run = trained(0, 3)
    write(tmp_path / "step-3.ckpt", *run)
    assert damage(tmp_path / "step-3.ckpt") is None
    path = tmp_path / "step-3.ckpt" / file
    content = bytearray(path.read_bytes())
    content[int(len(content) * share)] ^= 1
    path.write_bytes(content)
    if damage(tmp_path / "step-3.ckpt") is None:  # between the records of the rest
        assert file == "rest.pt"
        assert_equal(put_together(tmp_path / "step-3.ckpt"), in_one_piece(*run))
    path.unlink()
    assert damage(tmp_path / "step-3.ckpt")


def test_nothing_in_a_checkpoint_can_run(tmp_path):
    write(tmp_path / "step-3.ckpt", *trained(0, 1))
    files = sorted(path.name for path in (tmp_path / "step-3.ckpt").iterdir())
    assert files == ["rest.pt", "shard-00001-model-00001-of-00001.safetensors", "shard-00001.sums.json"]

    class Runs:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    torch.save({"global_step": Runs()}, tmp_path / "step-3.ckpt" / "rest.pt")
    with pytest.raises(Exception, match="[Ww]eights.only"):
        put_together(tmp_path / "step-3.ckpt")
    assert not (tmp_path / "ran").exists()
