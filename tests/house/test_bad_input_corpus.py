"""Whatever is wrong with a command, its data, its models or its folders: one clear error, never a traceback of something else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from bad_inputs import CASES
from bad_world import GOOD, HAS_OUTPUT, World

from fuserl.cli import VERBS, run_verb
from fuserl.errors import FuserlError

ALL = [(verb, name) for verb, cases in CASES.items() for name in cases]
AT_LEAST = 450


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("corpus") / "w")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """What a command writes without being told where."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("verb", "name"), ALL, ids=lambda value: value[:60])
def test_a_bad_input_is_one_clear_error(world, tmp_path, verb, name):
    words, *overrides = CASES[verb][name]
    with pytest.raises(FuserlError) as caught:
        run_verb(verb, world.bad(verb, tmp_path / "out", overrides))
    assert re.search(words, str(caught.value)), caught.value
    assert caught.value.hint, "there is a way out"
    assert caught.value.where or "must be given" in caught.value.what, "there is a place"
    assert "\n" not in caught.value.what.strip() or len(caught.value.what) < 2000
    assert not list(tmp_path.rglob("canary")) + list(world.folder.rglob("canary")), "nothing of the input was run"


@pytest.mark.parametrize("verb", [verb for verb in GOOD if verb not in ("train", "plan")])
def test_the_command_works_without_what_is_wrong(world, tmp_path, verb, capsys):
    run_verb(verb, world.good(verb, tmp_path / "out"))
    wrote = {path.name for path in (tmp_path / "out").glob("*")}
    assert {"config.yaml", "manifest.json"} & wrote if verb in HAS_OUTPUT else "processor" in capsys.readouterr().out


def test_every_verb_has_cases_and_they_are_many():
    assert CASES.keys() == VERBS.keys()
    assert len(ALL) >= AT_LEAST


def test_a_value_of_another_kind_is_refused_by_name_and_conf_stays_valid():
    for override, words in {
        "seed=[1]": "`seed` must be a number",
        "trainer.progress_bar=7": "`trainer.progress_bar` must be true or false",
        "optimizer.lr=nan": "`optimizer.lr` must be a number",
        "data.part=0.5": "`data.part` must be a list",
        f"output={Path('x' * 300)}": "at most 255 bytes",
    }.items():
        with pytest.raises(FuserlError, match=re.escape(words)):
            run_verb("train", [override])
