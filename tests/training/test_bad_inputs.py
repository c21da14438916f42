"""Kinds of bad input: each gives one clear FuserlError before training starts."""

from __future__ import annotations

import copy
import gzip
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from fuserl.cli import run_verb
from fuserl.errors import FuserlError
from fuserl.records.formats import read_groups
from fuserl.records.store import write_groups
from fuserl.settings import compose
from fuserl.training.run import train


def group(number: int, sources: int = 2, samples: int = 2) -> dict:
    """A good row."""
    texts = iter(["12 30", "10 32", "11 31", "9 33", "8 34", "7 35"])
    responses = [
        {"source": f"s{s}", "sample": n, "text": next(texts), "reward": 0.1 * (s + 3 * n)}
        for s in range(sources)
        for n in range(samples)
    ]
    return {"prompt_id": f"p{number}", "prompt": f"pair {number + 30}", "domain": "pair", "responses": responses}


def rows_with(change) -> list:
    """Eight good rows, the fourth one changed."""
    rows = [group(number) for number in range(8)]
    rows[3] = change(copy.deepcopy(rows[3])) or rows[3]
    return rows


def put(**fields):
    return lambda row: row | fields


def put_response(**fields):
    def change(row):
        row["responses"][1] |= fields
        return row

    return change


def without(name):
    return lambda row: {key: value for key, value in row.items() if key != name}


def all_rows(change) -> list:
    return [change(group(number)) for number in range(8)]


def flat(value):
    def change(row):
        for response in row["responses"]:
            response["reward"] = value
        return row

    return change


BAD_ROWS = {
    "no prompt": (without("prompt"), "`prompt` is missing"),
    "empty prompt": (put(prompt=""), "`prompt` is missing or empty"),
    "blank prompt": (put(prompt="  "), "is empty"),
    "prompt of the wrong type": (put(prompt=7), "must be a text or a list"),
    "no messages": (put(prompt=[]), "`prompt` is missing or empty"),
    "unknown role": (put(prompt=[{"role": "wizard", "content": "a"}]), "'wizard', not one of"),
    "message without content": (put(prompt=[{"role": "user"}]), "content` is missing"),
    "prompt that ends with an answer": (
        put(prompt=[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]),
        "must end with the user's turn",
    ),
    "no responses": (put(responses=[]), "`responses` is missing or empty"),
    "responses missing": (without("responses"), "`responses` is missing"),
    "responses of the wrong type": (put(responses="x"), "`responses` is missing or empty"),
    "response that is no object": (put(responses=["x"]), "must be an object"),
    "no source": (put_response(source=None), "source` is missing"),
    "empty text": (put_response(text=""), r"responses\[1\].text` is empty"),
    "text of the wrong type": (put_response(text=5), "must be a text, not int"),
    "lone surrogate": (put_response(text="\ud800"), "lone surrogate"),
    "NaN reward": (put_response(reward=float("nan")), "is nan, not a finite number"),
    "infinite reward": (put_response(reward=float("inf")), "is inf, not a finite number"),
    "reward as text": (put_response(reward="0.5"), "must be a number or null"),
    "reward as truth value": (put_response(reward=True), "must be a number or null, not bool"),
    "negative sample": (put_response(sample=-1), "whole number from 0"),
    "unknown verdict": (put_response(verdict="maybe"), "'maybe', not one of right"),
    "duplicate id": (put(prompt_id="p0"), "'p0' appears twice"),
    "row that is a list": (lambda row: [1, 2], "must be an object, not list"),
    "half a preference": (
        lambda row: {"prompt": "a", "chosen": [], "rejected": []},
        "must end with the assistant's turn",
    ),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_row(name, tmp_path):
    change, match = BAD_ROWS[name]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows_with(change)))
    with pytest.raises(FuserlError, match=match) as caught:
        list(read_groups(path))
    assert str(path) in caught.value.where
    assert "row 3" in caught.value.where
    assert "on_bad_row=skip" in caught.value.hint
    kept = list(read_groups(path, on_bad_row="skip"))
    assert 7 <= len(kept) <= 8


def lines(rows) -> bytes:
    return "\n".join(json.dumps(row) for row in rows).encode()


def truncated_gzip(folder: Path) -> Path:
    (folder / "d.jsonl.gz").write_bytes(gzip.compress(lines([group(number) for number in range(400)]))[:-40])
    return folder / "d.jsonl.gz"


