"""The engine openai against a server that misbehaves: what comes is what a server that behaves would have said."""

from __future__ import annotations

import asyncio
import math
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st
from openai_server import PASSING, Server, arriving, drawn, first
from serving import SAMPLING, engine_for, expected, outcomes, requests, settings

from fuserl.errors import FuserlError
from fuserl.records.schema import Message
from fuserl.settings import compose, plain
from fuserl.sources.chosen import chosen_sources
from fuserl.sources.concurrently import Concurrently
from fuserl.sources.endpoint import Endpoint, retry_after
from fuserl.sources.keys import Key
from fuserl.sources.protocol import Answer, Failure, Request, Sampling
from fuserl.sources.source import Source
from fuserl.sources.wire import Wire

RESTS = {"first": 0.02, "longest": 0.1}  # seconds that a server which fails is left alone
RIGHT = {request.key: expected(request) for request in requests(40)}


def right(num: int) -> dict[str, Answer]:
    return {key: RIGHT[key] for key in list(RIGHT)[:num]}


def no_server() -> str:
    """An address at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}/v1"


# Laws: ways of asking that must not matter


@profile(max_examples=12)
@given(st.lists(st.lists(st.sampled_from(PASSING), max_size=4), min_size=10, max_size=10), st.sampled_from([1, 3, 10]))
def test_any_schedule_of_faults_gives_the_answers_of_no_faults(faults, concurrency):
    def script(call):
        mine = faults[int(call.key.removeprefix("key-"))]
        return mine[call.attempt] if call.attempt < len(mine) else None

    with Server(script, retry_after=0.001, slow=0.001) as server:
        found = outcomes(engine_for(server.url, concurrency=concurrency), requests(10))
    assert found == right(10)
    assert set(server.computed.values()) == {1}, "the key makes repetitions cost nothing"


@pytest.mark.parametrize("fault", PASSING)
def test_after_each_fault_that_passes_the_answer_comes(fault):
    with Server(first(fault)) as server:
        assert outcomes(engine_for(server.url), requests(1)) == right(1)
    assert len(server.calls) == (1 if fault == "slow" else 2)


@pytest.mark.parametrize("concurrency", [1, 16, 200])
def test_concurrency_does_not_matter(concurrency):
    with Server(drawn(0.3, 4), delay=0.001) as server:
        assert outcomes(engine_for(server.url, concurrency=concurrency), requests(40)) == RIGHT
    assert server.most_in_flight <= concurrency


def test_a_pool_is_one_server_also_with_dead_and_bad_ones_in_it():
    with Server(delay=0.002) as good, Server(drawn(0.5, 3), delay=0.002) as shaky, Server(lambda call: "500") as broken:
        urls = [no_server(), good.url, broken.url, shaky.url]
        found = outcomes(engine_for(urls, concurrency=2, backoff=RESTS, attempts=50), requests(40))
    assert found == RIGHT
    assert good.computed
    assert shaky.computed


def test_requests_of_a_server_that_dies_go_to_the_others():
    with Server(delay=0.01) as staying:
        leaving = Server(delay=0.01)
        leaving.__enter__()
        engine, found = engine_for([staying.url, leaving.url], concurrency=4, backoff=RESTS), {}
        for outcome in engine.answer(requests(40)):
            found[outcome.key] = outcome
            if len(found) == 8:
                leaving.__exit__()
        engine.close()
    assert found == RIGHT
    assert leaving.computed.total() >= 2


# What is sent


def test_all_of_the_sampling_is_sent_with_the_seed_the_day_and_the_key():
    with Server() as server:
        outcomes(engine_for(server.url), [Request("the-key", (Message("user", "hi"),), SAMPLING, 7)])
    (call,) = server.calls
    assert call.body == {
        "model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 12, "temperature": 0.7, "top_p": 0.9,
        "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "seed": 7,
        "chat_template_kwargs": {"date_string": "26 Jul 2024"},
    }  # fmt: skip
    assert call.headers["idempotency-key"] == "the-key"
    assert "authorization" not in call.headers


def test_stop_texts_are_sent_and_recorded():
    sampling = Sampling(max_tokens=5, stop=("###", "\n\n"))
    with Server() as server:
        (answer,) = outcomes(engine_for(server.url), requests(1, sampling)).values()
    assert server.calls[0].body["stop"] == answer.sampling["stop"] == ["###", "\n\n"]


@pytest.mark.parametrize("engine", ["openai", "openai_hosted"])
def test_penalties_are_sent_under_their_names(engine):
    sampling = Sampling(max_tokens=5, presence_penalty=0.1, frequency_penalty=-0.2)
    with Server() as server:
        settings = compose("generate", ["data.path=x", f"engine={engine}", f"engine.url={server.url}"]).engine
        made = instantiate(settings, _convert_="all")(Source("s", "m", sampling))
        (answer,) = outcomes(made, requests(1, sampling)).values()
    sent = {"presence_penalty": 0.1, "frequency_penalty": -0.2}
    assert sent.items() <= server.calls[0].body.items()
    assert sent.items() <= answer.sampling.items()


def hosted(*overrides: str) -> dict:
    return compose("generate", ["data.path=prompts.jsonl", "engine=openai_hosted", *overrides]).engine


def test_the_hosted_service_gets_only_parameters_that_it_knows():
    with Server() as server:
        engine = instantiate(hosted(f"engine.url={server.url}"), _convert_="all")(Source("s", "m", SAMPLING))
        (answer,) = outcomes(engine, requests(1)).values()
    assert set(server.calls[0].body) == {"model", "messages", "max_completion_tokens", "temperature", "top_p", "seed"}
    assert answer.sampling == RIGHT["key-0"].sampling


def test_a_setting_that_the_server_has_no_name_for_must_be_neutral():
    sampling = Sampling(max_tokens=5, repetition_penalty=1.05)
    with Server() as server:
        engine = instantiate(hosted(f"engine.url={server.url}"), _convert_="all")(Source("s", "m", sampling))
        with pytest.raises(FuserlError, match=r"`repetition_penalty` is 1.05") as caught:
            outcomes(engine, requests(1, sampling))
    assert "set it to 1.0" in caught.value.hint
    assert not server.calls


def test_a_seed_that_was_not_sent_is_not_recorded():
    with Server() as server:
        (answer,) = outcomes(engine_for(server.url, parameters={"seed": None}), requests(1)).values()
    assert "seed" not in server.calls[0].body
    assert answer.sampling["seed"] is None


# What comes back


def answered(fault: str, **changes) -> Answer | Failure:
    """What comes of one request that always meets this."""
    with Server(lambda call: fault) as server:
        (outcome,) = outcomes(engine_for(server.url, attempts=3, **changes), requests(1)).values()
    tries = 3 if isinstance(outcome, Failure) and outcome.passing else 1
    assert len(server.calls) == tries, "what passes is tried again, what stays is not"
    return outcome


@pytest.mark.parametrize("fault", [f for f in PASSING if f != "slow"])
def test_a_fault_that_does_not_pass_is_a_failure_in_the_end_and_never_an_answer(fault):
    outcome = answered(fault)
    assert isinstance(outcome, Failure)
    assert outcome.passing
    assert outcome.what.isprintable()
    assert len(outcome.what) < 400


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("400", "maximum context length is 9 tokens"),
        ("422", "status 422"),
        ("filtered", "filter"),
        ("tool_calls", "tool"),
        ("odd_finish", r"tired\x07"),
    ],
)
def test_what_no_repetition_mends_is_a_failure_at_once(fault, said):
    outcome = answered(fault)
    assert isinstance(outcome, Failure)
    assert not outcome.passing
    assert said in outcome.what
    assert outcome.what.isprintable()
    assert len(outcome.what) <= 300


@pytest.mark.parametrize(
    ("fault", "differs"),
    [
        ("empty", {"text": ""}),
        ("refusal", {"text": "I can not."}),
        ("content_is_list", {"text": "inparts"}),
        ("half_a_surrogate", {"text": "a \ufffd b"}),
        ("thought", {"extra": {**RIGHT["key-0"].extra, "reasoning_content": "hmm"}}),
        ("thought_only", {"text": "", "extra": {**RIGHT["key-0"].extra, "reasoning_content": "so far"}}),
        ("no_usage", {"prompt_tokens": 0, "response_tokens": 0, "extra": {**RIGHT["key-0"].extra, "usage": "unknown"}}),
        (
            "odd_usage",
            {"prompt_tokens": 0, "response_tokens": 0, "extra": {**RIGHT["key-0"].extra, "usage": "unknown"}},
        ),
    ],
)
def test_odd_answers_are_answers(fault, differs):
    outcome = answered(fault)
    assert isinstance(outcome, Answer)
    for name in Answer.__slots__:
        assert getattr(outcome, name) == differs.get(name, getattr(RIGHT["key-0"], name)), name


def test_cost_is_counted_in_dollars_for_a_million_tokens_and_unknown_without_usage():
    price = {"input": 3.0, "output": 15.0}
    outcome, right_one = answered("empty", price=price), RIGHT["key-0"]
    assert isinstance(outcome, Answer)
    wanted = (3 * right_one.prompt_tokens + 15 * right_one.response_tokens) / 1e6
    assert math.isclose(outcome.extra["cost"], wanted)
    unknown = answered("no_usage", price=price)
    assert isinstance(unknown, Answer)
    assert "cost" not in unknown.extra


def test_a_request_that_hangs_is_cut_off_and_asked_again():
    with Server(first("hang")) as server:
        assert outcomes(engine_for(server.url, timeout=0.2), requests(1)) == right(1)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None), ({"retry-after": "3"}, 3.0), ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "soon"}, None), ({"retry-after": "-1"}, None), ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None), ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"retry-after": "Wed, 99 Oct 2015"}, None),
    ],
)  # fmt: skip
def test_how_long_a_server_asks_to_wait(headers, seconds):
    assert retry_after(headers) == seconds


@pytest.mark.parametrize(("fault", "wait"), [("429", 7.5), ("429_date", 0.0), ("429_plain", None), ("503", None)])
def test_a_failure_tells_how_long_the_server_asks_to_wait(fault, wait):
    async def body(url: str) -> Answer | Failure:
        made = settings(url)
        wire = Wire(Source("s", "m", SAMPLING), made["parameters"], made["price"], Key("OPENAI_API_KEY"))
        endpoint = Endpoint(url, wire, timeout=10, connections=1)
        try:
            return await endpoint(requests(1)[0])
        finally:
            await endpoint.close()

    with Server(first(fault), retry_after=7.5) as server:
        outcome = asyncio.run(body(server.url))
    assert isinstance(outcome, Failure)
    assert outcome.wait == wait


# What ends everything


def ends(server: Server, **changes) -> FuserlError:
    with server, pytest.raises(FuserlError) as caught:
        outcomes(engine_for(server.url + changes.pop("path", ""), **changes), requests(3))
    return caught.value


def test_a_wrong_model_is_told_with_those_that_are_there():
    error = ends(Server(models=("llama", "qwen\x1b[31m")))
    assert "no model `m`" in error.what
    assert error.hint == r"set `sources.s.path` to one that it serves: `llama`, `qwen\x1b[31m`"


def test_a_wrong_address_is_told():
    assert "/v1" in ends(Server(), path="/deeper").hint


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("403", "status 403: not for you"), ("429_quota", "exceeded your current quota"),
        ("no_top_k", "refuses the parameter `top_k`"), ("no_temperature", "refuses the parameter `temperature`"),
    ],
)  # fmt: skip
def test_what_all_requests_would_meet_ends_the_run_at_the_first(fault, said):
    server = Server(first(fault))
    error = ends(server, concurrency=1)
    assert said in error.what
    assert error.hint
    assert len(server.calls) == 1


def test_the_switch_that_leaves_out_a_refused_parameter_is_named_and_works():
    refuses = Server(lambda call: "no_top_k" if "top_k" in call.body else None)
    assert "`engine.parameters.top_k=null`" in ends(refuses).hint
    with Server(lambda call: "no_top_k" if "top_k" in call.body else None) as server:
        assert outcomes(engine_for(server.url, parameters={"top_k": None}), requests(3)) == right(3)


def test_a_refusal_of_one_prompt_is_one_failure_once_others_were_answered():
    with Server(arriving(None, "403")) as server:
        found = outcomes(engine_for(server.url, concurrency=1), requests(3))
    assert [type(outcome) for outcome in found.values()] == [Answer, Failure, Answer]


def test_answers_that_came_before_the_end_are_handed_over():
    with Server(arriving(None, None, "404", "404")) as server:
        engine, found = engine_for(server.url, concurrency=1), []
        with pytest.raises(FuserlError):
            found.extend(engine.answer(requests(5)))
        engine.close()
    assert found == [RIGHT["key-0"], RIGHT["key-1"]]


def test_where_nobody_listens_the_run_ends_when_patience_does():
    with pytest.raises(FuserlError, match="ConnectionRefusedError") as caught:
        outcomes(engine_for(no_server(), patience=0.05, backoff=RESTS), requests(20))
    assert "engine.patience" in caught.value.hint


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"url": None}, "no server is given"),
        ({"url": "localhost:8000"}, "no address"),
        ({"url": "http://me:hunter2@host/v1"}, "more than an address"),
        ({"pool": ["http://host/v1?key=hunter2"]}, "more than an address"),
        ({"key_from": "sk-hunter2"}, "not the name of an environment variable"),
        ({"concurrency": 0}, "`concurrency` is 0"),
        ({"concurrency": 1.5}, "`concurrency` is 1.5"),
        ({"attempts": True}, "`attempts` is True"),
        ({"timeout": "soon"}, "`timeout` is 'soon'"),
        ({"limits": {"tokens": 0}}, "`limits.tokens` is 0"),
        ({"price": {"input": -1}}, "`price.input` is -1"),
        ({"parameters": {"top_q": "top_q"}}, "no parameter `top_q`"),
    ],
)
def test_wrong_settings_are_told_before_there_is_a_source(changes, said):
    verb = plain(compose("generate", ["data.path=prompts.jsonl", "source=own", "sources.own.path=m"]))
    with pytest.raises(FuserlError) as caught:
        chosen_sources(verb | {"engine": settings("http://host/v1", **changes)})
    assert said in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_template_that_a_server_would_ignore_is_refused():
    start = instantiate(settings("http://host/v1"), _convert_="all")
    with pytest.raises(FuserlError, match="its own chat template"):
        start(Source("s", "m", SAMPLING, chat_template="{{ messages }}"))


# Reading and leaving


def test_requests_are_drawn_as_answers_are_read():
    num_drawn = 0

    def endless() -> Iterator[Request]:
        nonlocal num_drawn
        while True:
            num_drawn += 1
            yield Request(f"k{num_drawn}", (Message("user", "hi"),), SAMPLING, num_drawn)

    with Server() as server:
        engine = engine_for(server.url, concurrency=8)
        answers = engine.answer(endless())
        for num_read in range(1, 31):
            next(answers)
            assert num_drawn - num_read < 8
        time.sleep(0.05)
        assert len(server.calls) <= 30 + 7
        answers.close()
        engine.close()


@pytest.mark.parametrize("interrupt", [None, KeyboardInterrupt])
def test_who_stops_reading_leaves_nothing_behind(interrupt):
    before = set(threading.enumerate())
    with Server(lambda call: "hang" if call.number else None) as server:
        engine = engine_for(server.url, concurrency=8)
        answers = engine.answer(requests(40))
        next(answers)
        if interrupt:
            with pytest.raises(interrupt):
                answers.throw(interrupt)
        answers.close()
        started = time.monotonic()
        engine.close()
        engine.close()
        assert time.monotonic() - started < 5
        calls = len(server.calls)
        time.sleep(0.05)
        assert len(server.calls) == calls
    assert set(threading.enumerate()) <= before


async def nothing() -> None:
    """There is nothing to close."""


def test_answers_that_are_ready_are_handed_over_before_an_error_is_raised():
    ended = threading.Semaphore(0)

    async def ask(asked: Request) -> Answer | Failure:
        asyncio.get_running_loop().call_later(0.1, ended.release)  # once the outcome has left the loop
        if asked.key == "key-3":
            raise FuserlError("no more")
        return RIGHT[asked.key]

    engine = Concurrently(ask, concurrency=8, close=nothing)
    answers = engine.answer(requests(8))
    found = [next(answers)]
    assert all(ended.acquire(timeout=10) for _ in range(8))
    with pytest.raises(FuserlError, match="no more"):
        found.extend(answers)
    engine.close()
    assert {answer.key: answer for answer in found} == {k: a for k, a in right(8).items() if k != "key-3"}


def test_who_stops_reading_cancels_what_is_under_way_before_the_engine_is_closed():
    cancelled = threading.Semaphore(0)

    async def ask(asked: Request) -> Answer | Failure:
        try:
            await asyncio.sleep(0 if asked.key == "key-0" else 3600)
        except asyncio.CancelledError:
            cancelled.release()
            raise
        return RIGHT[asked.key]

    engine = Concurrently(ask, concurrency=8, close=nothing)
    answers = engine.answer(requests(40))
    assert next(answers) == RIGHT["key-0"]
    answers.close()
    assert all(cancelled.acquire(timeout=10) for _ in range(7))
    engine.close()


def test_what_is_under_way_when_drawing_fails_is_handed_over_first():
    def broken() -> Iterator[Request]:
        yield from requests(5)
        raise ValueError("row 6")

    found = []
    with Server(delay=0.01) as server:
        engine = engine_for(server.url)
        with pytest.raises(ValueError, match="row 6"):
            found.extend(engine.answer(broken()))
        engine.close()
    assert {answer.key: answer for answer in found} == right(5)


def test_one_engine_answers_several_callers_in_turn():
    with Server() as server:
        engine = engine_for(server.url)
        one, other = engine.answer(requests(4)), engine.answer(requests(4))
        pairs = list(zip(one, other, strict=True))
        engine.close()
    assert {answer.key for answer, _ in pairs} == {answer.key for _, answer in pairs} == set(right(4))


def test_the_engine_loads_no_torch():
    code = "import sys, fuserl.sources.openai, fuserl.sources.endpoint; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
