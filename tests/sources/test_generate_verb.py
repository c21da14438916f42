"""The verb `generate`: prompts x sources -> groups; asked once, kept for ever, grown by later commands."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import answering
import kit
import pytest
import yaml
from omegaconf import DictConfig, OmegaConf

from fuserl.errors import FuserlError
from fuserl.records.formats import read_groups
from fuserl.records.manifest import digest_of, read_manifest
from fuserl.records.rows import Needs
from fuserl.records.schema import PromptGroup
from fuserl.records.store import write_groups
from fuserl.settings import compose
from fuserl.sources.generate import generate
from fuserl.sources.grouped import grouped
from fuserl.sources.protocol import Sampling, request_key

PROMPTS = [
    {"prompt_id": "p0", "prompt": "one?", "domain": "math", "reference": "1"},
    {"prompt_id": "p1", "prompt": "two?"},
    {"prompt_id": "p2", "prompt": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "three?"}]},
    {"prompt_id": "p3", "prompt": "four?", "domain": "code", "level": 5},
]
TWO = "sources={b:{path:models/b},a:{path:models/a}}"


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """The verb on the engine for tests, writing to `out`; what is said comes back by capfd."""
    monkeypatch.chdir(tmp_path)
    write_prompts(PROMPTS)

    def run(*overrides: str, engine: str = "AnsweringEngine") -> list[PromptGroup]:
        own = (f"engine._target_=answering.{engine}", "data.path=prompts.jsonl", "output=out", "samples=2")
        folder = generate(composed(*own, *overrides))
        return list(read_groups(folder, needs=Needs(text=False)))

    return run


def composed(*overrides: str) -> DictConfig:
    """The verb's settings; those that only set a number or a word are laid over what was composed for another test."""
    simple = [one for one in overrides if re.fullmatch(r"(?!source=|engine)[a-z_.]+=[\w./ -]*", one)]
    cfg = once(tuple(one for one in overrides if one not in simple)).copy()
    for one in simple:
        key, value = one.split("=")
        OmegaConf.update(cfg, key, yaml.safe_load(value))
    return cfg


@cache
def once(overrides: tuple[str, ...]) -> DictConfig:
    return compose("generate", ["data.path=given", *overrides])


def write_prompts(rows: list[dict]) -> None:
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def computed() -> list[str]:
    """Keys that the engine computed, in the order of asking."""
    return [line.split()[1] for line in Path("log").read_text().splitlines()] if Path("log").exists() else []


def manifest(folder: str = "out"):
    return read_manifest(Path(folder))


LOG = "+engine.log=log"


def test_groups_in_the_order_of_the_prompts_sources_by_name_samples_by_number(ask):
    groups = ask(TWO)
    assert [group.id for group in groups] == ["p0", "p1", "p2", "p3"]
    for group in groups:
        assert [(r.source, r.sample) for r in group.responses] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert [(group.domain, group.reference) for group in groups[:2]] == [("math", "1"), ("general", None)]
    assert groups[3].extra == {"level": 5}
    assert groups[2].prompt[0].content == "be brief"


def test_a_response_says_how_it_was_drawn(ask):
    (first, *_), *_ = (group.responses for group in ask(TWO, "max_tokens=2"))
    assert first.finish_reason == "length", "three words, cut at two: marked, not hidden"
    assert first.sampling == {
        "max_tokens": 2, "temperature": 0.8, "top_p": 0.95, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0,
        "stop": [], "seed": first.sampling["seed"],
    }  # fmt: skip
    assert 0 <= first.sampling["seed"] < 2**31
    assert first.extra == {
        "prompt_tokens": 1, "response_tokens": 2, "template_hash": "0123456789abcdef", "engine": "answering", "cost": 0.5,
    }  # fmt: skip
    assert (first.reward, first.verdict) == (None, None)


