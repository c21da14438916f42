"""Laws of SECURITY.md: no shell, no unpacking, no code of a checkpoint, no way out of a folder, no secret on disk."""

from __future__ import annotations

import ast
import json
import os
import shutil
from pathlib import Path

import kit
import pytest
import torch
from bad_world import CANARY, CODE, SHIPPED, lines, rows
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.exceptions import SecurityError, TemplateError
from openai_server import Server

from fuserl.cli import run_verb
from fuserl.errors import FuserlError
from fuserl.reporting.window import without_secrets
from fuserl.settings import compose
from fuserl.sources.source import source_of
from fuserl.tokens import templates
from fuserl.tokens.templates import load_template

SOURCES = sorted((kit.ROOT / "src").rglob("*.py"))
SECRET = "sk-planted-4f1d9c2a77e0b8"


def calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_no_text_reaches_a_shell():
    """Neither shell=True nor a function that has a shell of its own; commands are lists."""
    forbidden = {
        "os.system",
        "os.popen",
        "subprocess.getoutput",
        "subprocess.getstatusoutput",
        "commands.getoutput",
        "pty.spawn",
    }
    for path in SOURCES:
        for name, call in calls(ast.parse(path.read_text())):
            assert name not in forbidden, (path, name)
            assert not any(word.arg == "shell" for word in call.keywords), (path, ast.unparse(call))
            if (
                name in ("subprocess.run", "subprocess.Popen", "subprocess.check_output", "subprocess.call")
                and call.args
            ):
                assert not isinstance(call.args[0], ast.Constant | ast.JoinedStr | ast.BinOp), (path, ast.unparse(call))


def test_no_archive_is_unpacked_and_no_text_is_run():
    """Programs of models run in the sandbox's guest alone (`rewards/inside`); YAML is read by safe loaders."""
    archives = {"tarfile", "zipfile", "rarfile", "py7zr"}
    sums_alone = {"checkpoints.py"}  # reads the CRCs of torch's own zip files
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found = archives & {one.name for one in node.names}
                assert not found or (path.name in sums_alone and found == {"zipfile"}), path
            if isinstance(node, ast.ImportFrom):
                assert node.module not in archives, path
        for name, call in calls(tree):
            assert not name.endswith((".extract", ".extractall")), (path, name)
            assert name not in ("shutil.unpack_archive", "yaml.unsafe_load", "yaml.full_load"), (path, name)
            assert name not in ("eval", "exec", "compile", "__import__") or "inside" in path.parts, (
                path,
                ast.unparse(call),
            )
            if name == "yaml.load":
                assert "SafeLoader" in path.read_text(), path


class Canary:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def world(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.jsonl").write_bytes(lines(rows()))
    for kind in ("pickled", "coded"):
        shutil.copytree(SHIPPED, tmp_path / kind)
    (tmp_path / "pickled/model.safetensors").unlink()
    torch.save({"x": Canary(tmp_path / "canary")}, tmp_path / "pickled/pytorch_model.bin")
    for name in ("config.json", "tokenizer_config.json"):
        path = tmp_path / "coded" / name
        changed = {"model_type": "strange", "auto_map": CODE} if name == "config.json" else {"auto_map": CODE}
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    (tmp_path / "coded/code.py").write_bytes(CANARY)
    return tmp_path


def commands(model: Path) -> dict[str, list[str]]:
    data = [f"data.path={model.parent / 'data.jsonl'}"]
    own = ["data=own", *data, "data.validation_fraction=0"]
    return {
        "generate": [*data, f"+sources.t.path={model}", "engine.device=cpu", "samples=1", "max_tokens=2", "output=out"],
        "score": [*data, "reward=reward_model", f"rewards.reward_model.path={model}", "output=out"],
        "align": [
            *own,
            f"target.path={SHIPPED}",
            f"+sources.a.path={model}",
            "cache=cache",
            "output=out",
            "progress_bar=false",
        ],
        "merge": [f"base={model}", f"experts=[{SHIPPED},{model}]", "merge=linear", "output=out"],
        "evaluate": [f"model={model}", *own[:2], "split=train", "samples=0", "cache=cache", "device=cpu", "output=out"],
        "train": [
            *own,
            f"target.path={model}",
            "cache=cache",
            "max_steps=1",
            "trainer.accelerator=cpu",
            "output=out",
            "logger=csv",
        ],
    }


@pytest.mark.parametrize("kind", ["pickled", "coded"])
@pytest.mark.parametrize("verb", ["generate", "score", "align", "merge", "evaluate", "train"])
def test_no_verb_runs_what_a_checkpoint_brings(world, verb, kind):
    """A pickle that would leave a canary, and Python beside the weights that would: refused with the way out, and not run."""
    with pytest.raises(FuserlError) as caught:
        run_verb(verb, commands(world / kind)[verb])
    assert caught.value.hint
    said = str(caught.value)
    assert any(word in said for word in ("safetensors", "pickle", "run code", "executed", "weights")), said
    assert not list(world.rglob("canary"))


def test_the_canary_sings_where_a_pickle_is_run(world):
    torch.load(world / "pickled/pytorch_model.bin", weights_only=False)
    assert (world / "canary").exists()


ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__base__ }}",
    "{{ cycler.__init__.__globals__.os.system('touch canary') }}",
    "{{ (messages|attr('__class__'))|attr('__mro__') }}",
    "{{ raise_exception.__globals__ }}",
    "{{ self.__init__.__globals__ }}",
    "{% import 'os' as os %}{{ os.listdir('/') }}",
    "{% include '/etc/passwd' %}",
    "{{ ''.format.__func__ }}{{ '{0.__class__}'.format(messages) }}",
    "{{ lipsum.__globals__['os'].popen('touch canary').read() }}",
    "{% for x in range(10**9) %}x{% endfor %}",
    "{{ messages.append(1) }}",
]


