"""What cannot be merged is refused before anything is written, with what, where and the way out."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from merging_kit import family, merged, overrides, random_model, rewrite, save
from transformers import Qwen2Config, Qwen2ForCausalLM

from fuserl.errors import FuserlError


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("originals")
    family(folder, "ab")
    return folder


@pytest.fixture
def models(originals, tmp_path) -> Path:
    shutil.copytree(originals, tmp_path / "models")
    return tmp_path / "models"


def config(**changed: object) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder, lambda _: None, dict(changed))


def tokens(change: Callable[[dict[str, int]], object]) -> Callable[[Path], None]:
    def rewritten(folder: Path) -> None:
        path = folder / "tokenizer.json"
        content = json.loads(path.read_text())
        change(content["model"]["vocab"])
        path.write_text(json.dumps(content))

    return rewritten


def changed(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder, change)


def replaced(**settings: object) -> Callable[[Path], None]:
    def anew(folder: Path) -> None:
        shutil.rmtree(folder)
        save(random_model(2, **settings), folder)

    return anew


def pickled(folder: Path) -> None:
    for file in [*folder.glob("*.safetensors"), *folder.glob("*.index.json")]:
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")


def other_architecture(folder: Path) -> None:
    shutil.rmtree(folder)
    shape = dict(vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    save(Qwen2ForCausalLM(Qwen2Config(**shape)), folder)


def hole(name: str, value: float) -> Callable[[Path], None]:
    return changed(lambda t: t[name].view(-1).__setitem__(3, value))


def cut(folder: Path) -> None:
    file = next(folder.glob("model-00002*"))
    file.write_bytes(file.read_bytes()[:-100])


def escaping(folder: Path) -> None:
    path = folder / "model.safetensors.index.json"
    content = json.loads(path.read_text())
    content["weight_map"]["lm_head.weight"] = "../base/model.safetensors"
    path.write_text(json.dumps(content))


def lost_by_the_index(folder: Path) -> None:
    path = folder / "model.safetensors.index.json"
    content = json.loads(path.read_text())
    content["weight_map"]["model.more"] = content["weight_map"]["lm_head.weight"]
    path.write_text(json.dumps(content))


EMBEDDINGS, NORM = "model.embed_tokens.weight", "model.norm.weight"
EXPERT = {  # what is wrong with the expert `b`: (change, what is said, a word of the way out)
    "another architecture": (other_architecture, r"`b` is another architecture: its `model_type` is `qwen2`", "train"),
    "another vocabulary": (replaced(vocab_size=44), r"`b` has a vocabulary of 44, the base one of 40", "resize_token"),
    "permuted tokens": (tokens(lambda v: v.update(t3=4, t4=3)), r"2 tokens have other ids in `b`, the first: 't4' is 3", "tokenizer"),
    "a token in another's place": (tokens(lambda v: v.update(new=v.pop("t9"))), r"1 tokens have other ids in `b`.*'new' is 9", "tokenizer"),
    "another width": (replaced(hidden_size=32), r"is \[.*32.*\] in `b` and \[.*16.*\] in the base", "shape"),
    "fewer layers": (replaced(num_hidden_layers=1), r"`b` lacks 9 tensors of the base: `model\.layers\.1", "trained from this base"),
    "more layers": (replaced(num_hidden_layers=3), r"`b` has 9 tensors that the base lacks: `model\.layers\.2", "trained from this base"),
    "a missing tensor": (changed(lambda t: t.pop(NORM)), r"`b` lacks 1 tensors of the base: `model\.norm\.weight`", "whole"),
    "an extra tensor": (changed(lambda t: t.update(more=torch.zeros(3))), r"`b` has 1 tensors that the base lacks: `more`", "another model"),
    "NaN": (hole(EMBEDDINGS, float("nan")), rf"`b` has NaN or infinity in the tensor `{EMBEDDINGS}`", "broken"),
    "infinity": (hole(NORM, float("inf")), rf"`b` has NaN or infinity in the tensor `{NORM}`", "broken"),
    "pickled weights": (pickled, r"`pytorch_model\.bin`, not in safetensors: pickled weights", "save_pretrained"),
    "no weights": (lambda f: [file.unlink() for file in f.glob("*.safetensors*")], "the folder has no weights", "model.safetensors"),
    "a lost shard": (lambda f: next(f.glob("model-00002*")).unlink(), r"1 of \d+ weight files are missing, the first: `model-00002", "copy"),
    "a cut file": (cut, "no whole safetensors file", "download"),
    "an index that leaves its folder": (escaping, "does not name files of its folder", "download"),
    "an index that promises more": (lost_by_the_index, r"1 tensors of the index are in no file, the first: `model\.more`", "whole"),
    "no config": (lambda f: (f / "config.json").unlink(), r"`config\.json` cannot be read", "Hugging Face"),
    "quantised": (config(quantization_config={"quant_method": "gptq"}), r"quantised \(gptq\)", "quantise the result"),
    "8-bit floats": (changed(lambda t: t.update({NORM: t[NORM].to(torch.float8_e4m3fn)})), r"stored as F8_E4M3", "bfloat16"),
    "whole numbers for floats": (changed(lambda t: t.update({NORM: t[NORM].int()})), r"`int32` in `b` and `float32` in the base", "convert"),
}  # fmt: skip


@pytest.mark.parametrize("case", EXPERT)
def test_an_expert_that_does_not_fit_is_refused(models, tmp_path, case):
    change, said, way_out = EXPERT[case]
    change(models / "b")
    with pytest.raises(FuserlError, match=said) as found:
        merged(overrides(models, "ab"), tmp_path / "out")
    assert way_out in found.value.hint
    assert found.value.where
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models"], "something was written"


def test_a_head_of_its_own_over_a_tied_base_is_refused_with_the_way_out(tmp_path):
    given = family(tmp_path, "a", tie_word_embeddings=True)
    shutil.rmtree(tmp_path / "a")
    save(random_model(1), tmp_path / "a")
    with pytest.raises(FuserlError, match=r"`a` has a head of its own \(`lm_head\.weight`\)") as found:
        merged(given, tmp_path / "out", "merge=varm")
    assert "tie_word_embeddings: false" in found.value.hint


def test_a_base_with_a_head_of_its_own_is_named(models, tmp_path):
    hole(EMBEDDINGS, float("nan"))(models / "base")
    with pytest.raises(FuserlError, match="the base has NaN"):
        merged(overrides(models, "ab"), tmp_path / "out", "merge=varm")


def test_whole_numbers_that_differ_are_refused(models):
    from fuserl.merging.matching import Entry, copied
    from fuserl.merging.opening import opened

    for number, name in enumerate(("base", "a", "b")):
        rewrite(models / name, lambda t, number=number: t.update(count=torch.tensor([number // 2])))
    base, *experts = opened(str(models / "base"), [str(models / "a"), str(models / "b")])
    with pytest.raises(FuserlError, match="`count` holds int64 and differs in `b`"):
        copied(Entry("count", (1,), torch.int64, {}), base, experts)


def test_more_tokens_than_the_base_are_cautioned_against(models, tmp_path, capsys):
    tokens(lambda vocab: vocab.update({"<|extra|>": 40}))(models / "b")
    merged(overrides(models, "ab"), tmp_path / "out", "merge=varm")
    assert "`b` knows 1 tokens that the base does not (`<|extra|>`)" in capsys.readouterr().err


def test_numbers_that_do_not_fit_the_dtype_are_refused(models, tmp_path):
    rewrite(models / "a", lambda t: t[NORM].fill_(1e6))
    with pytest.raises(FuserlError, match=rf"`{NORM}` does not fit float16") as found:
        merged(overrides(models, "ab"), tmp_path / "out", "merge=varm", "merge.dtype=float16")
    assert "bfloat16" in found.value.hint
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("given", "said"), [
    (["merge.variant=papr"], r"there is no `papr`[\s\S]*did you mean `paper`"),
    (["merge.unit=matrices"], r"there is no `matrices`[\s\S]*did you mean `matrix`"),
    (["merge.select=0"], "`select` is 0"),
    (["merge.select=10"], "`select` is 10"),
    (["merge.dtype=float8"], "no dtype `float8`"),
    (["shard_gb=0"], "`shard_gb` is 0"),
    (["merge.selct=0.3"], r"no setting `merge\.selct`[\s\S]*`merge\.select`"),
    (["merge=tis"], "tis"),
    (["experts=[]"], "`experts` is no list of models"),
    (["experts=a"], "`experts` is no list of models"),
    (["experts=[nowhere/at/all]"], "no such model folder"),
    (["experts=[no-such-model]"], "the hub does not give it"),
    (["merge.method._target_=fuserl.merging.nothing.at"], "cannot be made"),
])  # fmt: skip
def test_a_wrong_setting_is_refused(originals, tmp_path, given, said):
    with pytest.raises(FuserlError) as found:
        merged(overrides(originals, "ab"), tmp_path / "out", *given)
    assert re.search(said, str(found.value)), str(found.value)
    assert not list(tmp_path.iterdir())
