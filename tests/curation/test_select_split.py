"""Sides of a split: where training would have put a prompt, equal and nearly equal ones together, nothing on two."""

from __future__ import annotations

import random
from dataclasses import replace
from string import ascii_lowercase

import pytest
from curation.select_kit import groups_of, lay, report, run, world
from omegaconf import OmegaConf

from fuserl.curation import split
from fuserl.records import reading
from fuserl.records.reading import sides_of
from fuserl.records.schema import Message, PromptGroup, Response
from fuserl.records.splits import prompt_digest
from fuserl.settings import compose

ALL = ("rules=none", "sft=all", "po=groups")


@pytest.fixture(autouse=True)
def without_a_page(monkeypatch):
    """The page has tests of its own, and takes its time."""
    monkeypatch.setattr("fuserl.curation.select.page", lambda report, path: None)


def ids(folder, name: str) -> set[str]:
    return {one.id for one in groups_of(folder / name)}


def asking(name: str, text: str, domain: str = "instruction") -> PromptGroup:
    """A prompt with two samples of a source, which every protocol keeps."""
    said = tuple(Response("a", f"{name} answers {n}", n, n / 10) for n in range(2))
    return PromptGroup(name, (Message("user", text),), said, domain)


def long_text(rng: random.Random) -> str:
    """Forty words without numbers."""
    return " ".join("".join(rng.choices(ascii_lowercase, k=5)) for _ in range(40))


def test_prompts_that_are_alone_stand_where_training_would_have_put_them(tmp_path):
    rng = random.Random(0)
    path = lay([asking(f"q{n}", long_text(rng)) for n in range(300)], tmp_path / "in.jsonl")
    folder = run(f"data.path={path}", f"output={tmp_path / 'out'}", *ALL)
    for name, part in (("sft", [0, 0.4]), ("po", [0.4, 1])):
        data = OmegaConf.merge(compose("train", ["data=own", f"data.path={path}"]).data, {"part": part})
        train, held_out = ({one.id for one in side.groups(reading.ReadReport())} for side in sides_of(data))
        assert ids(folder, f"{name}/train") == train
        assert ids(folder, f"{name}/validation") <= held_out
    assert 0.3 < len(ids(folder, "sft/train")) / 285 < 0.5
    assert len(ids(folder, "sft/validation") | ids(folder, "po/validation")) == len(held_out) > 5
    assert split.HELD_OUT == reading.SALT


def families(change) -> list[PromptGroup]:
    """Sixty prompts; every fifth one ten times more, under other ids, in other words."""
    rng = random.Random(1)
    first = [asking(f"q{n}", long_text(rng)) for n in range(60)]
    again = [
        replace(one, id=f"{one.id}-{n}", prompt=(Message("user", change(one.prompt[0].content, n)),))
        for one in first[::5]
        for n in range(10)
    ]
    return first + again


CHANGES = {
    "equal": lambda text, n: text,
    "but for case and spacing": lambda text, n: "  ".join(text.split()) if n % 2 else text.upper(),
    "nearly": lambda text, n: f"{text} {'now' if n % 2 else 'soon'}",
}


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_prompts_that_say_the_same_stand_together(change, tmp_path):
    path = lay(families(CHANGES[change]), tmp_path / "in.jsonl")
    folder = run(f"data.path={path}", f"output={tmp_path / 'out'}", "validation_fraction=0.2", *ALL)
    where = {one: name for name in report(folder)["sides"] for one in ids(folder, name)}
    assert len(where) == 60 + 12 * 10
    together: dict[str, set[str]] = {}
    for one, name in where.items():
        together.setdefault(one.split("-")[0], set()).add(name)
    assert all(len(names) == 1 for names in together.values())
    assert len(set.union(*together.values())) == 4
    assert report(folder)["together"] == 120


def test_without_looking_for_near_ones_only_equal_ones_stand_together(tmp_path):
    path = lay(families(CHANGES["nearly"]), tmp_path / "in.jsonl")
    folder = run(f"data.path={path}", f"output={tmp_path / 'out'}", "same_side.near=null", *ALL)
    assert report(folder)["together"] == 12 * (10 - 2), "five say `now`, five say `soon`: the first of each leads"


def test_a_family_over_two_domains_follows_the_share_of_the_first(tmp_path):
    rng = random.Random(2)
    math = [asking(f"a{n}", long_text(rng), "math") for n in range(40)]
    code = [replace(one, id=f"b{n}", domain="code") for n, one in enumerate(math)]
    path = lay([*math, *code], tmp_path / "in.jsonl")
    shares = "domains={math:{sft_share:1.0},code:{sft_share:0.0}}"
    folder = run(f"data.path={path}", f"output={tmp_path / 'out'}", shares, "validation_fraction=0", *ALL)
    assert len(ids(folder, "sft/train")) == 80
    assert not (folder / "po").exists()


def test_no_prompt_stands_on_two_sides(tmp_path):
    path = lay(world(200, samples=2), tmp_path / "in.jsonl")
    folder = run(f"data.path={path}", f"output={tmp_path / 'out'}", *ALL)
    seen: dict[str, str] = {}
    for name in report(folder)["sides"]:
        for one in groups_of(folder / name):
            words = " ".join(one.prompt[0].content.lower().split())
            assert seen.setdefault(words, name) == name
            assert seen.setdefault(prompt_digest(one.prompt), name) == name
    assert len(set(seen.values())) == 4
