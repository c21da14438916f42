"""Requests made from prompts: their keys name all that decides an answer, their seeds are fixed and apart."""

from __future__ import annotations

from collections import Counter

import answering
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuserl.records.journal import Journal
from fuserl.records.schema import Message, PromptGroup
from fuserl.sources.asked import Asked, sample_seed
from fuserl.sources.folder import joined
from fuserl.sources.protocol import Answer, Failure, Sampling, request_key
from fuserl.sources.resumed import Resumed, clean
from fuserl.sources.source import Source, source_of

TEXTS = st.text(min_size=1, max_size=20)
PROMPTS = st.lists(st.builds(Message, st.sampled_from(("system", "user", "assistant")), TEXTS), max_size=3).map(
    lambda turns: PromptGroup("p", (*turns, Message("user", "a?")), ())
)


def source(**settings) -> Source:
    sampling = {"max_tokens": 9} | settings.pop("sampling", {})
    return source_of("s", {"path": "m", "sampling": sampling} | settings)


@given(PROMPTS, st.integers(0, 2**40), st.sampled_from((None, "be kind")), st.integers(1, 4), st.floats(0, 2))
def test_keys_are_those_of_the_slow_way(group, seed, system, samples, temperature):
    asked = Asked(source(system=system, samples=samples, sampling={"temperature": temperature, "stop": ["é"]}), seed)
    slow = [
        request_key(asked.source.identity(), asked.messages(group.prompt), asked.source.sampling, each)
        for each in asked.seeds(group)
    ]
    assert asked.keys(group) == slow
    requests = list(asked.requests(group))
    assert [request.key for request in requests] == slow
    assert [request.seed for request in requests] == asked.seeds(group)
    assert {request.messages for request in requests} == {asked.messages(group.prompt)}


def test_keys_are_those_of_journals_that_know_no_penalties_of_what_was_said():
    messages = (Message("user", "a?"),)
    key = request_key({"path": "m"}, messages, Sampling(9, 0.7, stop=("é",)), 3)
    assert key == "74238e02e1643ea03750dacc8e98df4d"
    assert Sampling(9, presence_penalty=0.0).plain() == {
        "max_tokens": 9, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "stop": (),
    }  # fmt: skip
    for penalty in ({"presence_penalty": 0.1}, {"frequency_penalty": 0.1}):
        assert request_key({"path": "m"}, messages, Sampling(9, 0.7, stop=("é",), **penalty), 3) != key
        assert Source("s", "m", Sampling(9, **penalty)).plain()["sampling"].items() >= penalty.items()


@given(PROMPTS, st.integers(0, 9))
def test_seeds_depend_on_what_a_prompt_says_alone(group, seed):
    renamed = PromptGroup("q", group.prompt, (), "math", "7", {"level": 5})
    asked = Asked(source(samples=3), seed)
    assert asked.seeds(group) == asked.seeds(renamed)
    assert asked.keys(group) == asked.keys(renamed)
    assert Asked(source(samples=2), seed).keys(group) == asked.keys(group)[:2], (
        "more samples leave the first as they are"
    )
    extra = PromptGroup("p", tuple(Message(m.role, m.content, {"name": "Ada"}) for m in group.prompt), ())
    assert asked.keys(extra) == asked.keys(group)


def test_seeds_are_apart_and_spread_over_their_range():
    seeds = [
        sample_seed(seed, f"{p:016x}", name, n)
        for seed in (0, 1)
        for p in range(20)
        for name in "ab"
        for n in range(25)
    ]
    assert len(set(seeds)) == len(seeds) == 2000
    assert all(0 <= seed < 2**31 for seed in seeds)
    eighths = Counter(seed >> 28 for seed in seeds)
    assert set(eighths) == set(range(8))
    assert max(eighths.values()) < 320, "some 250 in each"


@given(st.integers(1, 5), st.integers(1, 5))
def test_what_was_asked_before_and_now_is_joined(before, now):
    old, new = Asked(source(samples=before), 0), Asked(source(samples=now, licence="MIT"), 0)
    other = Asked(Source("a", "m", Sampling(9)), 0)
    whole, changed = joined({"s": old, "a": other}, [new])
    assert list(whole) == ["a", "s"]
    assert (whole["s"].source.samples, whole["s"].source.licence) == (max(before, now), "MIT")
    assert not changed
    whole, changed = joined({"s": old}, [Asked(new.source, 1)])
    assert (whole["s"].source.samples, changed) == (now, ["s"])


@pytest.fixture
def journal(tmp_path):
    with Journal(tmp_path / "j.jsonl") as journal:
        yield journal


def requests_of(number: int, source: Source) -> list[answering.Request]:
    groups = [PromptGroup(f"{n}", (Message("user", f"{n}?"),), ()) for n in range(number)]
    return [request for group in groups for request in Asked(source, 0).requests(group)]


def test_answers_are_in_the_journal_before_they_are_seen_and_failures_never(journal):
    one = source(samples=4)
    wanted = requests_of(5, one)
    engine = Resumed(answering.AnsweringEngine(one, fails=answering.busy_for_odd), journal)
    results = []
    for result in engine.answer(iter(wanted)):
        assert (result.key in journal) is isinstance(result, Answer)
        results.append(result)
    assert {result.key for result in results} == {request.key for request in wanted}
    failed = [result.key for result in results if isinstance(result, Failure)]
    assert 0 < len(failed) < len(wanted)
    again = list(Resumed(answering.AnsweringEngine(one), journal).answer(wanted))
    assert {answer.key for answer in again} == set(failed)
    assert len(journal) == len(wanted)


def test_a_request_is_asked_once_at_a_time(journal, tmp_path):
    one = source()
    engine = Resumed(answering.AnsweringEngine(one, log=str(tmp_path / "log"), together=50), journal)
    wanted = requests_of(3, one)
    assert len(list(engine.answer(wanted * 4))) == 3
    assert len((tmp_path / "log").read_text().splitlines()) == 3
    engine.close()
    assert engine.engine.closed


def test_an_answer_to_nothing_is_the_engines_mistake(journal):
    class Talkative:
        def answer(self, requests):
            yield Answer("?", "hello", "stop", 0, 1, {})

        def close(self):
            pass

    with pytest.raises(ValueError, match="which it was not asked"):
        list(Resumed(Talkative(), journal).answer(requests_of(1, source())))
    assert not len(journal)


@given(st.text(st.characters()))
def test_clean_text_is_text_that_was_clean_or_can_be_written(text):
    clean(text).encode()
    whole = text.encode("utf-8", "surrogatepass") == text.encode("utf-8", "ignore")
    assert not whole or clean(text) == text
