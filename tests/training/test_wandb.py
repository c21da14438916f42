"""Offline W&B runs, read back record by record with W&B's own protobuf: one closed run a folder, equal to the folder."""

from __future__ import annotations

import csv
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from omegaconf import OmegaConf
from wandb.proto import wandb_internal_pb2

from fuserl.reporting.window import mode, set_aside, without_secrets
from fuserl.training import run as run_module
from fuserl.training.logged import MOST_ANSWERS, answers, name_of, sweep_of
from fuserl.training.wandb_run import WandbRun

BLOCK = 32768  # a .wandb file is a LevelDB log: blocks of records, each with checksum, length and kind


def records(path: Path) -> Iterator[tuple[str, Any]]:
    """Every record with its kind."""
    data, at, part = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at < len(data):
        left = BLOCK - at % BLOCK
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        part, at = part + data[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):  # a whole record, or the last piece of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(part)
            part, name = b"", record.WhichOneof("record_type")
            yield name, getattr(record, name)


class Recorded:
    """What one offline run left."""

    def __init__(self, folder: Path) -> None:
        wandb.teardown()  # W&B's service writes the last block after `finish` has returned; this waits until it has
        (self.path,) = (folder / "wandb").glob("offline-run-*/*.wandb")
        self.config, self.summary, self.history, self.artifacts, self.exits = {}, {}, [], {}, []
        for kind, record in records(self.path):
            getattr(self, f"_{kind}", lambda record: None)(record)

    def _run(self, record):
        self.id, self.group, self.tags, self.job_type = (
            record.run_id,
            record.run_group,
            set(record.tags),
            record.job_type,
        )
        self.config = {item.key: json.loads(item.value_json) for item in record.config.update if item.key != "_wandb"}
        self.name = record.display_name

    def _summary(self, record):
        self.summary |= {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.update}

    def _history(self, record):
        self.history.append({"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.item})

    def _artifact(self, record):
        self.artifacts[record.name] = record

    def _exit(self, record):
        self.exits.append(record.exit_code)

    def table(self, name: str) -> dict[str, Any]:
        """As W&B shows it."""
        (path,) = (self.path.parent / "files/media/table").glob(f"{name}_*.table.json")
        return json.loads(path.read_text())


def rows_of(folder: Path) -> dict[int, dict[str, float]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return {int(r["step"]): {k: float(v) for k, v in r.items() if v and k != "step"} for r in csv.DictReader(file)}


def check_equal_to_its_folder(folder: Path) -> Recorded:
    recorded = Recorded(folder)
    assert recorded.exits == [0]
    assert recorded.config == OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    written = {int(row.pop("_step")): row for row in recorded.history}
    rows = rows_of(folder)
    assert rows.keys() == written.keys()
    for step, row in rows.items():
        assert {name: written[step][name] for name in row} == pytest.approx(row, rel=1e-12, nan_ok=True)
    summary = json.loads((folder / "summary.json").read_text())
    assert recorded.summary["validation/val/nll/last"] == summary["validation"]["val/nll"]["last"]
    assert recorded.summary["tokens_computed"] == summary["tokens_computed"]
    assert recorded.summary["val/nll"] == pytest.approx(rows[max(rows)]["val/nll"], rel=1e-12)
    return recorded


@pytest.fixture
def quick(run):
    """A run of four steps with few validation prompts."""
    return lambda *more, **where: run("fusesft", "logger=wandb", "data.validation_limit=8", *more, **where)


def test_two_jobs_of_a_sweep_are_two_closed_runs_equal_to_their_folders(quick, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("SOME_API_KEY", "sk-not-to-be-seen")
    sweep = tmp_path / "ablation"
    sweep.mkdir()
    (sweep / "sweep.json").write_text(json.dumps({"verb": "train", "jobs": []}))
    probe = ("probe.prompts=3", "probe.max_new_tokens=4")
    jobs = [quick(*probe, f"seed={seed}", output=f"ablation/job-{seed}") for seed in (0, 1)]
    found = [check_equal_to_its_folder(job) for job in jobs]
    assert found[0].id != found[1].id
    assert {one.group for one in found} == {"ablation"}
    for one, job in zip(found, jobs, strict=True):
        assert (one.name, one.job_type) == (job.name, "train")
        assert {"fusesft", "miniature-data"} < one.tags
        samples = one.table("samples")
        last = [json.loads(line) for line in (job / "samples.jsonl").read_text().splitlines()][-3:]
        assert [row[samples["columns"].index("answer")] for row in samples["data"]] == [row["answer"] for row in last]
        data, model = one.artifacts["miniature-data"], one.artifacts[f"{job.name}-model"]
        assert (data.type, model.type) == ("dataset", "model")
        manifest = json.loads((job / "manifest.json").read_text())
        assert json.loads(data.metadata)["tokens_digest"] == manifest["inputs"]["tokens"]
        assert json.loads(model.metadata)["digest"] == manifest["digest"]
        references = [entry.ref for entry in [*data.manifest.contents, *model.manifest.contents]]
        assert references
        assert all(reference.startswith("file:///") for reference in references)
        assert not any(entry.local_path for entry in model.manifest.contents)
        assert b"sk-not-to-be-seen" not in one.path.read_bytes()


def test_a_run_that_fails_is_closed_with_exit_code_1_and_continued_under_the_same_id(quick, tmp_path, monkeypatch):
    fit = run_module._fit

    def breaks_down_at_the_end(*args):
        fit(*args)
        raise RuntimeError("the disk is gone")

    monkeypatch.setattr(run_module, "_fit", breaks_down_at_the_end)
    with pytest.raises(RuntimeError, match="the disk is gone"):
        quick()
    broken = Recorded(tmp_path / "run")
    assert broken.exits == [1]
    assert len(broken.history) == len(rows_of(tmp_path / "run")) > 0

    monkeypatch.undo()
    monkeypatch.setenv("WANDB_MODE", "offline")
    again = check_equal_to_its_folder(quick())
    assert again.id == broken.id
    assert len(list((tmp_path / "run/wandb/superseded").glob("*/*.wandb"))) == 1


def test_an_unreachable_server_costs_a_warning_and_the_run_is_kept_offline(quick, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    wandb.teardown()  # what it has read of the environment the environment anew
    folder = quick("logger.wandb.timeout=1")
    assert capsys.readouterr().err.count("W&B cannot be reached") == 1
    check_equal_to_its_folder(folder)


@pytest.mark.parametrize("broken", ["start", "log_metrics", "close"])
def test_a_failing_logger_ends_no_run(broken, quick, monkeypatch, capsys):
    def fails(*args, **kwargs):
        raise ValueError("no room")

    monkeypatch.setattr(WandbRun, broken, fails)
    whole = quick()
    assert json.loads((whole / "summary.json").read_text())["steps"] == 4
    assert max(rows_of(whole)) == 4
    assert capsys.readouterr().err.count("W&B failed (ValueError: no room)") == 1


def test_the_mode_is_offline_without_a_key(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    assert mode() == "offline"
    (tmp_path / ".netrc").write_text("machine elsewhere.org login user password 123\n")
    assert mode() == "offline"
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password 123\n")
    assert mode() == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert mode() == "disabled"


def test_values_of_secret_variables_are_hidden_wherever_they_stand(monkeypatch):
    monkeypatch.setenv("HUB_TOKEN", "hf_abcdefgh")
    monkeypatch.setenv("USE_TOKENIZERS_TOKEN", "1")
    config = {"path": "https://user:hf_abcdefgh@hub", "lists": [["hf_abcdefgh", 1]], "depth": "1", "none": None}
    assert without_secrets(config) == {"path": "(hidden)", "lists": [["(hidden)", 1]], "depth": "1", "none": None}


def test_only_a_folder_of_a_sweep_groups_its_runs(tmp_path):
    (tmp_path / "a/run").mkdir(parents=True)
    assert sweep_of(tmp_path / "a/run") is None
    (tmp_path / "a/sweep.json").write_text("{}")
    assert sweep_of(tmp_path / "a/run") == "a"


def test_answers_are_the_last_ones_and_at_most_so_many(tmp_path):
    lines = [{"step": step, "prompt_id": str(n), "answer": "<b>"} for step in (0, 8) for n in range(MOST_ANSWERS + 5)]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = answers(tmp_path)["samples"]
    assert len(rows) == MOST_ANSWERS
    assert {row[0] for row in rows} == {8}


def test_names_of_data_and_models():
    assert name_of("/x/miniature/data") == "miniature-data"
    assert name_of("data") == "data"
    assert name_of("a/prompts.parquet") == "prompts"


def test_records_that_began_in_one_second_are_all_set_aside(tmp_path):
    for text in ("first", "second", "third"):
        record = tmp_path / "wandb" / "offline-run-20260101_000000-id"
        record.mkdir(parents=True)
        (record / "text").write_text(text)
        set_aside(tmp_path, "id")
    kept = sorted((tmp_path / "wandb" / "superseded").iterdir())
    assert sorted((one / "text").read_text() for one in kept) == ["first", "second", "third"]
    assert not list((tmp_path / "wandb").glob("offline-run-*"))