@pytest.mark.parametrize("template", ESCAPES)
def test_a_chat_template_stays_in_its_sandbox(world, template):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(SHIPPED)
    found = None
    try:
        found = load_template(tokenizer, chat_template=template).render_prompt([kit.Message("user", "hello")])
    except FuserlError as error:
        assert error.where or error.hint
    except (SecurityError, TemplateError) as error:
        pytest.fail(f"a raw {type(error).__name__}")
    assert not list(world.rglob("canary"))
    assert found is None or not any(word in found for word in ("root:", "subclass", "<class", "module"))


def test_a_chat_template_that_does_not_end_is_broken_off(monkeypatch):
    from transformers import AutoTokenizer

    loops = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    monkeypatch.setattr(templates, "PATIENCE", 0.2)
    with pytest.raises(FuserlError, match="has not ended after"):
        load_template(AutoTokenizer.from_pretrained(SHIPPED), chat_template=loops)


HOSTILE = [
    "../x",
    "..",
    ".",
    "/etc/x",
    "a/b",
    "a\\..\\b",
    "a\0b",
    "",
    " ",
    "x" * 300,
    "\u2025/x",
    "a\nb",
    "\u202e",
    "~root",
    "CON",
    "-rf",
]


@settings(max_examples=100, derandomize=True, deadline=None)
@given(name=st.sampled_from(HOSTILE) | st.text(max_size=12))
def test_the_name_of_a_source_is_a_name_or_is_refused(name):
    try:
        source = source_of(name, {"path": "m", "sampling": {"max_tokens": 1}})
    except FuserlError:
        return
    assert source.name == name
    assert "\0" not in name


@pytest.mark.parametrize("name", ["../out_of_it", "..", "a/b", "/tmp/fuserl_out_of_it"])
def test_names_of_sources_and_scorers_lead_to_no_other_folder(world, name):
    before = {path for path in world.rglob("*") if "out" not in path.parts}
    asked = {
        "generate": ["data.path=data.jsonl", f"+sources.t={{path: {SHIPPED}, name: {name}}}", "engine.device=cpu", "samples=1", "max_tokens=2", "output=out/deep/here"],
        "score": ["data.path=data.jsonl", f"+rewards={{{name}: {{_target_: fuserl.rewards.format.FormatScorer}}}}", "output=out/deep/there"],
        "align": ["data=own", "data.path=data.jsonl", f"target.path={SHIPPED}", f"+sources={{{name}: {{path: {SHIPPED}}}}}", "pairwise=true", "output=out/deep/else", "cache=out/cache", "progress_bar=false"],
    }  # fmt: skip
    for verb, overrides in asked.items():
        try:
            run_verb(verb, overrides)
        except FuserlError as error:
            assert error.hint
    inside = set((world / "out").rglob("*"))
    assert {path for path in world.rglob("*") if "out" not in path.relative_to(world).parts} <= before | inside
    for path in (world / "out").rglob("*"):
        assert path.relative_to(world / "out").parts[0] in ("deep", "cache")
        assert (
            path.name in ("deep", "cache")
            or path.relative_to(world / "out").parts[0] == "cache"
            or path.parts[len((world / "out/deep").parts)] in ("here", "there", "else")
        )
    assert not Path("/tmp/fuserl_out_of_it").exists()


def nowhere(folder: Path, output: str) -> None:
    assert SECRET not in output
    for path in folder.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("verb", ["generate", "score", "evaluate"])
def test_a_server_that_repeats_the_key_puts_it_nowhere(world, monkeypatch, capfd, verb):
    """Generating, judging, and answering a benchmark, of a server that says the key in every answer and every error."""
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    (world / "q.jsonl").write_text(
        "".join(json.dumps({"question": f"{n}+1?", "answer": f"#### {n + 1}"}) + "\n" for n in range(3))
    )
    with Server(lambda call: {0: "400", 1: "500", 3: "malformed"}.get(call.number), key=SECRET, echo=True) as server:
        at = [f"engine.url={server.url}", "engine.backoff.first=0.01", "engine.attempts=3", "engine.patience=5"]
        overrides = {
            "generate": ["data.path=data.jsonl", "+sources.s.path=m", "samples=1", "max_tokens=9", "engine=openai", *at],
            "score": ["data.path=data.jsonl", "reward=judge", "rewards.judge.source.path=m", *(f"rewards.judge.{one}" for one in at)],
            "evaluate": ["model=m", "engine=openai", *at, "benchmark=[gsm8k]", "benchmarks.gsm8k.questions.path=q.jsonl"],
        }[verb]  # fmt: skip
        try:
            run_verb(verb, [*overrides, "on_failure=leave_out", "output=out"])
        except FuserlError as error:
            assert SECRET not in str(error)
        assert server.calls
    told = capfd.readouterr()
    nowhere(world, told.out + told.err)


def test_secrets_of_the_environment_leave_with_no_configuration(monkeypatch):
    monkeypatch.setenv("MY_SERVICE_TOKEN", SECRET)
    hidden = without_secrets({"a": [f"x{SECRET}"], "b": {"c": SECRET}, "d": "plain"})
    assert SECRET not in json.dumps(hidden)
    assert hidden["d"] == "plain"


def test_no_setting_asks_for_code_of_a_repository():
    """`trust_remote_code` is false wherever conf/ says it, but where a source's own page says that it needs it; none is true."""
    for path in (kit.ROOT / "conf").rglob("*.yaml"):
        assert "trust_remote_code: true" not in path.read_text(), path
    assert compose("generate", ["data.path=x"]).unsaid.trust_remote_code is False


def test_the_network_stays_closed_in_tests():
    assert os.environ["HF_HUB_OFFLINE"] == "1"
