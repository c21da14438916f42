"""`fuserl merge` from folder to folder: what is streamed is what whole models give, whatever the files look like."""

from __future__ import annotations

import csv
import json
import weakref
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from merging_kit import family, merged, overrides, random_model, rewrite, save, tensors
from safetensors import safe_open
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from fuserl.errors import FuserlError
from fuserl.merging import checkpoint, folder, sce, shards, varm
from fuserl.merging.deltas import PIECE, Inputs
from fuserl.merging.matching import Entry
from fuserl.merging.merge import Job, merge, write
from fuserl.merging.opening import labels, opened
from fuserl.merging.units import matrix
from fuserl.records.journal import locked
from fuserl.settings import compose, config_folder

VARIANTS = {"paper": sce.paper, "mergekit": sce.mergekit, "authors_code": sce.authors_code}


def whole(place: Path, experts: str = "abc", **kwargs) -> dict[str, torch.Tensor]:
    """SCE of all tensors at once."""
    base, *others = (tensors(place / name) for name in ("base", *experts))
    found = {}
    for name, weight in base.items():
        deltas = torch.stack([other[name].float() for other in others]) - weight.float()
        found[name] = (weight.float() + sce.fused(deltas, **kwargs)[0]).to(weight.dtype)
    return found


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    family(folder)
    return folder


@pytest.mark.parametrize("variant", VARIANTS)
def test_streamed_from_shards_is_the_whole(models, tmp_path, variant):
    given = ["merge=sce", f"merge.variant={variant}", "merge.select=0.3", "shard_gb=1.0e-5"]
    out = merged(overrides(models, "abc"), tmp_path / "out", *given)
    expected, there = whole(models, select=0.3, variant=VARIANTS[variant]), tensors(out)
    assert there.keys() == expected.keys()
    for name, weight in expected.items():
        assert_close(there[name], weight)
    files = sorted(out.glob("model-*.safetensors"))
    assert len(files) > 2
    assert all(file.stat().st_size < 2e4 for file in files)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_dtype_of_the_base_is_kept(tmp_path, dtype):
    given = family(tmp_path, "ab", dtype=dtype)
    there = tensors(merged(given, tmp_path / "out", "merge=varm"))
    assert {weight.dtype for weight in there.values()} == {dtype}
    base, a, b = (tensors(tmp_path / name) for name in ("base", "a", "b"))
    for name, weight in there.items():
        deltas = torch.stack([a[name].double(), b[name].double()]) - base[name].double()
        expected = base[name].double() + torch.einsum("j,j...->...", varm.weights(deltas), deltas)
        assert_close(weight.double(), expected, rtol=1.01 * torch.finfo(dtype).eps, atol=1e-6)


def test_another_dtype_is_written_where_it_is_asked_for(models, tmp_path):
    out = merged(overrides(models, "ab"), tmp_path / "out", "merge=varm", "merge.dtype=bfloat16", "reload_gb=1")
    assert {weight.dtype for weight in tensors(out).values()} == {torch.bfloat16}
    assert AutoModelForCausalLM.from_pretrained(out, dtype="auto").dtype == torch.bfloat16


def test_experts_may_have_other_dtypes_and_other_shards_than_the_base(tmp_path):
    family(tmp_path, "a")
    save(random_model(2, dtype=torch.bfloat16), tmp_path / "b", "1GB")
    there = tensors(merged(overrides(tmp_path, "ab"), tmp_path / "out", "merge.select=0.5"))
    for name, weight in whole(tmp_path, "ab", select=0.5, variant=sce.paper).items():
        assert_close(there[name], weight)


def test_a_folder_loads_and_says_where_it_is_from(models, tmp_path):
    out = merged(overrides(models, "abc"), tmp_path / "out", "merge.select=0.3", "reload_gb=1")
    logits = AutoModelForCausalLM.from_pretrained(out)(torch.arange(5)[None]).logits
    assert logits.isfinite().all()
    assert not any(path.suffix == ".part" or path.name == ".lock" for path in [*out.iterdir(), *tmp_path.iterdir()])
    for name in ("config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"):
        assert (out / name).exists(), name
    assert (out / "tokenizer.json").read_bytes() == (models / "base/tokenizer.json").read_bytes()
    told = json.loads((out / "manifest.json").read_text())
    assert (told["verb"], list(told["models"]), told["tensors"]) == (
        "merge",
        ["base", "a", "b", "c"],
        len(tensors(out)),
    )
    assert told["settings"]["merge.select"] == 0.3
    assert "finite" in told["checked"]
    page = (out / "README.md").read_text()
    assert told["models"]["b"]["digest"][:16] in page
    assert "0.3" in page
    rows = list(csv.DictReader((out / "coefficients.csv").open()))
    assert [row["tensor"] for row in rows] == sorted(tensors(out))
    base, *experts = (tensors(models / name) for name in ("base", "a", "b", "c"))
    for row in rows:
        deltas = torch.stack([expert[row["tensor"]] - base[row["tensor"]] for expert in experts])
        _, eta = sce.fused(deltas, select=0.3, variant=sce.paper)
        assert [float(row[name]) for name in "abc"] == pytest.approx(eta.tolist(), rel=1e-4)
    mean = sum(float(row["a"]) for row in rows) / len(rows)
    assert told["coefficients"]["a"]["mean"] == pytest.approx(mean)


