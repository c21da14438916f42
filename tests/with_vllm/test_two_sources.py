"""From two sources, one in vLLM's offline engine and one behind `vllm serve`, to a trained target."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.request import urlopen

import kit
import pytest

from fuserl.models.load import load_policy
from fuserl.records.formats import read_groups
from fuserl.records.schema import PromptGroup

BIN = Path(sys.executable).parent
SAMPLES, PROMPTS = 4, 30
ASK = (f"samples={SAMPLES}", "max_tokens=16", "data.path=prompts.jsonl", "output=answers")


def fuserl(folder: Path, *arguments: str) -> None:
    done = subprocess.run([str(BIN / "fuserl"), *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@contextmanager
def served(model: Path, log: Path) -> Iterator[Callable[[], str]]:
    """`vllm serve` on its way; the function waits for it and gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, str(Path(__file__).with_name("vllm_command.py")), "serve", str(model), "--served-model-name", "llama",
        "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--max-model-len", "128", "--enforce-eager",
        "--generation-config", "vllm",
    ]  # fmt: skip
    with log.open("w") as out:
        server = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)

    def address() -> str:
        until = time.monotonic() + 400
        while time.monotonic() < until and server.poll() is None:
            with suppress(OSError), urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return f"http://127.0.0.1:{port}/v1"
            time.sleep(1)
        pytest.fail(f"the server did not start: {log.read_text()[-3000:]}")

    try:
        yield address
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def folder(models: dict[str, Path], tmp_path_factory) -> Path:
    """Both sources' answers, one data set; scored; a target trained on them."""
    folder = tmp_path_factory.mktemp("work")
    groups = list(read_groups(kit.ROOT / "src/fuserl/miniature/data/train.jsonl.gz"))[:PROMPTS]
    lines = [json.dumps({"prompt_id": g.id, "prompt": g.prompt[-1].content, "domain": g.domain}) for g in groups]
    (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    with served(models["llama"], folder / "server.log") as address:
        offline = ("engine=vllm", "engine.enforce_eager=true", f"+sources.qwen3.path={models['qwen3']}")
        fuserl(folder, "generate", *offline, "+sources.qwen3.dtype=float32", "+sources.qwen3.context=128", *ASK)
        fuserl(folder, "generate", "engine=openai", f"engine.url={address()}", "+sources.llama.path=llama", *ASK)
    function = ("reward=function", "rewards.function.path=fuserl.miniature.tasks.score")
    fuserl(folder, "score", "data.path=answers", *function, "output=scored")
    settings = (
        "objective=fusesft",
        "max_steps=3",
        "batch_size=8",
        "trainer.accelerator=cpu",
        "probe.prompts=0",
        "logger=csv",
    )
    fuserl(folder, "train", "data=own", "data.path=scored", f"target.path={models['llama']}", *settings, "output=run")
    return folder


def grouped(folder: Path) -> list[PromptGroup]:
    groups = list(read_groups(folder / "answers"))
    assert len(groups) == PROMPTS
    return groups


def test_one_data_set_holds_the_answers_of_both(folder):
    for group in grouped(folder):
        for source in ("qwen3", "llama"):
            own = [response for response in group.responses if response.source == source]
            assert [response.sample for response in own] == list(range(SAMPLES))
            for response in own:
                asked = {"max_tokens": 16, "temperature": 0.8, "top_p": 0.95, "top_k": 0, "repetition_penalty": 1.0}
                assert asked.items() <= dict(response.sampling).items(), "not what generation_config.json says"
                assert response.finish_reason in ("stop", "length")
                assert "<|" not in response.text
                assert "</s>" not in response.text


def test_most_answers_say_something_and_samples_differ(folder):
    groups = grouped(folder)
    texts = [response.text for group in groups for response in group.responses]
    assert sum(map(bool, texts)) > 0.9 * len(texts)
    for source in ("qwen3", "llama"):
        own = [[r.text for r in group.responses if r.source == source] for group in groups]
        assert sum(len(set(answers)) > 1 for answers in own) > PROMPTS // 2
        stopped = [r.finish_reason == "stop" for group in groups for r in group.responses if r.source == source]
        assert sum(stopped) > len(stopped) // 2


def test_the_same_command_asks_nothing_again(folder, models):
    """Complete for this source: neither an engine nor a server is needed."""
    before = (folder / "answers" / "manifest.json").read_bytes()
    fuserl(folder, "generate", "engine=openai", "engine.url=http://127.0.0.1:9/v1", "+sources.llama.path=llama", *ASK)
    assert (folder / "answers" / "manifest.json").read_bytes() == before


def test_a_target_has_learnt_from_them(folder):
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert summary["steps"] == 3
    assert load_policy(str(folder / "run" / "model")) is not None