def test_what_the_data_set_holds_is_what_the_engine_said_to_that_request(ask):
    """The slow oracle: every key and answer made anew, one by one."""
    groups = ask(TWO, "seed=3")
    journal = {
        name: {row["key"]: row for row in map(json.loads, Path(f"out/journal/{name}.jsonl").read_text().splitlines())}
        for name in ("a", "b")
    }
    for group in groups:
        for response in group.responses:
            source = replace_source(response.source)
            request = answering.Request("", group.prompt, source.sampling, response.sampling["seed"])
            assert response.text == answering.text_of(source, request)
            key = request_key(source.identity(), group.prompt, source.sampling, request.seed)
            assert journal[response.source].pop(key)["text"] == response.text
    assert not any(journal.values()), "and nothing else is in the journals"


def replace_source(name: str):
    return answering.Source(name, f"models/{name}", Sampling(max_tokens=2048, temperature=0.8, top_p=0.95))


def test_the_order_of_answers_leaves_no_trace(ask):
    digests = {digest_of(ask(TWO, f"output=out{n}", f"+engine.together={n}", f"+engine.seed={n}")) for n in (1, 3, 16)}
    assert len(digests) == 1
    assert digests == {manifest("out1").digest}


def test_the_second_time_no_engine_starts(ask, capfd):
    first = ask(TWO)
    written = manifest()
    assert ask(TWO, engine="BrokenEngine") == first
    assert manifest() == written
    assert "nothing new to ask" in capfd.readouterr().err


def test_more_samples_prompts_and_sources_ask_only_for_what_is_new(ask):
    ask("sources={a:{path:models/a}}", LOG, "data.limit=2")
    assert len(computed()) == 4
    ask("sources={a:{path:models/a}}", LOG, "data.limit=2", "samples=3")
    assert len(computed()) == 6
    ask("sources={a:{path:models/a}}", LOG, "samples=3")
    assert len(computed()) == 12
    grown = ask("sources={b:{path:models/b}}", LOG, "samples=3")
    assert len(computed()) == 24
    assert len(set(computed())) == 24
    assert grown == ask(TWO, "samples=3", "output=at_once"), "grown or made at once, it is the same data set"
    assert manifest().digest == manifest("at_once").digest
    assert set(manifest().extra["sources"]) == {"a", "b"}, "a source of an earlier command stays"
    (last,) = manifest().extra["last_command"].items()
    assert last[0] == "b"
    assert (last[1]["answers"], last[1]["failures"]) == (12, 0)


def test_fewer_samples_or_prompts_lose_nothing(ask):
    ask(TWO, LOG)
    smaller = ask("sources={a:{path:models/a}}", LOG, "samples=1", "data.limit=1")
    assert len(smaller) == 1, "the data set has the prompts of the last command"
    assert [(r.source, r.sample) for r in smaller[0].responses] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    before = len(computed())
    assert len(ask(TWO, LOG)) == 4
    assert len(computed()) == before


def test_prompts_may_move_and_change_their_names(ask):
    first = ask(TWO, LOG)
    write_prompts([row | {"prompt_id": f"q{n}", "domain": "other"} for n, row in enumerate(reversed(PROMPTS))])
    moved = ask(TWO, engine="BrokenEngine")
    assert [group.id for group in moved] == ["q0", "q1", "q2", "q3"]
    assert [group.responses for group in moved] == [group.responses for group in reversed(first)]


def test_equal_prompts_share_their_answers(ask, capfd):
    write_prompts([*PROMPTS, PROMPTS[0] | {"prompt_id": "again"}])
    groups = ask(TWO, LOG)
    assert groups[0].responses == groups[-1].responses
    assert len(computed()) == len(set(computed())) == 16
    assert "1 prompts repeat an earlier one" in capfd.readouterr().err
    assert manifest().extra["sources"]["a"]["counts"]["answers"] == 8, "counted once"


@pytest.mark.parametrize(
    "change",
    [
        "temperature=0.7",
        "top_p=0.5",
        "max_tokens=99",
        "top_k=9",
        "min_p=0.1",
        "repetition_penalty=1.1",
        "stop=['x']",
        "presence_penalty=0.1",
    ],
)
def test_other_sampling_is_another_question(ask, change, capfd):
    first = ask("source=own", "sources.own.path=m", LOG)
    other = ask("source=own", "sources.own.path=m", LOG, f"sources.own.sampling.{change}")
    assert len(set(computed())) == len(computed()) == 16
    assert "`own` has other settings than before" in capfd.readouterr().err
    assert [r.sample for r in other[0].responses] == [0, 1], "one name, one setting"
    assert {r.text for r in first[0].responses}.isdisjoint(r.text for r in other[0].responses)
    ask("source=own", "sources.own.path=m", LOG)
    assert len(computed()) == 16, "the earlier answers are still there"