@pytest.mark.parametrize("unit", ["layer", "layer_of_means", "model", "element"])
@pytest.mark.parametrize("method", ["varm", "sce"])
def test_every_unit_merges(models, tmp_path, method, unit):
    out = merged(overrides(models, "ab"), tmp_path / "out", f"merge={method}", f"merge.unit={unit}", "shard_gb=1")
    rows = {row["tensor"]: float(row["a"]) for row in csv.DictReader((out / "coefficients.csv").open())}
    assert 0.2 < rows["lm_head.weight"] < 0.8
    of_layer = {round(value, 6) for name, value in rows.items() if name.startswith("model.layers.0.")}
    assert (len(of_layer) == 1) == (unit != "element")
    assert (len({round(value, 6) for value in rows.values()}) == 1) == (unit == "model")


def test_one_tensor_of_each_model_is_alive_at_a_time(models, tmp_path, monkeypatch):
    alive: dict[tuple[Path, str], weakref.ref] = {}
    most, read = [0], checkpoint.read_tensor

    def counted(file: Path, name: str):
        tensor = read(file, name)
        alive[file.parent, name] = weakref.ref(tensor)
        living = [place for place, ref in alive.items() if ref() is not None]
        assert len({folder for folder, _ in living}) == len(living), f"two tensors of one model: {living}"
        most[0] = max(most[0], len(living))
        return tensor

    monkeypatch.setattr(checkpoint, "read_tensor", counted)
    merged(overrides(models, "abc"), tmp_path / "out", "merge.unit=layer", "reload_gb=0")
    assert most == [4]


def test_pieces_are_small_whatever_the_tensor():
    inputs = Inputs("x", torch.zeros(3, PIECE), [torch.ones(3, PIECE)] * 2)
    method = sce.sce(select=0.5, variant=sce.paper, unit=matrix)
    assert {piece.numel() for piece in method.merge(inputs, None).pieces} == {PIECE}


def test_a_model_too_large_to_load_is_checked_by_its_shapes(models, tmp_path):
    out = merged(overrides(models, "ab"), tmp_path / "out", "reload_gb=0")
    assert "too large to be loaded" in json.loads((out / "manifest.json").read_text())["checked"]


def test_a_finished_folder_is_left_alone_and_another_merge_refused(models, tmp_path, capsys):
    given = overrides(models, "ab")
    out = merged(given, tmp_path / "out")
    date = (out / "manifest.json").stat().st_mtime_ns
    merged(given, out, "shard_gb=1")
    assert (out / "manifest.json").stat().st_mtime_ns == date
    assert "nothing to do" in capsys.readouterr().err
    with pytest.raises(FuserlError, match=r"other settings \(merge.select: 0.1 -> 0.2\)"):
        merged(given, out, "merge.select=0.2")
    with pytest.raises(FuserlError, match="did not make"):
        merged(given, models / "base")


def test_weights_that_changed_since_are_noticed_and_copies_of_the_same_are_not(tmp_path):
    given = family(tmp_path, "ab")
    out = merged(given, tmp_path / "out")
    file = next((tmp_path / "a").glob("model-00001*"))
    file.touch()
    merged(given, out)
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(FuserlError, match="weights of `a` have changed"):
        merged(given, out)


def test_what_was_stopped_starts_anew_and_leaves_no_half_model(models, tmp_path, monkeypatch):
    given, out, count = overrides(models, "abc"), tmp_path / "out", [0]
    write = shards.ShardWriter.write

    def stops(self, form, pieces):
        count[0] += 1
        if count[0] == 9:
            raise KeyboardInterrupt
        write(self, form, pieces)

    with monkeypatch.context() as patch:
        patch.setattr(shards.ShardWriter, "write", stops)
        with pytest.raises(KeyboardInterrupt):
            merged(given, out, "shard_gb=1.0e-5")
    assert not out.exists()
    assert list((tmp_path / "out.part").glob("*.safetensors"))
    (tmp_path / "out.part" / "old.safetensors").write_text("of another day")
    merged(given, out, "shard_gb=1.0e-5")
    clean = merged(given, tmp_path / "clean", "shard_gb=1.0e-5")
    assert {file.name for file in out.iterdir()} == {file.name for file in clean.iterdir()}
    for file in clean.glob("*.safetensors"):
        assert (out / file.name).read_bytes() == file.read_bytes()


