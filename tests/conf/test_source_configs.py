"""Every source of `conf/source/` has all settings, says where each value is from, and can be asked as it stands."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest
from omegaconf import OmegaConf

from fuserl.errors import FuserlError
from fuserl.settings import compose, config_folder, plain
from fuserl.sources.chosen import chosen_sources
from fuserl.sources.protocol import Sampling
from fuserl.sources.source import Source

FOLDER = config_folder() / "source"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
PAPERS = [name for name in NAMES if name != "own"]
FUSECHAT = {  # papers.md §2.2: temperature, top_p, repetition penalty
    "gemma2_27b": (0.8, 0.95, 1.0),
    "mistral_large_2407": (0.8, 0.95, 1.0),
    "llama31_70b": (0.8, 0.95, 1.0),
    "qwen25_72b": (0.7, 0.8, 1.05),
    "qwen25_math_72b": (0.7, 0.8, 1.05),
}
WRPO = [  # its ten
    *("mistral_large_2407", "gemma2_27b", "qwen2_72b", "llama3_70b", "gemma2_9b", "internlm25_20b"),
    *("deepseek_v2_chat", "deepseek_coder_v2", "yi15_34b", "phi3_medium"),
]


def chosen(*overrides: str) -> dict[str, Source]:
    settings = plain(compose("generate", ["data.path=x", "engine=transformers", *overrides]))
    return {one.source.name: one.source for one in chosen_sources(settings)}


@pytest.mark.parametrize("name", NAMES)
def test_every_source_has_all_settings(name):
    cfg = OmegaConf.load(FOLDER / f"{name}.yaml")
    assert set(cfg) == {field.name for field in fields(Source)} - {"content"} | {"engine"}
    assert set(cfg.sampling) == {field.name for field in fields(Sampling)}
    assert cfg.name == name
    assert (FOLDER / f"{name}.yaml").read_text().startswith(f"# @package sources.{name}\n")


@pytest.mark.parametrize("name", PAPERS)
def test_every_value_of_a_paper_says_where_it_is_from(name):
    text = (FOLDER / f"{name}.yaml").read_text()
    sampling = text.partition("sampling:\n")[2].splitlines()
    asked = [line for line in text.splitlines() if line.startswith(("samples:", "revision:"))]
    unmarked = [line for line in sampling + asked if not re.search(r"\[(paper|inferred|unknown)[:\]]", line)]
    assert not unmarked
    assert len(sampling) == len(fields(Sampling))


@pytest.mark.parametrize("name", PAPERS)
def test_every_source_of_a_paper_can_be_asked(name):
    (source,) = chosen(f"source={name}").values()
    assert source.path.count("/") == 1
    assert source.licence
    assert not source.trust_remote_code


def test_the_numbers_of_the_papers():
    sources = chosen(f"source=[{','.join(FUSECHAT)}]")
    drawn = {
        name: (one.sampling.temperature, one.sampling.top_p, one.sampling.repetition_penalty)
        for name, one in sources.items()
    }
    assert drawn == FUSECHAT
    ten = chosen(f"source=[{','.join(WRPO)}]")
    assert len(ten) == 10
    assert {(one.sampling.temperature, one.sampling.top_p, one.samples) for one in ten.values()} == {(0.8, 0.95, 5)}
    assert len({one.path for one in chosen(f"source=[{','.join(PAPERS)}]").values()}) == len(PAPERS)


def test_models_of_ones_own_need_no_file():
    one = chosen("source=own", "sources.own.path=m", "sources.own.name=target")
    assert one["target"].path == "m"
    several = chosen("sources={a:{path:m},b:{path:n,samples:3,sampling:{temperature:0}}}")
    assert [(s.path, s.samples, s.sampling.temperature) for s in several.values()] == [("m", 5, 0.8), ("n", 3, 0)]
    with_others = chosen("source=gemma2_9b", "+sources.a.path=m", "+sources.b.path=n")
    assert set(with_others) == {"gemma2_9b", "a", "b"}
    assert set(chosen("source=[own,qwen2_72b]", "sources.own.path=m")) == {"own", "qwen2_72b"}


def test_one_word_for_all_sources():
    everyone = chosen("source=[gemma2_27b,qwen25_72b]", "+sources.a.path=m", "samples=8", "max_tokens=64")
    assert {(one.samples, one.sampling.max_tokens) for one in everyone.values()} == {(8, 64)}


def test_a_source_that_does_not_exist_is_told_with_those_that_do():
    with pytest.raises(FuserlError, match="gemma2_27b"):
        chosen("source=gemma")
    with pytest.raises(FuserlError, match="gemma"):
        chosen("source=[gemma2_27b,gemma]")


def test_a_source_that_is_not_there_yet_is_added_with_a_plus():
    for setting in ("sources.mine.path", "data.columns.prompt"):
        with pytest.raises(FuserlError, match="no setting") as caught:
            chosen(f"{setting}=x")
        assert caught.value.hint == f"`+{setting}=...` adds it"