@pytest.mark.parametrize(
    "change",
    [
        *("seed=1", "sources.own.path=other", "sources.own.revision=abc", "sources.own.chat_template=plain"),
        *("sources.own.dtype=float32", "sources.own.context=64", "sources.own.system=brief", "sources.own.name=other"),
        "sources.own.date_string=1 Jan 2026",
    ],
)
def test_another_model_template_or_seed_is_another_question(ask, change):
    ask("source=own", "sources.own.path=m", LOG)
    ask("source=own", "sources.own.path=m", LOG, change)
    assert len(set(computed())) == len(computed()) == 16


@pytest.mark.parametrize(
    "change", ["sources.own.licence=MIT", "engine.together=9", "on_failure=leave_out", "give_up=3"]
)
def test_what_does_not_decide_an_answer_is_no_other_question(ask, change):
    before = ask("source=own", "sources.own.path=m", LOG, "+engine.together=2")
    after = ask("source=own", "sources.own.path=m", "+engine.together=2", change, engine="BrokenEngine")
    assert after == before


def test_a_model_trained_anew_in_its_folder_is_another_one_and_a_copy_is_the_same(ask):
    Path("m").mkdir()
    Path("m/config.json").write_text("{}")
    Path("m/model.safetensors").write_bytes(b"weights")
    ask("source=own", "sources.own.path=m", LOG)
    Path("m/generation_config.json").write_text("{}")
    Path("m/README.md").write_text("a card")
    shutil.copytree("m", "copy")
    ask("source=own", "sources.own.path=copy", engine="BrokenEngine")
    Path("m/model.safetensors").write_bytes(b"WEIGHTS")
    ask("source=own", "sources.own.path=m", LOG)
    assert len(set(computed())) == 16


def test_a_source_keeps_its_earlier_answers_when_its_folder_is_gone(ask):
    Path("m").mkdir()
    Path("m/config.json").write_text("{}")
    ask("source=own", "sources.own.path=m")
    shutil.rmtree("m")
    groups = ask("sources={b:{path:models/b}}")
    assert {response.source for group in groups for response in group.responses} == {"b", "own"}


def test_every_sample_has_a_seed_of_its_own(ask):
    groups = ask(TWO, "samples=5")
    seeds = [response.sampling["seed"] for group in groups for response in group.responses]
    assert len(set(seeds)) == len(seeds) == 40


def test_a_system_turn_goes_to_prompts_that_have_none(ask):
    system = ("sources.own.system=be kind", "+engine.says={_target_:answering.heard,_partial_:true}")
    first, _, third, _ = ask("source=own", "sources.own.path=m", *system)
    assert first.responses[0].text == "system: be kind | user: one?"
    assert third.responses[0].text == "system: be brief | user: three?"
    assert [message.role for message in first.prompt] == ["user"], "it is no part of the prompt"


def test_failures_are_told_kept_from_the_journal_and_asked_again(ask, capfd):
    half = "engine.fails={_target_:answering.busy_for_odd,_partial_:true}"
    with pytest.raises(FuserlError, match=r"\d+ of 16 requests got no answer") as caught:
        ask(TWO, LOG, "+" + half)
    assert "run the same command again" in caught.value.hint
    assert not Path("out/manifest.json").exists(), "no data set while something is missing"
    err = capfd.readouterr().err
    assert "x the server was busy for N s" in err
    failures = [json.loads(line) for line in Path("out/failures.jsonl").read_text().splitlines()]
    kept = sum(len(path.read_text().splitlines()) for path in Path("out/journal").iterdir())
    assert 0 < len(failures) < 16
    assert kept + len(failures) == 16
    assert set(failures[0]) == {"source", "prompt_id", "sample", "what", "passing"}
    groups = ask(TWO, LOG)
    assert len(computed()) == 16 + len(failures), "only these are asked again"
    assert not Path("out/failures.jsonl").exists()
    assert groups == ask(TWO, "output=undisturbed")