def test_two_processes_do_not_write_one_folder(models, tmp_path):
    with locked(tmp_path / "out.part"), pytest.raises(FuserlError, match="another process"):
        merged(overrides(models, "ab"), tmp_path / "out")


def test_a_full_disk_is_told_before_anything_is_written(models, tmp_path, monkeypatch):
    monkeypatch.setattr(folder.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(FuserlError, match="GB left"):
        merged(overrides(models, "ab"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.part").exists()


def test_tied_heads_stay_tied(tmp_path):
    given = family(tmp_path, "ab", tie_word_embeddings=True)
    out = merged(given, tmp_path / "out", "merge.select=0.5")
    assert "lm_head.weight" not in tensors(out)
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_tied_expert_gives_its_embeddings_for_an_untied_head(tmp_path):
    given = family(tmp_path, "ab")
    tied = random_model(2, tie_word_embeddings=True)
    save(tied, tmp_path / "b")
    assert "lm_head.weight" not in tensors(tmp_path / "b")
    there = tensors(merged(given, tmp_path / "out", "merge=varm"))
    base, a, b = (tensors(tmp_path / name) for name in ("base", "a", "b"))
    deltas = torch.stack([a["lm_head.weight"], b["model.embed_tokens.weight"]]) - base["lm_head.weight"]
    expected = base["lm_head.weight"] + torch.einsum("j,jab->ab", varm.weights(deltas), deltas)
    assert_close(there["lm_head.weight"], expected)


def test_a_head_that_repeats_the_embeddings_is_no_head_of_its_own(tmp_path):
    given = family(tmp_path, "ab", tie_word_embeddings=True)
    rewrite(tmp_path / "b", lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    assert "lm_head.weight" not in tensors(merged(given, tmp_path / "out"))


def test_whole_numbers_are_copied_and_small_shapes_survive(tmp_path):
    family(tmp_path, "ab")
    for name in ("base", "a", "b"):
        rewrite(tmp_path / name, lambda t: t.update({"count": torch.tensor(7), "flag": torch.tensor([True] * 3)}))
    base, *experts = opened(str(tmp_path / "base"), [str(tmp_path / "a"), str(tmp_path / "b")])
    entries = [Entry(name, place.shape, place.dtype, {}) for name, place in sorted(base.places.items())]
    (tmp_path / "part").mkdir()
    job = Job(base, experts, varm.varm(unit=matrix), entries, None)
    coefficients = write(job, tmp_path / "part", largest=20_000)
    assert "count" not in coefficients
    there = {}
    for file in (tmp_path / "part").glob("*.safetensors"):
        with safe_open(file, "pt") as content:
            there |= {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    assert (there["count"].item(), there["flag"].tolist()) == (7, [True] * 3)


def test_the_same_expert_twice_is_that_expert(models, tmp_path):
    there = tensors(merged(overrides(models, "aa"), tmp_path / "out", "merge=varm"))
    for name, weight in tensors(models / "a").items():
        assert_close(there[name], weight)


def test_a_core_is_left_to_the_digests_and_given_back(models, tmp_path, monkeypatch):
    before, seen, threads = torch.get_num_threads(), [], 3
    write = shards.ShardWriter.write

    def watched(self, form, pieces):
        seen.append(torch.get_num_threads())
        write(self, form, pieces)

    monkeypatch.setattr(shards.ShardWriter, "write", watched)
    torch.set_num_threads(threads)
    try:
        merged(overrides(models, "ab"), tmp_path / "out")
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {threads - 1}


def test_labels_tell_models_apart():
    assert labels(["runs/a/model", "runs/b/model"]) == ["a/model", "b/model"]
    assert labels(["x", "y", "y"]) == ["x", "y", "y (2)"]


def test_a_hub_name_is_found_in_the_local_cache(models, tmp_path, monkeypatch):
    asked = []

    def snapshot_download(name, *, local_files_only, **_):
        asked.append(local_files_only)
        if not local_files_only:
            raise OSError("no network")
        return str(models / name.split("/")[1])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    given = ["base=some/base", "experts=[some/a,some/b]"]
    there = tensors(merged(given, tmp_path / "out", "merge=varm"))
    same = tensors(merged(overrides(models, "ab"), tmp_path / "same", "merge=varm"))
    assert all(torch.equal(there[name], same[name]) for name in same)
    assert asked == [False, True] * 3


@pytest.mark.parametrize("method", sorted(path.stem for path in (config_folder() / "merge").glob("*.yaml")))
def test_every_method_has_a_name_and_a_dtype(method):
    cfg = compose("merge", ["base=x", "experts=[y]", f"merge={method}"])
    assert cfg.merge.name == method
    assert cfg.merge.dtype is None


def test_without_an_output_the_folder_is_named_by_its_settings(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = merge(compose("merge", overrides(models, "ab")))
    assert out.parent == Path("runs")
    assert out.name.startswith("merge-")
