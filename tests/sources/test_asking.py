"""What is told while a source is asked: rate, cost, and failures by kind however many kinds there are."""

from __future__ import annotations

import json

import answering
import pytest

from fuserl.records.journal import Journal
from fuserl.records.schema import Message, PromptGroup
from fuserl.sources import asking
from fuserl.sources.asked import Asked
from fuserl.sources.asking import Outcome, ask
from fuserl.sources.protocol import Answer, Failure
from fuserl.sources.source import source_of

SOURCE = source_of("s", {"path": "m", "samples": 2, "sampling": {"max_tokens": 9}})
GROUPS = [PromptGroup(f"p{n}", (Message("user", f"{n}?"),), ()) for n in range(10)]


def test_what_stands_beside_the_bar(monkeypatch):
    clock = iter([100.5, 101.0, 104.0])
    monkeypatch.setattr(asking.time, "monotonic", lambda: next(clock))
    outcome = Outcome(started=100.0)
    assert outcome.beside() == "0 tokens/s"
    outcome.add(Answer("a", "x", "stop", 3, 200, {}, extra={"cost": 0.25}))
    outcome.add(Answer("b", "x", "stop", 3, 1800, {}, extra={"cost": "unknown"}))
    assert outcome.beside() == "2,000 tokens/s, cost 0.25"
    outcome.add(Failure("c", "busy", passing=True))
    assert outcome.beside() == "500 tokens/s, cost 0.25, 1 failed"
    counted = {"answers": 2, "failures": 1, "seconds": 4.0, "tokens_per_second": 500.0, "reasons": {"busy": 1}}
    assert outcome.plain() == counted


def test_failures_of_one_kind_are_counted_together_and_kinds_are_bounded():
    outcome = Outcome()
    for number in range(5):
        outcome.add(Failure("k", f"status 503 after {number} s", passing=True))
    assert outcome.reasons == {"status N after N s": 5}
    for letter in range(1000):
        outcome.add(Failure("k", f"odd {chr(200 + letter)}", passing=False))
    assert len(outcome.reasons) <= asking.KINDS + 1
    assert outcome.reasons.total() == outcome.failures == 1005
    assert outcome.lasting == 1000


@pytest.fixture
def journal(tmp_path):
    with Journal(tmp_path / "j.jsonl") as journal:
        yield journal


def run(journal, *, give_up=None, **engine):
    told, path = [], journal.path.with_name("failures.jsonl")
    with path.open("w") as failed:
        outcome = ask(
            Asked(SOURCE, 0),
            answering.AnsweringEngine(SOURCE, together=1, **engine),
            journal,
            GROUPS,
            failed,
            give_up=give_up,
            told=lambda outcome: told.append((outcome.answers, outcome.failures)),
        )
    return outcome, [json.loads(line) for line in path.read_text().splitlines()], told


def test_it_asks_for_what_the_journal_lacks_and_tells_each_step(journal):
    outcome, failed, told = run(journal)
    assert told == [(n, 0) for n in range(1, 21)]
    assert (outcome.answers, len(journal), failed) == (20, 20, [])
    outcome, failed, told = run(journal)
    assert (outcome.answers, told) == (0, [])


def test_failures_are_listed_with_prompt_and_sample(journal):
    outcome, failed, _ = run(
        journal, fails=lambda request: answering.down(request) if request.messages[0].content == "3?" else None
    )
    assert [(one["prompt_id"], one["sample"], one["source"]) for one in failed] == [("p3", 0, "s"), ("p3", 1, "s")]
    assert (outcome.answers, outcome.failures, outcome.gave_up) == (18, 2, False)


def test_giving_up_counts_failures_in_a_row(journal):
    odd = {f"{n}?" for n in (1, 2, 3, 5, 6, 7, 8, 9)}
    fails = lambda request: answering.down(request) if request.messages[0].content in odd else None  # noqa: E731
    outcome, failed, _ = run(journal, give_up=7, fails=fails)
    assert outcome.gave_up
    assert len(failed) == 6 + 7, "six in a row, an answer, seven in a row"
    assert outcome.answers == 4