def test_prompts_that_never_fit_can_be_left_out(ask, capfd):
    write_prompts([*PROMPTS, {"prompt_id": "p4", "prompt": "a long one"}])
    long = "+engine.fails={_target_:answering.too_long,_partial_:true}"
    with pytest.raises(FuserlError, match="4 of 20 requests got no answer") as caught:
        ask(TWO, long)
    assert "4 would fail again" in caught.value.hint
    assert "on_failure=leave_out" in caught.value.hint
    groups = ask(TWO, long, "on_failure=leave_out")
    assert [group.id for group in groups] == ["p0", "p1", "p2", "p3"]
    assert manifest().extra["prompts"]["without_answer"] == 1
    assert manifest().extra["sources"]["a"]["counts"]["missing"] == 2
    err = capfd.readouterr().err
    assert "4 x the prompt has N tokens, the model takes N" in err
    assert "1 prompts are left out" in err


def test_an_old_data_set_stays_while_the_new_one_is_not_whole(ask):
    ask(TWO, "data.limit=2")
    before = manifest()
    write_prompts([*PROMPTS[:3], PROMPTS[3] | {"prompt": "a long one"}])
    with pytest.raises(FuserlError, match="4 of 16 requests"):
        ask(TWO, "+engine.fails={_target_:answering.too_long,_partial_:true}")
    assert manifest() == before
    assert len(list(read_groups("out"))) == 2


def test_a_dead_engine_is_given_up(ask, capfd):
    write_prompts([{"prompt": f"{n}?"} for n in range(100)])
    with pytest.raises(FuserlError, match="400 of 400 requests got no answer"):
        ask(TWO, LOG, "give_up=5", "+engine.together=1", "+engine.fails={_target_:answering.down,_partial_:true}")
    assert len(computed()) == 10
    assert "`a` was asked no more after `give_up` failures in a row" in capfd.readouterr().err
    with pytest.raises(FuserlError, match="no prompt has an answer"):
        ask(TWO, "give_up=5", "on_failure=leave_out", "+engine.fails={_target_:answering.down,_partial_:true}")
    assert not Path("out/manifest.json").exists()


def test_each_source_may_have_an_engine_of_its_own(ask):
    groups = ask(
        "sources={a:{path:m,engine:{log:log_a}},b:{path:m,engine:{_target_:answering.AnsweringEngine,log:log_b,_partial_:true}}}"
    )
    assert len(groups) == 4
    assert len(Path("log_a").read_text().splitlines()) == len(Path("log_b").read_text().splitlines()) == 8


def test_empty_answers_are_kept_as_they_came_and_counted(ask, capfd):
    groups = ask(TWO, "+engine.says={_target_:answering.silent,_partial_:true}")
    assert {response.text for group in groups for response in group.responses} == {""}
    assert manifest().extra["sources"]["a"]["counts"]["empty"] == 8
    with pytest.raises(FuserlError, match="empty answers alone"):
        list(read_groups("out"))


def test_identical_samples_are_counted_and_warned_of(ask, capfd):
    groups = ask(TWO, "samples=3", "+engine.says={_target_:answering.always,_partial_:true}")
    assert len({response.text for response in groups[0].responses}) == 1
    assert manifest().extra["sources"]["a"]["counts"]["identical"] == 8
    err = capfd.readouterr().err
    assert "all samples of `a` are identical in 4 of 4 prompts" in err
    assert "does the engine ignore seeds?" in err
    ask(
        TWO, "output=greedy", "unsaid.sampling.temperature=0", "+engine.says={_target_:answering.always,_partial_:true}"
    )
    assert "temperature 0 is greedy" in capfd.readouterr().err
    ask(TWO, "output=one", "samples=1", "+engine.says={_target_:answering.always,_partial_:true}")
    assert "identical in" not in capfd.readouterr().err


def test_an_engine_that_draws_otherwise_is_found_out(ask, capfd):
    ask(TWO, "+engine.really={temperature: 1.0}")
    assert "8 answers of `a` were drawn with another temperature than 0.8" in capfd.readouterr().err
    assert manifest().extra["sources"]["a"]["counts"]["drawn_otherwise"] == {"temperature": 8}