def half_parquet(folder: Path) -> Path:
    pq.write_table(pa.Table.from_pylist([{"prompt": "a"}] * 50), folder / "d.parquet")
    data = (folder / "d.parquet").read_bytes()
    (folder / "d.parquet").write_bytes(data[: len(data) // 2])
    return folder / "d.parquet"


def half_data_set(folder: Path) -> Path:
    good = folder / "good.jsonl"
    good.write_bytes(lines(all_rows(put())))
    write_groups(read_groups(good), folder / "set")
    part = next((folder / "set").glob("*.parquet"))
    part.write_bytes(part.read_bytes()[:300])
    return folder / "set"


def missing_part(folder: Path) -> Path:
    path = half_data_set(folder)
    next(path.glob("*.parquet")).unlink()
    return path


def newer_schema(folder: Path) -> Path:
    path = half_data_set(folder)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"schema_version": 99}))
    return path


def file_of(content: bytes, name: str = "d.jsonl"):
    def build(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return build


def folder_of(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


BAD_FILES = {
    "missing": (lambda folder: folder / "nowhere.jsonl", "no such file or folder"),
    "empty file": (file_of(b""), "the data set is empty"),
    "empty folder": (folder_of, "holds no"),
    "unknown ending": (file_of(b"x", "d.txt"), "ending is not known"),
    "invalid UTF-8": (file_of(b'{"prompt": "\xff"}'), "not valid UTF-8 at byte"),
    "broken JSON": (file_of(b'{"prompt": '), "not valid JSON"),
    "truncated gzip": (truncated_gzip, "cut short or broken"),
    "no gzip at all": (file_of(b"hello", "d.jsonl.gz"), "cut short or broken"),
    "half-written parquet": (half_parquet, "missing or half-written"),
    "half-written data set": (half_data_set, "missing or half-written"),
    "data set with a missing file": (missing_part, "missing or half-written"),
    "data set of a newer schema": (newer_schema, "schema version 99"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file(name, tmp_path, settings):
    build, match = BAD_FILES[name]
    path = build(tmp_path)
    with pytest.raises(FuserlError, match=match) as caught:
        train(compose("train", settings("fusesft", "data=own", "data.validation_limit=null", f"data.path={path}")))
    assert caught.value.where


def settings_of(folder: Path, rows: list) -> list[str]:
    (folder / "d.jsonl").write_bytes(lines(rows))
    return ["data=own", f"data.path={folder / 'd.jsonl'}", "data.validation_fraction=0"]


def single(row):
    row["responses"] = row["responses"][:1]
    return row


def one_sample(row):
    row["responses"] = [response for response in row["responses"] if response["sample"] == 0]
    return row


BAD_FOR_OBJECTIVE = {
    "K=1": (all_rows(single), "fusepo_dpo", ["weights.tau=1"], "single response"),
    "one sample a source": (all_rows(one_sample), "fusepo_dpo", [], "single sample"),
    "all rewards equal": (all_rows(flat(0.5)), "fusepo_dpo", ["weights=uniform"], "equal"),
    "no rewards": (all_rows(flat(None)), "fusepo_dpo", ["weights=uniform"], "no response has a reward|no rewards"),
    "no rewards for tau": (all_rows(flat(None)), "fusesft", [], "nothing to set|reward"),
    "unknown source": (all_rows(put()), "fusesft", ["data.sources=[nobody]"], "no source `nobody`"),
    "no target samples": (all_rows(put()), "wrpo", ["target_source=me"], "no answers of the target under the name `me`"),
    "all too long": (all_rows(put()), "fusesft", ["data.max_length=3"], "no training prompt is left for this objective"),
    "too long as an error": (all_rows(put()), "fusesft", ["data.max_length=3", "data.on_too_long=error"], "longer than 3 tokens"),
    "unknown way of too long": (all_rows(put()), "fusesft", ["data.on_too_long=cut"], "no way to treat long groups"),
    "unknown way of bad rows": (all_rows(put()), "fusesft", ["data.on_bad_row=cry"], "no way to treat bad rows"),
    "empty part": (all_rows(put()), "fusesft", ["data.part=[0.5,0.5]"], "the first smaller"),
    "unknown format": (all_rows(put()), "fusesft", ["data.format=xml"], "no data format `xml`"),
    "tau of zero": (all_rows(put()), "fusesft", ["weights.tau=0"], "must be positive"),
    "pack too small": (all_rows(put()), "fusesft", ["trainer.max_tokens=5"], "one group alone has"),
    "batch of zero": (all_rows(put()), "fusesft", ["batch_size=0"], "`batch_size` is 0"),
    "unknown decay": (all_rows(put()), "fusesft", ["optimizer.decay=sine"], "no decay `sine`"),
    "unknown kernel": (all_rows(put()), "fusesft", ["trainer.attention=magic"], "no attention kernel `magic`"),
    "kernel that needs a GPU": (all_rows(put()), "fusesft", ["trainer.attention=flash_attn"], "does not work here"),
    "no GPU": (all_rows(put()), "fusesft", ["trainer.accelerator=gpu"], "no GPU is visible"),
    "unknown dtype": (all_rows(put()), "fusesft", ["target.dtype=float7", "trainer.precision=32-true"], "no dtype `float7`"),
    "rewards in bf16": (all_rows(put()), "fusesft", ["trainer.precision=bf16-true"], "would round rewards"),
    "no model there": (all_rows(put()), "fusesft", ["target.path=/nowhere/model"], "cannot be loaded"),
    "bad LoRA key": (all_rows(put()), "fusesft", ["target.lora={rank: 4}"], "LoRA cannot be set up"),
    "missing template file": (all_rows(put()), "fusesft", ["target.chat_template=no.jinja"], "template file does not exist"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FOR_OBJECTIVE)
def test_bad_for_the_objective(name, tmp_path, settings):
    rows, objective, more, match = BAD_FOR_OBJECTIVE[name]
    with pytest.raises(FuserlError, match=match) as caught:
        train(compose("train", settings(objective, *settings_of(tmp_path, rows), *more)))
    assert caught.value.where or caught.value.hint
    assert not (tmp_path / "run" / "checkpoints").exists(), "training must not have begun"


def test_the_single_sample_error_names_what_does_apply(tmp_path, settings):
    rows = settings_of(tmp_path, all_rows(one_sample))
    with pytest.raises(FuserlError) as caught:
        train(compose("train", settings("fusepo_dpo", *rows)))
    assert "pairs=across_sources" in caught.value.hint
    assert "fusesft" in caught.value.hint
    assert train(
        compose("train", settings("fusepo_dpo", *rows, "pairs=across_sources", "max_steps=1", output="other"))
    ).exists()


TYPOS = {
    "key": (["objectve.beta=1"], "objectve"),
    "nested key": (["optimizer.lrr=1"], "`optimizer.lr`"),
    "option of a group": (["objective=dpoo"], "dpoo"),
    "grammar": (["objective=[a"], "no viable alternative"),
}


@pytest.mark.parametrize("name", TYPOS)
def test_typo_in_the_settings(name):
    overrides, match = TYPOS[name]
    with pytest.raises(FuserlError) as caught:
        compose("train", overrides)
    assert match in str(caught.value)


def test_missing_data_path_and_unknown_verb():
    with pytest.raises(FuserlError, match=r"`data.path` must be given"):
        compose("train", ["data=own"])
    with pytest.raises(FuserlError) as caught:
        run_verb("trian", [])
    assert "train" in caught.value.hint


def test_wrong_tokenizer(target, tmp_path, settings):
    folder = tmp_path / "mixed"
    shutil.copytree(target, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"word{number}" for number in range(50)])
    tokenizer.save_pretrained(folder)
    with pytest.raises(FuserlError, match="the tokenizer has ids up to"):
        train(compose("train", settings("fusesft", f"target.path={folder}")))


def test_missing_template_and_refused_conversation(target, tmp_path, settings):
    folder = tmp_path / "bare"
    shutil.copytree(target, folder)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(FuserlError, match="has no chat template"):
        train(compose("train", settings("fusesft", f"target.path={folder}")))
    rows = all_rows(put(prompt=[{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]))
    with pytest.raises(FuserlError, match="refuses this conversation"):
        train(compose("train", settings("fusesft", *settings_of(tmp_path, rows), output="other")))


def test_pickled_weights_are_refused(target, tmp_path, settings):
    import torch

    folder = tmp_path / "pickled"
    shutil.copytree(target, folder)
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(FuserlError, match="cannot be loaded"):
        train(compose("train", settings("fusesft", f"target.path={folder}")))


def test_unwritable_output_and_folder_in_use(tmp_path, settings):
    (tmp_path / "file").write_text("")
    with pytest.raises(FuserlError, match="cannot be written"):
        train(compose("train", settings("fusesft", output="file/run")))
    folder = train(compose("train", settings("fusesft", "max_steps=1")))
    with pytest.raises(FuserlError, match="other settings"):
        train(compose("train", settings("fusesft", "max_steps=2")))
    assert (folder / "summary.json").exists()


def test_two_processes_in_one_folder(tmp_path):
    from fuserl.training.folder import RunFolder

    folder = RunFolder(tmp_path)
    with folder.locked(), pytest.raises(FuserlError, match="another process"), RunFolder(tmp_path).locked():
        pass


def test_a_damaged_reference_cache_is_named(tmp_path, settings):
    train(compose("train", settings("fusepo_dpo", "max_steps=1")))
    for file in (tmp_path / "cache" / "reference").glob("*.sqlite*"):
        file.write_bytes(b"this is no database" * 100)
    with pytest.raises(FuserlError, match="reference cache cannot be opened"):
        train(compose("train", settings("fusepo_dpo", "max_steps=1", output="again")))
