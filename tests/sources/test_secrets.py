"""A key goes to its server and nowhere else: not into any file, any output, any error, whatever the server repeats."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback

import pytest
from openai_server import Server

from fuserl import cli
from fuserl.errors import FuserlError
from fuserl.records.formats import read_groups
from fuserl.sources.keys import LONGEST_LINE, Key

SECRET = "sk-planted-4f1d9c2a77e0b8"
PROMPTS = 6


@pytest.fixture
def ask(tmp_path, monkeypatch, capfd):
    """Run `fuserl generate` in a folder; (exit code, output), once it is sure that the key is nowhere."""
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"{n}?"}) + "\n" for n in range(PROMPTS)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)

    def run(server: Server, *overrides: str, log: str | None = None) -> tuple[int, str]:
        arguments = [
            "generate", "data.path=prompts.jsonl", "+sources.s.path=m", "samples=2", "max_tokens=20", "engine=openai",
            f"engine.url={server.url}", "engine.backoff.first=0.01", "engine.attempts=3", "output=out", *overrides,
        ]  # fmt: skip
        code = in_a_process(arguments, log) if log else in_here(arguments)
        told = capfd.readouterr()
        output = told.out + told.err
        assert server.calls or "error" in output
        assert_nowhere(tmp_path, output)
        return code, output

    def in_here(arguments: list[str]) -> int:
        monkeypatch.setattr(sys, "argv", ["fuserl", *arguments])
        try:
            cli.main()
        except SystemExit as left:
            return int(left.code or 0)
        return 0

    return run


def in_a_process(arguments: list[str], log: str) -> int:
    return subprocess.run([sys.executable, "-m", "fuserl", *arguments], env=os.environ | {"OPENAI_LOG": log}).returncode


def assert_nowhere(folder, output: str) -> None:
    assert SECRET not in output
    for path in folder.rglob("*"):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path
    assert SECRET not in str(list(folder.rglob("*")))


def test_a_server_that_repeats_the_key_in_answers_errors_and_headers(ask, tmp_path):
    """Also in what is written with the client's own log at its most talkative."""
    faults = {0: "400", 1: "500", 2: "malformed", 3: "422", 4: "torn"}
    with Server(lambda call: faults.get(call.number % 7), key=SECRET, echo=True) as server:
        code, output = ask(server, "on_failure=leave_out", "engine.price={input: 1.0, output: 2.0}", log="debug")
    assert code == 0, output
    assert "openai" in output, "the log was on"
    told = (tmp_path / "out/failures.jsonl").read_text()
    assert "you sent Bearer ***" in told
    texts = [response.text for group in read_groups(tmp_path / "out") for response in group.responses]
    assert texts
    assert all(text.startswith("you sent Bearer ***; ") for text in texts)
    assert all(call.headers["authorization"] == f"Bearer {SECRET}" for call in server.calls)


def test_a_key_that_is_refused_and_repeated(ask):
    with Server(key="another", echo=True) as server:
        code, output = ask(server)
    assert code != 0
    assert "the server refuses the key" in output
    assert "`OPENAI_API_KEY`" in output


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("no_top_k", "refuses the parameter `top_k`"),
        ("403", "does not serve us"),
        ("404", "no model"),
        ("500", "patience"),
    ],
)
def test_errors_that_end_the_run_and_repeat_the_key(ask, fault, said):
    with Server(lambda call: fault, key=SECRET, echo=True) as server:
        code, output = ask(server, "engine.patience=0.01")
    assert code != 0
    assert said in output


@pytest.mark.parametrize(
    "override",
    [f"engine.key_from={SECRET}", f"engine.url=http://{SECRET}@host/v1", f"engine.pool=['http://h/?k={SECRET}']"],
)
def test_a_key_at_the_wrong_place_is_refused_before_anything_is_written(ask, tmp_path, override):
    with Server() as server:
        code, output = ask(server, override)
    assert code != 0
    assert "engine." in output
    assert not (tmp_path / "out").exists()


def test_no_key_at_a_server_that_wants_one(ask, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with Server(key="another") as server:
        code, output = ask(server)
    assert code != 0
    assert "wants a key, and there is none" in output


def test_a_traceback_does_not_show_it(monkeypatch):
    """What is below an error of ours (the client's error with the server's text) is not chained to it."""
    from serving import engine_for, outcomes, requests

    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    for fault in ("no_top_k", "404", "429_quota"):
        with (
            Server(lambda _, fault=fault: fault, key=SECRET, echo=True) as server,
            pytest.raises(FuserlError) as caught,
        ):
            outcomes(engine_for(server.url, key_from="OPENAI_API_KEY"), requests(2))
        assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("value", ["sk two", "sk-\u201cquoted\u201d", "sk-a\nb", "sk-\x00"])
def test_a_key_that_no_header_can_hold_is_told_but_not_shown(monkeypatch, value):
    monkeypatch.setattr(os, "environ", {"THE_KEY": value})
    with pytest.raises(FuserlError, match="characters that no key has") as caught:
        Key("THE_KEY")
    assert value not in str(caught.value)


def test_a_key_keeps_to_itself(monkeypatch):
    monkeypatch.setenv("THE_KEY", f" {SECRET}\n")
    key = Key("THE_KEY")
    assert SECRET not in f"{key} {key!r} {[key]}"
    assert key.reveal() == SECRET
    assert key.line(f"bad\n\tkey {SECRET}\x1b[31m \u202e") == r"bad key ***\x1b[31m \u202e"
    assert SECRET[:4] not in key.line("x" * (LONGEST_LINE - 5) + SECRET), "it is hidden before the line is cut"
    assert len(key.line("\x1b" * 1000)) <= LONGEST_LINE


def test_a_word_that_stands_for_no_key_may_be_in_texts(monkeypatch):
    monkeypatch.setenv("THE_KEY", "EMPTY")
    assert Key("THE_KEY").hidden("an EMPTY room") == "an EMPTY room"
