"""What goes in: several inputs joined, bad rows told, mistakes found before anything is read, changes noticed."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
from curation.select_kit import SOURCES, contents, group, groups_of, lay, report, run, world

from fuserl.curation.ledger import totals
from fuserl.errors import FuserlError
from fuserl.records.schema import Message
from fuserl.records.store import write_groups

ALL = ("rules=none", "sft=all", "sft_share=1", "po=none", "validation_fraction=0")


@pytest.fixture(autouse=True)
def without_a_page(monkeypatch):
    """The page has tests of its own, and takes its time."""
    monkeypatch.setattr("fuserl.curation.select.page", lambda report, path: None)


def of_sources(groups, *names):
    return [replace(one, responses=tuple(r for r in one.responses if r.source in names)) for one in groups]


def test_sources_that_lie_apart_are_joined_to_what_they_are_together(tmp_path):
    groups = [group(4 * n, samples=2) for n in range(50)]
    whole = run(f"data.path={lay(groups, tmp_path / 'all.jsonl')}", f"output={tmp_path / 'whole'}", *ALL)
    random.Random(0).shuffle(parts := of_sources(groups, *SOURCES[:2]))
    first, second = lay(parts, tmp_path / "a.jsonl"), lay(of_sources(groups, *SOURCES[2:]), tmp_path / "b.jsonl.gz")
    apart = run(f"data.inputs=[{{path: {first}}}, {{path: {second}}}]", f"output={tmp_path / 'apart'}", *ALL)
    joined = [replace(one, extra={}) for one in groups_of(apart / "sft/train")]
    assert joined == groups_of(whole / "sft/train")
    entry = report(apart)["steps"][0]
    assert (entry["step"], totals(entry)) == ("joining inputs", ([100, 50, 50], [400, 0, 0, 400]))


def test_a_response_that_stands_in_two_inputs_is_there_once_and_scored(tmp_path):
    groups = [group(4 * n, samples=2) for n in range(5)]
    bare = [replace(one, responses=tuple(replace(r, reward=None) for r in one.responses)) for one in groups]
    other = [replace(one, responses=tuple(replace(r, text=r.text + "!") for r in one.responses[:1])) for one in groups]
    paths = [lay(rows, tmp_path / f"{n}.jsonl") for n, rows in enumerate((bare, groups, other))]
    folder = run(f"data.inputs=[{','.join(f'{{path: {path}}}' for path in paths)}]", f"output={tmp_path / 'out'}", *ALL)
    for one in groups_of(folder / "sft/train"):
        assert len(one.responses) == 9, "eight that stand twice, and another one under a number of its own"
        assert [r.sample for r in one.responses if r.source == SOURCES[0]] == [0, 1, 2]
        assert all(r.reward is not None for r in one.responses)
    assert totals(report(folder)["steps"][0])[1] == [5 * 17, 5 * 8, 0, 5 * 9]


def test_inputs_have_domains_names_and_prefixes_of_their_own(tmp_path):
    one, other = (lay([group(4 * n + at) for n in range(20)], tmp_path / f"{at}.jsonl") for at in (0, 1))
    renamed = lay([replace(group(4 * n + 2), id=f"q{4 * n}") for n in range(20)], tmp_path / "2.jsonl")
    given = f"{{path: {one}, name: talk, domain: chat}}, {{path: {other}}}, {{path: {renamed}, prefix: 'x-'}}"
    folder = run(f"data.inputs=[{given}]", f"output={tmp_path / 'out'}", *ALL)
    groups = {g.id: (g.domain, g.extra["input_name"]) for g in groups_of(folder / "sft/train")}
    assert groups["q0"] == ("chat", "talk")
    assert groups["q1"] == ("math", "1")
    assert groups["x-q0"] == ("code", "2")
    assert {name: one["groups"] for name, one in report(folder)["inputs"].items()} == {"talk": 20, "1": 20, "2": 20}


def test_two_inputs_with_one_id_for_different_prompts_are_told_apart_or_refused(tmp_path):
    one = lay([group(4)], tmp_path / "a.jsonl")
    other = lay([replace(group(4), prompt=(Message("user", "Something else."),))], tmp_path / "b.jsonl")
    with pytest.raises(FuserlError, match="different prompts") as error:
        run(f"data.inputs=[{{path: {one}}}, {{path: {other}}}]", f"output={tmp_path / 'out'}", *ALL)
    assert "prefix" in error.value.hint


def test_a_stored_data_set_and_a_split_of_a_folder_are_read_like_rows(tmp_path):
    groups = world(30, samples=2)
    rows = run(f"data.path={lay(groups, tmp_path / 'in.jsonl')}", f"output={tmp_path / 'rows'}", *ALL)
    (tmp_path / "set").mkdir()
    lay(groups, tmp_path / "set" / "train.jsonl.gz")
    lay(groups[:3], tmp_path / "set" / "test.jsonl")
    write_groups(groups, tmp_path / "stored")
    one = run(f"data.path={tmp_path / 'set'}", f"output={tmp_path / 'one'}", *ALL)
    two = run(f"data.path={tmp_path / 'stored'}", f"output={tmp_path / 'two'}", *ALL)
    test = run(f"data.path={tmp_path / 'set'}", "data.split=test", f"output={tmp_path / 'three'}", *ALL)
    digests = [report(folder)["sides"]["sft/train"]["digest"] for folder in (rows, one, two, test)]
    assert digests[0] == digests[1] == digests[2] != digests[3]
    assert len(groups_of(test / "sft/train")) == 3


def test_blank_answers_never_come_out_even_without_rules(tmp_path):
    path = lay(world(60), tmp_path / "in.jsonl")
    folder = run(f"data.path={path}", f"output={tmp_path / 'out'}", *ALL)
    assert all(r.text.strip() for one in groups_of(folder / "sft/train") for r in one.responses)
    assert totals(report(folder)["steps"][-1])[1][1] > 0


def test_a_prompt_that_loses_its_last_response_goes_under_the_rule_that_took_it(tmp_path):
    cut = [replace(r, finish_reason="length") for r in group(0, samples=1).responses]
    path = lay([replace(group(0), responses=tuple(cut)), group(8)], tmp_path / "in.jsonl")
    settings = [setting for setting in ALL if setting != "rules=none"]
    folder = run(f"data.path={path}", f"output={tmp_path / 'out'}", *settings)
    truncated = next(entry for entry in report(folder)["steps"] if entry["step"] == "truncated")
    assert totals(truncated) == ([2, 1, 1], [24, 4, 0, 20])
    rows = [json.loads(line) for line in (folder / "dropped.jsonl").read_text().splitlines()]
    assert [row["source"] for row in rows if row["step"] == "truncated"] == [*SOURCES, None]


def test_prompts_and_sources_with_too_few_responses(tmp_path):
    few = replace(group(0), responses=(*group(0).responses[:6], *group(0).responses[10:11]))
    lone = replace(group(4), responses=group(4).responses[::5])
    path = lay([few, lone, group(8)], tmp_path / "in.jsonl")
    least = ("+rule@rules.at_least=at_least", "rules.at_least.samples=2")
    folder = run(f"data.path={path}", f"output={tmp_path / 'out'}", *ALL, *least)
    kept = {one.id: sorted({r.source for r in one.responses}) for one in groups_of(folder / "sft/train")}
    assert kept == {"q0": ["alder"], "q8": sorted(SOURCES)}
    entry = next(entry for entry in report(folder)["steps"] if entry["step"] == "at_least")
    assert totals(entry) == ([3, 1, 2], [31, 2, 4, 25])


def test_rules_can_be_for_some_domains_only(tmp_path):
    path = lay(world(60, samples=3), tmp_path / "in.jsonl")
    folder = run(
        f"data.path={path}",
        f"output={tmp_path / 'out'}",
        "rules.empty.only=[math]",
        *[s for s in ALL if "rules" not in s],
    )
    entry = next(entry for entry in report(folder)["steps"] if entry["step"] == "empty")
    dropped = {domain: sum(row[1] for row in of.values()) for domain, of in entry["responses"].items()}
    assert dropped.pop("math") > 0
    assert set(dropped.values()) == {0}
    assert totals(report(folder)["steps"][-1])[1][1] > 0, "what other domains have left comes to the last rule"


def test_bad_rows_stop_it_or_are_listed(tmp_path):
    path = lay([group(0)], tmp_path / "in.jsonl")
    path.write_text(path.read_text() + '{"prompt": "no response"}\n')
    with pytest.raises(FuserlError, match="responses"):
        run(f"data.path={path}", f"output={tmp_path / 'a'}", *ALL)
    folder = run(f"data.path={path}", "data.on_bad_row=skip", f"output={tmp_path / 'b'}", *ALL)
    assert report(folder)["inputs"]["in"]["left_out"] == 1
    assert "row 1" in report(folder)["bad_rows"][0][1]


REFUSED = {
    "no input": ([], "no data set to read"),
    "path and inputs": (["data.path={path}", "data.inputs=[{{path: {path}}}]"], "both"),
    "one name twice": (["data.inputs=[{{path: {path}}}, {{path: {path}}}]"], "two inputs are called"),
    "unknown setting of an input": (["data.inputs=[{{path: {path}, weight: 3}}]"], "an input is a `path`"),
    "input without path": (["data.inputs=[{{domain: math}}]"], "no path"),
    "no such file": (["data.path={path}.gone"], "no such file"),
    "unknown format": (["data.path={path}", "data.format=csv"], "no data format"),
    "unknown way with bad rows": (["data.path={path}", "data.on_bad_row=ignore"], "no way to treat"),
    "share": (["data.path={path}", "sft_share=1.5"], "no share"),
    "everything held out": (["data.path={path}", "validation_fraction=1"], "no share"),
    "no protocol for preferences": (["data.path={path}", "po=none"], "nothing says how"),
    "no protocol for SFT": (["data.path={path}", "sft=none"], "nothing says what"),
    "window": (["data.path={path}", "po.min_gap=0.2", "po.max_gap=0.1"], "no gap lies between"),
    "pairing": (["data.path={path}", "po.among=nearest"], "no choice"),
    "setting of another protocol": (["data.path={path}", "po=groups", "+po.min_gap=1"], "cannot be made"),
    "size": (["data.path={path}", "sft=top", "sft.size=0"], "no number of responses"),
    "unknown key of a domain": (["data.path={path}", "domains={{math: {{share: 1}}}}"], "no setting"),
    "rule without target": (["data.path={path}", "+rules.mine={{}}"], "rule"),
    "rule that is not there": (
        ["data.path={path}", "+rules.mine={{_target_: fuserl.curation.nothing}}"],
        "cannot be made",
    ),
    "domains of a rule": (["data.path={path}", "rules.empty.only=math"], "list"),
    "mixture of both kinds": (["data.path={path}", "mixture.sft={{math: 0.5, code: 3}}"], "sum to 1"),
    "shares": (["data.path={path}", "mixture.sft={{math: 0.5, code: 0.3}}"], "sum to 1"),
    "mixture by": (["data.path={path}", "mixture.by=source", "mixture.po={{math: 3}}"], "nothing to mix by"),
    "mixture by one input": (["data.path={path}", "mixture.by=input", "mixture.po={{in: 3}}"], "input"),
    "total beside counts": (["data.path={path}", "mixture.po={{math: 3}}", "mixture.po_total=3"], "total already"),
    "repeating shares without end": (
        ["data.path={path}", "mixture.po={{math: 1.0}}", "mixture.repeat=true"],
        "need a total",
    ),
}


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_mistakes_are_told_before_anything_is_written(case, tmp_path):
    overrides, what = REFUSED[case]
    path = tmp_path / "in.jsonl"
    path.write_text("not read before the settings are checked")
    with pytest.raises(FuserlError, match=what) as error:
        run(*(one.format(path=path) for one in overrides), f"output={tmp_path / 'out'}")
    assert error.value.where
    assert error.value.hint
    assert not list((tmp_path / "out").rglob("*.jsonl"))


def test_other_settings_and_changed_inputs_are_named(tmp_path):
    path, output = lay([group(4 * n) for n in range(30)], tmp_path / "in.jsonl"), f"output={tmp_path / 'out'}"
    folder = run(f"data.path={path}", output, *ALL)
    before = contents(folder)
    with pytest.raises(FuserlError, match=r"other settings \(sft.verdict: 'any' -> 'right'\)"):
        run(f"data.path={path}", output, *ALL, "sft.verdict=right")
    lay([group(4 * n) for n in range(31)], path)
    with pytest.raises(FuserlError, match="`in` has changed"):
        run(f"data.path={path}", output, *ALL)
    assert contents(folder) == before


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    path = lay([group(0)], tmp_path / "in.jsonl")
    with pytest.raises(FuserlError, match="did not make"):
        run(f"data.path={path}", f"output={tmp_path}", *ALL)
    assert path.exists()


def test_nothing_left_says_why(tmp_path):
    path = lay([group(3 + 4 * n) for n in range(10)], tmp_path / "in.jsonl")
    with pytest.raises(FuserlError, match="no prompt is left") as error:
        run(f"data.path={path}", f"output={tmp_path / 'out'}")
    assert "no response is scored" in error.value.where
