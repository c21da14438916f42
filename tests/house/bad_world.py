"""A folder of good things (data, models, runs) and of broken ones, which commands of the corpus name by `$name`."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from string import Template
from typing import Any

import kit
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file

from fuserl.records.formats import read_groups
from fuserl.records.store import write_groups

SHIPPED = kit.ROOT / "src/fuserl/miniature/target"
TINY = ["batch_size=4", "max_steps=1", "logger=csv", "trainer.progress_bar=false", "trainer.accelerator=cpu",
        "probe.prompts=0", "data.validation_fraction=0", "cache=$cache"]  # fmt: skip

# A command of each verb that works, to which a case adds what is wrong.
GOOD: dict[str, list[str]] = {
    "generate": ["data.path=$data", "+sources.t.path=$model", "samples=1", "max_tokens=2", "engine.device=cpu", "data.limit=2"],
    "score": ["data.path=$data", "reward=literal"],
    "select": ["data.path=$data", "rules=none", "validation_fraction=0"],
    "align": ["data=own", "data.path=$data", "target.path=$model", "+sources.a.path=$model", "cache=$cache",
              "collector.device=cpu", "progress_bar=false", "data.validation_fraction=0"],
    "merge": ["base=$model", "experts=[$expert,$model]", "merge=linear"],
    "evaluate": ["model=$model", "data=own", "data.path=$data", "split=train", "device=cpu", "samples=0", "progress_bar=false", "cache=$cache"],
    "train": ["data=own", "data.path=$data", "target.path=$model", *TINY],
    "plan": ["data=own", "data.path=$data", "target.path=$model", *TINY],
    "compare": ["runs=[$run]"],
    "doctor": ["cache=$cache"],
}  # fmt: skip
HAS_OUTPUT = GOOD.keys() - {"doctor", "plan"}


def rows(number: int = 8) -> list[dict[str, Any]]:
    """Good ones: two sources, two samples, rewards."""
    texts = ["12 30", "10 32", "11 31", "9 33"]
    return [
        {
            "prompt_id": f"p{n}",
            "prompt": f"pair {n + 30}",
            "domain": "pair",
            "reference": "4",
            "responses": [
                {"source": f"s{at // 2}", "sample": at % 2, "text": text, "reward": 0.1 * at + 0.01 * n}
                for at, text in enumerate(texts)
            ],
        }
        for n in range(number)
    ]


def lines(content: Sequence[Any]) -> bytes:
    """As JSON lines."""
    return "\n".join(json.dumps(row) for row in content).encode()


def write_run(folder: Path) -> Path:
    """What `compare` reads of a run."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("seed: 0\nobjective: {name: fusesft}\ntarget: {path: m}\n")
    (folder / "metrics.csv").write_text("step,train/loss,val/nll\n1,2.0,1.5\n2,1.0,1.25\n")
    (folder / "summary.json").write_text(json.dumps({"verb": "train", "steps": 2}))
    return folder


