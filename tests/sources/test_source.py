"""A source's settings: each is checked, kept, and either decides an answer or does not."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest

from fuserl.errors import FuserlError
from fuserl.sources import source as module
from fuserl.sources.protocol import Sampling
from fuserl.sources.source import Source, content_of, source_of

GOOD = {"path": "m", "sampling": {"max_tokens": 5}}


def made(**settings) -> Source:
    sampling = GOOD["sampling"] | settings.pop("sampling", {})
    return source_of("s", GOOD | settings | {"sampling": sampling})


def test_there_is_a_rule_for_every_setting():
    assert set(module.RULES) == {field.name for field in fields(Source)} - {"name", "sampling"}
    assert set(module.SAMPLING_RULES) == {field.name for field in fields(Sampling)}


def test_plain_comes_back():
    source = made(system="be kind", samples=3, licence="MIT", sampling={"stop": ["a", "b"], "temperature": 0.5})
    assert source_of("s", source.plain()) == source
    assert source_of("s", source.plain()).identity() == source.identity()


@pytest.mark.parametrize(
    "change",
    [
        {"path": "n"}, {"revision": "r"}, {"chat_template": "plain"}, {"date_string": "1 Jan 2026"}, {"system": "x"},
        {"dtype": "float32"}, {"context": 9},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_what_decides_an_answer_is_in_the_identity(change):
    assert made(**change).identity() != made().identity()


@pytest.mark.parametrize("change", [{"samples": 9}, {"licence": "MIT"}, {"trust_remote_code": True}])
def test_what_does_not_is_not(change):
    assert made(**change).identity() == made().identity()


BAD = {
    "no path": {"path": None},
    "blank path": {"path": "  "},
    "path is a number": {"path": 5},
    "samples": {"samples": 0},
    "half a sample": {"samples": 2.5},
    "samples as truth": {"samples": True},
    "unknown": {"tempo": 3},
    "revision": {"revision": 7},
    "template": {"chat_template": ["x"]},
    "template file": {"chat_template": "nowhere.jinja"},
    "date": {"date_string": None},
    "system": {"system": 1},
    "dtype": {"dtype": 16},
    "context": {"context": -1},
    "remote code": {"trust_remote_code": "yes"},
    "licence": {"licence": 2},
    "sampling unknown": {"sampling": {"heat": 1}},
    "max_tokens missing": {"sampling": {"max_tokens": None}},
    "max_tokens": {"sampling": {"max_tokens": 0}},
    "cold": {"sampling": {"temperature": -0.1}},
    "nan": {"sampling": {"temperature": float("nan")}},
    "infinite": {"sampling": {"temperature": float("inf")}},
    "temperature as text": {"sampling": {"temperature": "hot"}},
    "top_p": {"sampling": {"top_p": 0}},
    "top_p above": {"sampling": {"top_p": 1.1}},
    "top_k": {"sampling": {"top_k": -1}},
    "top_k half": {"sampling": {"top_k": 0.5}},
    "min_p": {"sampling": {"min_p": 2}},
    "penalty": {"sampling": {"repetition_penalty": 0}},
    "presence": {"sampling": {"presence_penalty": 2.1}},
    "frequency": {"sampling": {"frequency_penalty": "much"}},
    "stop": {"sampling": {"stop": [""]}},
    "stop of numbers": {"sampling": {"stop": [1]}},
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_setting_is_told_with_its_place_and_what_it_must_be(name):
    with pytest.raises(FuserlError) as caught:
        made(**BAD[name])
    assert "sources.s" in caught.value.where
    assert caught.value.hint


def test_one_stop_text_is_a_list_of_one():
    assert made(sampling={"stop": "\n\n"}).sampling.stop == ("\n\n",)


def test_a_template_is_known_by_what_it_says(tmp_path):
    for name in ("a.jinja", "b.j2"):
        (tmp_path / name).write_text("{{ messages }}")
    a, b = (made(chat_template=str(tmp_path / name)) for name in ("a.jinja", "b.j2"))
    assert a.chat_template == "{{ messages }}"
    assert a.identity() == b.identity() == made(chat_template="{{ messages }}").identity()
    (tmp_path / "a.jinja").write_text("{{ messages[0] }}")
    assert made(chat_template=str(tmp_path / "a.jinja")).identity() != a.identity()


def test_a_local_model_is_known_by_its_files(tmp_path):
    folder, copy = tmp_path / "model", tmp_path / "copy"
    for place in (folder, copy):
        place.mkdir()
        (place / "config.json").write_text("{}")
        (place / "model.safetensors").write_bytes(b"w" * 100)
    (copy / "README.md").write_text("a card")
    (copy / "generation_config.json").write_text("{}")
    one, other = (made(path=str(place)).with_content() for place in (folder, copy))
    assert one.path == str(folder)
    assert one.identity() == other.identity()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"):
        (copy / name).write_text("changed")
        changed = made(path=str(copy)).with_content()
        assert changed.identity() != one.identity(), name
        one = changed
    assert made(path="org/name").with_content() == made(path="org/name")
    (tmp_path / "empty").mkdir()
    assert made(path=str(tmp_path / "empty")).with_content().content is None


def test_an_adapter_is_known_with_what_its_base_holds(tmp_path):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    for folder in (base, adapter):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"weights")
    alone = content_of(str(adapter))
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    before = content_of(str(adapter))
    (base / "model.safetensors").write_bytes(b"trained anew")
    assert len({alone, before, content_of(str(adapter))}) == 3
    (adapter / "adapter_config.json").write_text("broken")
    assert content_of(str(adapter))
    assert content_of("some/name") is None
