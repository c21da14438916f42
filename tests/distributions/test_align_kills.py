"""`align` is continued, repeated, run twice at once: its folder holds what one quiet run writes; `tests/kills` kills it."""

from __future__ import annotations

import os
import subprocess
import sys

import kit
import pytest
from align_kit import like_target, models, overrides, run, write_data  # noqa: F401

from fuserl.distributions import collect, collect_transformers
from fuserl.distributions.readers import Model
from fuserl.errors import FuserlError
from fuserl.records.journal import locked


@pytest.fixture
def settings(models, tmp_path):  # noqa: F811
    """`settings(setting, ...)` of the small run."""
    groups = {f"What is {n} and {n}?": [f"It is {n + n}.", f"{n} and {n} are {n + n}"] for n in range(24)}
    data = write_data(tmp_path / "data.jsonl", groups)
    return lambda *more: overrides(models, data, tmp_path, "collector.max_tokens=1", "blend=avg_ce", *more)


def test_a_finished_folder_is_left_alone(settings, tmp_path, capsys, monkeypatch):
    out = run(settings())
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    monkeypatch.setattr(collect, "collected", None)
    run(settings("collector.max_tokens=500", "progress_bar=true"))
    assert "finished already" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_other_settings_data_or_weights_are_refused(settings, models, tmp_path):  # noqa: F811
    copy = like_target(models, tmp_path / "copy")
    arguments = settings(f"+sources.copy.path={copy}")
    run(arguments)
    with pytest.raises(FuserlError, match=r"begun with other settings \(k: 10 -> 5"):
        run([*arguments, "k=5"])
    with pytest.raises(FuserlError, match="begun with other settings"):
        run(settings())
    weights = copy / "model.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes(kept[:-4] + b"\0\0\0\1")
    with pytest.raises(FuserlError, match=r"begun with other inputs \(models"):
        run(arguments)
    weights.write_bytes(kept)
    with (tmp_path / "data.jsonl").open("a") as file:
        file.write('{"prompt_id": "z", "prompt": "z", "responses": [{"source": "s", "text": "z", "reward": 0.0}]}\n')
    with pytest.raises(FuserlError, match=r"begun with other inputs \(data"):
        run(arguments)


def test_a_corrected_command_may_use_the_same_folder(settings, tmp_path):
    """What could not work has begun nothing."""
    with pytest.raises(FuserlError, match="tokenizer cannot be loaded"):
        run(settings("+sources.x.path=/nowhere/x"))
    run(settings())


def test_two_processes_in_one_folder(settings, tmp_path):
    with locked(tmp_path / "out"), pytest.raises(FuserlError, match="another process is working in this folder"):
        run(settings())


def test_a_cache_shared_by_two_outputs_reads_a_model_once(settings, tmp_path, monkeypatch):
    run(settings())
    monkeypatch.setattr(collect_transformers, "load_policy", None)
    other = run(settings("matching=exact", f"output={tmp_path / 'other'}"))
    assert (other / "manifest.json").exists()


def test_a_cache_that_another_process_fills_is_waited_for(settings, tmp_path, monkeypatch, capsys):
    """Two commands that differ in what comes after reading."""
    run(settings())
    folders = list((tmp_path / "cache/distributions").iterdir())
    holds = locked(folders[0])
    holds.__enter__()
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        holds.__exit__(None, None, None)

    monkeypatch.setattr(collect.time, "sleep", sleep)
    run(settings("matching=exact", f"output={tmp_path / 'other'}"))
    assert waited == [collect.WAIT]
    assert "waiting for it" in capsys.readouterr().err


def test_a_model_is_known_by_its_content(models, tmp_path):  # noqa: F811
    said = {"path": str(models["pieces"]), "dtype": "auto", "revision": None, "trust_remote_code": False}
    one = Model.of("a", said, {}).with_content()
    other = Model.of("b", {**said, "path": str(like_target(models, tmp_path / "copy"))}, {}).with_content()
    assert one.identity() != other.identity()
    assert one.identity() == Model.of("c", said, {}).with_content().identity()


def test_no_bar_of_a_library_shows(settings, tmp_path):
    """On the terminal stand our lines alone."""
    command = [sys.executable, "-m", "fuserl", "align", *settings()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(kit.ROOT / "tests/distributions")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "Loading" not in done.stderr
    assert "it/s" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line and line[0].isascii() and line[0].isalpha()]
    assert [line.split(":")[0] for line in lines] == ["align", "done"]