class World:
    """Built once; every broken thing is built when a case first names it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.names: dict[str, Path] = {"cache": folder / "cache", "shipped": SHIPPED, "folder": folder}
        (folder / "data.jsonl").write_bytes(lines(rows()))
        self.names["data"] = folder / "data.jsonl"
        self.names["model"] = shutil.copytree(SHIPPED, folder / "model")
        self.names["expert"] = shutil.copytree(SHIPPED, folder / "expert")
        weights = load_file(folder / "expert/model.safetensors")
        torch.manual_seed(0)
        weights = {name: weight + 0.01 * torch.randn(weight.shape).to(weight.dtype) for name, weight in weights.items()}
        save_file(weights, folder / "expert/model.safetensors", {"format": "pt"})
        self.names["run"] = write_run(folder / "run")

    def good(self, verb: str, output: Path) -> list[str]:
        """Overrides of the command that works."""
        return self.filled([*GOOD[verb], *([f"output={output}"] if verb in HAS_OUTPUT else [])])

    def bad(self, verb: str, output: Path, more: Sequence[str]) -> list[str]:
        """The same with what is wrong: an override of the same setting replaces the good one; `~~` starts from nothing."""
        if more[:1] == ["~~"]:
            return self.filled(more[1:])
        replaced = {one.lstrip("+").split("=")[0] for one in more}
        kept = [one for one in self.good(verb, output) if one.lstrip("+").split("=")[0] not in replaced]
        server = "engine=openai" in more
        return self.filled([*(one for one in kept if not (server and one.startswith("engine."))), *more])

    def filled(self, overrides: Sequence[str]) -> list[str]:
        """With paths for `$name`."""
        return [Template(one).substitute(self) if "$" in one else one for one in overrides]

    def __getitem__(self, name: str) -> Path:
        if name not in self.names:
            folder = self.folder / name
            folder.mkdir()
            self.names[name] = BROKEN[name](folder)
        return self.names[name]


def file_of(content: bytes, name: str = "d.jsonl") -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return build


def table_of(columns: dict[str, Any]) -> Callable[[Path], Path]:
    """A parquet file of surprising types."""

    def build(folder: Path) -> Path:
        pq.write_table(pa.table(columns), folder / "d.parquet")
        return folder / "d.parquet"

    return build


def model_with(*changes: Callable[[Path], Any]) -> Callable[[Path], Path]:
    """The shipped model, changed."""

    def build(folder: Path) -> Path:
        shutil.copytree(SHIPPED, folder / "m")
        for change in changes:
            change(folder / "m")
        return folder / "m"

    return build


def without(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).unlink()


def written(name: str, content: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(content)


def cut(name: str, size: int) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def settings_with(**fields: Any) -> Callable[[Path], Any]:
    """`config.json` with other values."""

    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def loop(folder: Path) -> Path:
    os.symlink(folder / "a", folder / "b")
    os.symlink(folder / "b", folder / "a")
    return folder / "a"


def data_set(change: Callable[[Path], Any]) -> Callable[[Path], Path]:
    """A folder that `write_groups` wrote, damaged."""

    def build(folder: Path) -> Path:
        (folder / "good.jsonl").write_bytes(lines(rows()))
        write_groups(read_groups(folder / "good.jsonl"), folder / "set")
        change(folder / "set")
        return folder / "set"

    return build


def damaged_part(folder: Path) -> None:
    part = next(folder.glob("*.parquet"))
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)


def manifest_of(text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / "manifest.json").write_text(text)


def named_outside(folder: Path) -> None:
    """A manifest that names a file of another folder."""
    part = next(folder.glob("*.parquet"))
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace(part.name, f"../{part.name}"))
    part.rename(folder.parent / part.name)


def run_with(*changes: Callable[[Path], Any]) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        write_run(folder / "r")
        for change in changes:
            change(folder / "r")
        return folder / "r"

    return build


def adapter_of(base: str) -> Callable[[Path], Path]:
    """A LoRA folder without its base."""

    def build(folder: Path) -> Path:
        content = {"peft_type": "LORA", "base_model_name_or_path": base, "r": 2, "target_modules": ["q_proj"]}
        (folder / "adapter_config.json").write_text(json.dumps(content))
        save_file({"x": torch.zeros(1)}, folder / "adapter_model.safetensors")
        return folder

    return build


def folder_with_a_file(folder: Path) -> Path:
    (folder / "file").write_text("")
    return folder / "file"


CODE = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model", "AutoTokenizer": ["code.Tokenizer", None]}
CANARY = b"from pathlib import Path\nPath(__file__).with_name('canary').write_text('run')\nPath('canary').write_text('run')\n"


def remote_code(folder: Path) -> Path:
    """A model of an unknown kind with code beside it that leaves a canary where it is run."""
    (folder / "config.json").write_text(json.dumps({"model_type": "strange", "auto_map": CODE}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": CODE}))
    (folder / "code.py").write_bytes(CANARY)
    return folder


GOOD_LINES = lines(rows())
DEEP = b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
BROKEN: dict[str, Callable[[Path], Path]] = {
    "nowhere": lambda folder: folder / "nowhere.jsonl",
    "nofolder": lambda folder: folder / "no" / "folder",
    "empty": lambda folder: folder,
    "loop": loop,
    "file": folder_with_a_file,
    "long_name": lambda folder: folder / ("x" * 300 + ".jsonl"),
    "empty_file": file_of(b""),
    "blank_lines": file_of(b"\n\n \n"),
    "nul_bytes": file_of(b"\0" * 4096),
    "binary": file_of(bytes(range(256)) * 8),
    "latin1": file_of('{"prompt": "caf\xe9"}'.encode("latin-1")),
    "utf16": file_of('{"prompt": "a"}'.encode("utf-16")),
    "array": file_of(b"[1, 2]"),
    "number": file_of(b"7"),
    "half": file_of(GOOD_LINES[: len(GOOD_LINES) - 20]),
    "deep": file_of(DEEP),
    "huge_number": file_of(b'{"prompt": "a", "responses": [{"source": "s", "text": "b", "reward": 1e999}]}'),
    "many_digits": file_of(b'{"prompt": "a", "responses": [{"source": "s", "text": "b", "sample": 1' + b"0" * 5000 + b"}]}"),
    "no_gzip": file_of(b"hello", "d.jsonl.gz"),
    "half_gzip": file_of(gzip.compress(GOOD_LINES * 20)[:-30], "d.jsonl.gz"),
    "gzip_of_noise": file_of(gzip.compress(bytes(range(256))), "d.jsonl.gz"),
    "no_parquet": file_of(b"PAR1 no PAR1", "d.parquet"),
    "numbers_table": table_of({"prompt": [1, 2], "responses": [3.0, 4.0]}),
    "wrong_columns": table_of({"a": [1]}),
    "null_table": table_of({"prompt": pa.nulls(2), "responses": pa.nulls(2)}),
    "dates_table": table_of({"prompt": pa.array([1], pa.timestamp("s")), "responses": pa.array([[b"x"]])}),
    "ending": file_of(GOOD_LINES, "d.docx"),
    "set_without_part": data_set(lambda folder: next(folder.glob("*.parquet")).unlink()),
    "set_damaged": data_set(damaged_part),
    "set_manifest_empty": data_set(manifest_of("")),
    "set_manifest_list": data_set(manifest_of("[]")),
    "set_manifest_types": data_set(manifest_of('{"groups": "x", "schema_version": []}')),
    "set_manifest_deep": data_set(manifest_of("[" * 100_000)),
    "set_outside": data_set(named_outside),
    "no_config": model_with(without("config.json")),
    "config_no_json": model_with(written("config.json", b"{")),
    "config_binary": model_with(written("config.json", b"\xff\xfe\0")),
    "config_list": model_with(written("config.json", b"[]")),
    "config_unknown": model_with(settings_with(model_type="strange")),
    "config_types": model_with(settings_with(hidden_size="wide", d_model="wide", num_hidden_layers="deep")),
    "config_negative": model_with(settings_with(hidden_size=-8, num_hidden_layers=-2)),
    "config_wider": model_with(settings_with(hidden_size=512, intermediate_size=8)),
    "no_weights": model_with(without("model.safetensors")),
    "weights_empty": model_with(written("model.safetensors", b"")),
    "weights_cut": model_with(cut("model.safetensors", 4000)),
    "weights_noise": model_with(written("model.safetensors", bytes(range(256)) * 40)),
    "weights_huge_header": model_with(written("model.safetensors", b"\xff" * 8 + b"{}")),
    "pickled": model_with(pickled),
    "no_tokenizer": model_with(without("tokenizer.json"), without("tokenizer_config.json")),
    "tokenizer_noise": model_with(written("tokenizer.json", b"\0\1\2")),
    "tokenizer_types": model_with(written("tokenizer.json", b'{"model": 7}')),
    "template_broken": model_with(written("chat_template.jinja", b"{% for x in %}")),
    "template_endless": model_with(written("chat_template.jinja", b"{% for a in range(10**9) %}x{% endfor %}")),
    "template_escape": model_with(written("chat_template.jinja", b"{{ ''.__class__.__mro__[1].__subclasses__() }}")),
    "template_binary": model_with(written("chat_template.jinja", b"\xff\xfe\0\0")),
    "template_empty": model_with(written("chat_template.jinja", b"")),
    "adapter": adapter_of("/nowhere/base"),
    "adapter_hub": adapter_of("nobody/nothing"),
    "remote_code": remote_code,
    "jinja_broken": file_of(b"{{ messages[", "t.jinja"),
    "jinja_binary": file_of(b"\xff\xfe", "t.jinja"),
    "jinja_folder": lambda folder: (folder / "t.jinja").mkdir() or folder / "t.jinja",
    "run_no_config": run_with(without("config.yaml")),
    "run_config_broken": run_with(written("config.yaml", b"a: [")),
    "run_config_list": run_with(written("config.yaml", b"- a\n")),
    "run_config_tag": run_with(written("config.yaml", b"!!python/object/apply:os.system ['touch canary']\n")),
    "run_config_binary": run_with(written("config.yaml", b"\xff\xfe\0")),
    "run_metrics_binary": run_with(written("metrics.csv", b"\xff\xfe\0\0")),
    "run_metrics_words": run_with(written("metrics.csv", b"step,val/nll\none,two\n")),
    "run_summary_list": run_with(written("summary.json", b"[1]")),
    "run_summary_broken": run_with(written("summary.json", b"{")),
    "run_summary_deep": run_with(written("summary.json", b"[" * 100_000)),
}  # fmt: skip
