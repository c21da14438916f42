"""The engine `vllm` against a stand-in of vLLM: how requests go in and answers come out. `make test-vllm` has the real one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace

import kit
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from fuserl.errors import FuserlError
from fuserl.records.schema import Message
from fuserl.sources.protocol import Answer, Failure, Request, Sampling
from fuserl.sources.requirements import require_counts
from fuserl.sources.source import Source

TARGET = kit.ROOT / "src/fuserl/miniature/target"
CATS = [7, 5, 24]  # token ids of three letters


class Params(SimpleNamespace):
    """Parameters that vLLM changes a little, as it does greedy ones."""

    def __init__(self, **given) -> None:
        super().__init__(**given)
        if self.temperature == 0:
            self.top_p, self.top_k, self.min_p = 1.0, 0, 0.0


class Core:
    """Two requests finish a step, the last added first; a third is told as not finished yet."""

    def __init__(self, settings: dict) -> None:
        self.settings, self.waiting, self.most, self.stopped = settings, {}, 0, False
        self.model_config = SimpleNamespace(max_model_len=settings["max_model_len"] or 128)
        self.engine_core = SimpleNamespace(shutdown=self._shutdown)

    def _shutdown(self) -> None:
        self.stopped = True

    def add_request(self, number: str, prompt: dict, params: Params) -> None:
        if params.max_tokens == 13:
            raise ValueError("13 is unlucky\nvery")
        self.waiting[number] = prompt["prompt_token_ids"], params
        self.most = max(self.most, len(self.waiting))

    def step(self) -> list[SimpleNamespace]:
        if self.settings.get("dies"):
            raise RuntimeError("the core died\nof something")
        going = list(self.waiting)[-3:]
        outputs = [self._output(number, finished=place > 0 or len(going) < 3) for place, number in enumerate(going)]
        for output in outputs:
            if output.finished:
                del self.waiting[output.request_id]
        return outputs

    def _output(self, number: str, finished: bool) -> SimpleNamespace:
        _, params = self.waiting[number]
        reason = "abort" if params.max_tokens == 14 else "length" if params.max_tokens == 3 else "stop"
        ids = CATS if reason == "length" else [*CATS, 2]
        output = SimpleNamespace(token_ids=tuple(ids), finish_reason=reason if finished else None)
        return SimpleNamespace(request_id=number, finished=finished, outputs=[output])


@pytest.fixture
def vllm(monkeypatch) -> ModuleType:
    """A stand-in under vLLM's name."""
    module = ModuleType("vllm")
    module.__version__ = "9.9"
    module.SamplingParams = Params
    module.sampling_params = SimpleNamespace(RequestOutputKind=SimpleNamespace(FINAL_ONLY="final"))

    def start(**settings) -> SimpleNamespace:
        if settings.get("fails"):
            raise RuntimeError("no GPU\nat all")
        return SimpleNamespace(llm_engine=Core(settings))

    module.LLM = start
    monkeypatch.setitem(sys.modules, "vllm", module)
    return module


def source(**settings) -> Source:
    return Source("s", str(TARGET), Sampling(max_tokens=8), **{"dtype": "float32"} | settings)


def started(one: Source | None = None, **settings):
    cfg = OmegaConf.load(kit.ROOT / "conf/engine/vllm.yaml")
    return instantiate(cfg, **settings)(one or source())


def requests(num: int, **sampling) -> list[Request]:
    return [
        Request(f"k{n}", (Message("user", f"sort {'a' * (n % 3 + 1)}"),), Sampling(**{"max_tokens": 8} | sampling), n)
        for n in range(num)
    ]


def test_every_request_gets_its_answer_and_few_are_drawn_ahead(vllm):
    engine, drawn = started(in_flight=5), 0

    def stream() -> Iterator[Request]:
        nonlocal drawn
        for request in requests(23):
            drawn += 1
            yield request

    got = []
    for answer in engine.answer(stream()):
        got.append(answer)
        assert drawn <= len(got) + 5
    assert sorted(answer.key for answer in got) == sorted(request.key for request in requests(23))
    assert engine.llm.llm_engine.most == 5
    assert list(engine.answer([])) == []


