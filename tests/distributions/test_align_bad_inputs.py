"""Every mistake is one message: what is wrong, where, and the way out. No folder is begun before all is known to work."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from align_kit import like_target, models, overrides, run, write_data  # noqa: F401
from transformers import PreTrainedTokenizerFast

from fuserl.distributions.readers import sources_of
from fuserl.errors import FuserlError
from fuserl.settings import compose


@pytest.fixture
def refused(models, tmp_path):  # noqa: F811
    """`refused(what, where, setting, ...)`: the verb says so, and leaves the output folder for a corrected command."""
    data = write_data(tmp_path / "data.jsonl")

    def go(what: str, where: str, *more: str, sources=("pieces",), hint: str = "") -> None:
        with pytest.raises(FuserlError) as error:
            run(overrides(models, data, tmp_path, *more, sources=sources))
        assert what in error.value.what
        assert where in error.value.where
        assert hint in error.value.hint
        assert error.value.hint or what.startswith("Could not")
        assert not (tmp_path / "out" / "begun.json").exists()

    return go


def with_tokenizer(folder: Path, models, name: str, change) -> Path:  # noqa: F811
    """A model whose tokenizer is another."""
    shutil.copytree(models[name], folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.chat_template = None
    change(tokenizer)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("what", "where", "setting"),
    [
        ("has no model", "sources.a.path", "+sources.a.dtype=float32"),
        ("has no model", "sources.a.path", "+sources.a=null"),
        ("is its settings", "sources.a", "+sources.a=some/model"),
        ("no setting `dtpye`", "sources.a", "+sources.a={path: x, dtpye: float32}"),
        ("tokenizer cannot be loaded", "sources.a.path=/nowhere/x", "+sources.a.path=/nowhere/x"),
        ("cannot be called `target`", "sources", "+sources.target.path=x"),
        ("cannot be called `all`", "sources", "+sources.all.path=x"),
        ("`trust_remote_code` is 'please'", "sources.a", "+sources.a={path: x, trust_remote_code: please}"),
        ("no dtype `float17`", "target.path", "target.dtype=float17"),
        ("`k` is 0", "`k`", "k=0"),
        ("`k` is 2.5", "`k`", "k=2.5"),
        ("`k` is 2000", "`k`", "k=2000"),
        ("`max_tokens` is 0", "collector.max_tokens", "collector.max_tokens=0"),
        ("`packing` is", "collector.packing", "collector.packing=tight"),
        ("`logits_memory` is", "collector.logits_memory", "collector.logits_memory=0"),
        ("cannot be made", "aligner", "+aligner.window=3"),
        ("`scope` is 'all'", "`aligner.scope`", "aligner.scope=all"),
        ("no choice of `pool`", "`pool`", "pool=best"),
        ("no number of responses", "`size`", "size=0"),
        ("no text is left", "data.path", "data.max_length=3"),
        ("cache cannot be made", "/dev/null/x", "cache=/dev/null/x"),
        ("output folder cannot", "/dev/null/x", "output=/dev/null/x"),
    ],
)
def test_mistakes_in_settings(refused, what, where, setting):
    refused(what, where, setting)


@pytest.mark.parametrize("name", ["..", ".", "a/b", "/tmp", "", "-x", "a b", "a\n", "ä", "x" * 200, ".hidden"])
def test_names_that_are_no_folders(name):
    with pytest.raises(FuserlError, match="cannot be called"):
        sources_of({name: {"path": "x"}}, {})
    assert (
        sources_of({"Qwen2.5-7B_it": {"path": "x", "dtype": None}}, {"dtype": "auto", "trust_remote_code": False})[
            0
        ].dtype
        == "auto"
    )


def test_no_sources(refused):
    refused("no source is chosen", "sources", sources=(), hint="+sources.NAME.path=")


@pytest.mark.parametrize("setting", ["matching=soft", "blend=max", "colector=vllm", "kk=3"])
def test_unknown_groups_and_options(setting):
    with pytest.raises(FuserlError):
        compose("align", [setting])


def test_a_tokenizer_with_more_tokens_than_its_model(refused, models, tmp_path):  # noqa: F811
    more = like_target(models, tmp_path / "more", more_tokens=10)
    refused("the model only 336", "sources.more.path", f"+sources.more.path={more}", hint="another model's tokenizer")


def test_a_target_without_a_template(refused, models, tmp_path):  # noqa: F811
    bare = with_tokenizer(tmp_path / "bare", models, "target", lambda tokenizer: None)
    refused("no chat template", "target.path", f"target.path={bare}", hint="`target.chat_template=")


def test_a_source_without_an_end(refused, models, tmp_path):  # noqa: F811
    def change(tokenizer):
        tokenizer.eos_token = None

    endless = with_tokenizer(tmp_path / "endless", models, "pieces", change)
    refused("token that ends a response", "sources.x.path", f"+sources.x.path={endless}", hint="eos_token")


def test_a_model_whose_weights_are_pickled(refused, models, tmp_path):  # noqa: F811
    """Seen when it is loaded: the folder is begun by then, and what was read is kept."""
    pickled = tmp_path / "pickled"
    shutil.copytree(models["pieces"], pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    data = write_data(tmp_path / "data.jsonl")
    with pytest.raises(FuserlError, match="cannot be loaded") as error:
        run(overrides(models, data, tmp_path, f"+sources.x.path={pickled}", sources=()))
    assert "sources.x.path" in error.value.where


@pytest.mark.parametrize(("rows", "what"), [("", "no text|holds no|empty"), ('{"prompt": "x"}\n', "responses")])
def test_data_without_responses(models, tmp_path, rows, what):  # noqa: F811
    (tmp_path / "data.jsonl").write_text(rows)
    with pytest.raises(FuserlError, match=what) as error:
        run(overrides(models, tmp_path / "data.jsonl", tmp_path, sources=("pieces",)))
    assert "data.jsonl" in error.value.where


def test_responses_without_rewards_cannot_be_chosen_among(refused, tmp_path):
    row = {"prompt_id": "p", "prompt": "x", "responses": [{"source": "s", "text": f"{n}"} for n in range(3)]}
    (tmp_path / "bare.jsonl").write_text(json.dumps(row) + "\n")
    refused("no text is left", "bare.jsonl", f"data.path={tmp_path / 'bare.jsonl'}", "size=1", hint="fuserl score")


def test_a_folder_of_something_else(models, tmp_path):  # noqa: F811
    data = write_data(tmp_path / "data.jsonl")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(FuserlError, match="did not make"):
        run(overrides(models, data, tmp_path, sources=("pieces",)))
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


def test_the_terminal_shows_the_message_alone(models, tmp_path):  # noqa: F811
    data = write_data(tmp_path / "data.jsonl")
    command = [sys.executable, "-m", "fuserl", "align", *overrides(models, data, tmp_path, "k=0")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: `k` is 0\n  where: `k`\n  hint:  ")
    assert "Traceback" not in done.stderr