def test_half_a_character_is_mended_and_the_data_set_can_be_written(ask):
    groups = ask(TWO, "+engine.says={_target_:answering.half_a_character,_partial_:true}")
    assert groups[0].responses[0].text == "\ufffd and \U0001f600"


def test_a_source_with_any_name(ask):
    groups = ask('sources={a:{path:m,name:"org/model: 1 [x]"},b:{path:m,name:"../é"}}')
    assert {response.source for response in groups[0].responses} == {"org/model: 1 [x]", "../é"}
    assert len(list(Path("out/journal").iterdir())) == 2
    assert not list(Path().glob("*.jsonl"))[1:], "nothing is written beside the folder"


def test_prompts_from_anywhere(ask):
    write_groups(kit.random_groups(3), "set")
    assert [len(group.responses) for group in ask(TWO, "data.path=set")] == [4, 4, 4]
    assert {r.source for group in ask(TWO, "data.path=set") for r in group.responses} == {"a", "b"}
    questions = kit.shared_data() / "eval" / "gsm8k_test200.jsonl"
    columns = "data.columns={prompt: question, reference: final_answer, prompt_id: id}"
    groups = ask(TWO, f"data.path={questions}", columns, "data.limit=3", "data.domain=math", "output=gsm")
    assert [group.id for group in groups] == ["gsm8k-test-10", "gsm8k-test-16", "gsm8k-test-40"]
    assert {group.domain for group in groups} == {"math"}
    assert groups[2].reference == "8"


def test_prompts_may_come_from_the_folder_itself(ask):
    ask("sources={a:{path:models/a}}")
    groups = ask("sources={b:{path:models/b}}", "data.path=out")
    assert [(r.source, r.sample) for r in groups[0].responses] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]


def test_domains_part_and_limit_choose_prompts(ask):
    assert [group.id for group in ask(TWO, "data.domains=[math,code]")] == ["p0", "p3"]
    assert [group.id for group in ask(TWO, "data.domain=chat", "data.domains=[chat]")] == ["p1", "p2"]
    assert [group.id for group in ask(TWO, "data.limit=1")] == ["p0"]
    low, high = ([group.id for group in ask(TWO, f"data.part={part}")] for part in ("[0,0.5]", "[0.5,1]"))
    assert sorted(low + high) == ["p0", "p1", "p2", "p3"]
    assert low
    assert high


def test_bad_rows_are_refused_or_left_out_and_listed(ask, capfd):
    write_prompts([*PROMPTS, {"prompt": ""}])
    with pytest.raises(FuserlError, match="`prompt` is missing or empty") as caught:
        ask(TWO, engine="BrokenEngine")
    assert "row 4" in caught.value.where
    assert len(ask(TWO, "data.on_bad_row=skip")) == 4
    assert manifest().extra["prompts"]["bad_rows"] == 1
    assert "1 bad rows left out" in capfd.readouterr().err


def test_without_an_output_the_folder_is_named_by_what_is_asked(ask, monkeypatch):
    def name(*overrides):
        settings = [*overrides, "engine._target_=answering.AnsweringEngine", "data.path=prompts.jsonl", "samples=1"]
        return generate(compose("generate", [TWO, *settings]))

    first = name()
    assert first.parts[0] == "runs"
    assert first == name("+engine.together=3") == name("on_failure=leave_out")
    assert first != name("seed=1")