def test_an_answer_says_what_was_done(vllm):
    asked = Request("k", (Message("user", "sort cba"),), Sampling(8, 0.7, 0.9, 40, 0.1, 1.1, ("x",), 0.1), 17)
    engine = started()
    (answer,) = engine.answer([asked])
    assert isinstance(answer, Answer)
    assert (answer.text, answer.finish_reason) == (engine.rendering.decoded(CATS), "stop")
    assert (answer.prompt_tokens, answer.response_tokens) == (len(engine.rendering.prompt(asked, None)), 4)
    assert answer.sampling == {
        "max_tokens": 8, "temperature": 0.7, "top_p": 0.9, "top_k": 40, "min_p": 0.1, "repetition_penalty": 1.1,
        "presence_penalty": 0.1, "stop": ["x"], "seed": 17,
    }  # fmt: skip
    assert answer.template_hash == engine.rendering.template.hash
    assert answer.extra == {"engine": "vllm 9.9"}
    (greedy,) = engine.answer(requests(1, temperature=0.0, top_p=0.5, top_k=3))
    assert (greedy.sampling["top_p"], greedy.sampling["top_k"]) == (1.0, 0), "what vLLM made of it"
    (cut,) = engine.answer(requests(1, max_tokens=3))
    assert cut.finish_reason == "length"


def test_what_vllm_gets_is_ours(vllm):
    """Prompts as tokens, ends of turns by the template, no defaults of the model's; safetensors; no remote code."""
    engine = started(source(context=40), tensor_parallel_size=2, options={"max_num_seqs": 7, "seed": 3})
    core = engine.llm.llm_engine
    wanted = {
        "model": str(TARGET), "dtype": "float32", "max_model_len": 40, "tensor_parallel_size": 2, "max_num_seqs": 7, "seed": 3,
        "generation_config": "vllm", "load_format": "safetensors", "trust_remote_code": False, "enable_prefix_caching": True,
    }  # fmt: skip
    assert wanted.items() <= core.settings.items()
    (request,) = requests(1, max_tokens=100)
    added = engine._added("1", request)
    prompt, params = core.waiting["1"]
    assert prompt == engine.rendering.template.encode_prompt(request.messages)
    assert params is added
    assert (params.n, params.seed, params.max_tokens) == (1, 0, 40 - len(prompt))
    assert params.stop_token_ids == sorted(engine.rendering.template.stop_ids)
    assert not params.detokenize


def test_prompts_are_rendered_where_vllm_wants_it_so(vllm):
    """Newer releases take what their renderer makes of a prompt."""
    engine = started()
    engine.llm.llm_engine.renderer = SimpleNamespace(render_cmpl=lambda prompts: [{"type": "tokens", **prompts[0]}])
    (answer,) = engine.answer(requests(1))
    assert answer.finish_reason == "stop"


def test_failures_are_told_apart(vllm):
    engine = started(source(context=30))
    asked = [
        *requests(1),
        Request("long", (Message("user", "sort " + "a" * 60),), Sampling(8), 0),
        Request("refused", (Message("user", "sort a"),), Sampling(13), 0),
        Request("aborted", (Message("user", "sort a"),), Sampling(14), 0),
    ]
    got = {result.key: result for result in engine.answer(asked)}
    assert isinstance(got["k0"], Answer)
    failures = {key: (result.passing, result.what) for key, result in got.items() if isinstance(result, Failure)}
    assert failures == {
        "long": (False, "the prompt has 67 tokens, prompt and answer may have 30"),
        "refused": (False, "vLLM refuses it (13 is unlucky)"),
        "aborted": (True, "vLLM ended it with `abort`"),
    }


def test_what_stops_vllm_is_one_clear_error(vllm):
    with pytest.raises(FuserlError, match=r"vLLM cannot start \(no GPU\)"):
        started(options={"fails": True})
    engine = started(options={"dies": True})
    with pytest.raises(FuserlError, match=r"vLLM stopped \(the core died\)"):
        list(engine.answer(requests(1)))


def test_it_closes(vllm):
    engine = started()
    core = engine.llm.llm_engine
    engine.close()
    assert core.stopped


def test_without_vllm_the_install_line_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(FuserlError, match="`vllm`") as error:
        started()
    assert "pip install 'fuserl[vllm]'" in error.value.hint


@pytest.mark.parametrize("settings", [{"in_flight": 0}, {"tensor_parallel_size": -1}], ids=str)
def test_counts_are_looked_at_before_anything_starts(settings):
    with pytest.raises(FuserlError, match="whole number, 1 or more") as error:
        started(**settings)
    assert next(iter(settings)) in error.value.where


@pytest.mark.parametrize("value", [0, 1.5, None, True, "8"])
def test_what_counts_is_a_whole_number(value):
    with pytest.raises(FuserlError, match=f"`block` is {value!r}"):
        require_counts(actors=1, block=value)