MISTAKES = {
    "no source": ([], "no source is chosen"),
    "own without path": (["source=own"], "the source has no model"),
    "source unknown": (["source=gemma9"], "gemma9"),
    "engine unknown": ([TWO, "engine=oracle"], "oracle"),
    "engine's setting unknown": (
        ["sources={a:{path:m}}", "engine._target_=answering.StrictEngine", "+engine.speed=3"],
        "unexpected keyword",
    ),
    "engine's class unknown": ([TWO, "engine._target_=answering.Nothing"], "engine's settings are not understood"),
    "own engine's class unknown": (["sources={a:{path:m,engine:{_target_:nowhere.E}}}"], "not understood"),
    "a source is a text": (["sources={a:m}"], "a source has settings"),
    "source's setting unknown": (["sources={a:{path:m,tempo:1}}"], "no setting `tempo`"),
    "sampling's setting unknown": (["sources={a:{path:m,sampling:{heat:1}}}"], "no setting `heat`"),
    "no samples": ([TWO, "samples=0"], "`samples` is 0"),
    "half a sample": ([TWO, "samples=1.5"], "`samples` is 1.5"),
    "no tokens": ([TWO, "max_tokens=0"], "`max_tokens` is 0"),
    "cold": (["sources={a:{path:m,sampling:{temperature:-1}}}"], "`temperature` is -1"),
    "two of one name": (["sources={a:{path:m},b:{path:n,name:a}}"], "two sources have the name `a`"),
    "template file missing": (["sources={a:{path:m,chat_template:no.jinja}}"], "chat template cannot be read"),
    "prompts missing": ([TWO, "data.path=nowhere.jsonl"], "no such file or folder"),
    "prompts without prompts": ([TWO, "data.columns={prompt: ask}"], "`ask` is no column"),
    "column unknown": ([TWO, "data.columns={question: ask}"], "`data.columns` is"),
    "no prompt left": ([TWO, "data.domains=[poetry]"], "no prompt is left"),
    "limit of none": ([TWO, "data.limit=0"], "`data.limit` is 0"),
    "part of none": ([TWO, "data.part=[1,0]"], "`data.part` is"),
    "domains as text": ([TWO, "data.domains=math"], "`data.domains` is"),
    "form unknown": ([TWO, "data.format=xml"], "no data format `xml`"),
    "on_failure unknown": ([TWO, "on_failure=ignore"], "`ignore` is no way"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_before_a_folder_or_an_engine_is_made(name, ask):
    overrides, match = MISTAKES[name]
    with pytest.raises(FuserlError, match=match) as caught:
        ask(*overrides, engine="BrokenEngine")
    assert caught.value.hint
    assert not Path("out").exists()


def test_an_engine_that_cannot_start_or_breaks_leaves_what_came(ask):
    with pytest.raises(FuserlError, match="the engine was started"):
        ask(TWO, engine="BrokenEngine")
    with pytest.raises(RuntimeError, match="out of memory"):
        ask(TWO, LOG, "+engine.together=1", "+engine.says={_target_:answering.breaks_at_three,_partial_:true}")
    done = len(Path("out/journal/b.jsonl").read_text().splitlines())
    groups = ask(TWO, "output=out")
    assert 0 < done < 16
    assert groups == ask(TWO, "output=undisturbed")


def test_a_folder_of_another_verb_is_left_alone(ask):
    write_groups(kit.random_groups(2), "out")
    with pytest.raises(FuserlError, match="did not make"):
        ask(TWO)
    shutil.rmtree("out")
    Path("out").mkdir()
    Path("out/config.yaml").write_text("objective: dpo\n")
    with pytest.raises(FuserlError, match="did not make"):
        ask(TWO)
    assert Path("out/config.yaml").read_text() == "objective: dpo\n"


def test_a_broken_record_of_what_was_asked_is_told(ask):
    ask(TWO)
    Path("out/sources.json").write_text('{"a": {}}')
    with pytest.raises(FuserlError, match="what earlier commands asked cannot be read"):
        ask(TWO)


def test_no_torch_where_the_engine_needs_none(ask):
    code = (
        "import sys; from fuserl.cli import run_verb; "
        "run_verb('generate', ['data.path=prompts.jsonl', 'output=out', 'source=own', 'sources.own.path=m',"
        " 'engine._target_=answering.AnsweringEngine']); "
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'torch', 'transformers', 'datasets', 'vllm', 'ray'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r}); {code}"],
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_groups_are_made_one_by_one():
    """However many prompts there are, one is in memory."""
    read: list[str] = []

    def prompts():
        for group in kit.random_groups(5):
            read.append(group.id)
            yield replace(group, responses=())

    groups = grouped(prompts(), {}, {})
    assert [len(read) for _ in groups] == [1, 2, 3, 4, 5]
