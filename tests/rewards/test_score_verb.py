"""The verb `score`: what it keeps, what it asks again, what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from scoring_kit import Length, groups

from fuserl.errors import FuserlError
from fuserl.records.manifest import digest_of, read_manifest
from fuserl.records.schema import Response
from fuserl.records.store import iter_groups, write_groups
from fuserl.rewards.score import score
from fuserl.settings import compose

LENGTH = "scoring_kit.Length"


@pytest.fixture
def run(tmp_path):
    """`run(groups or path, *overrides)` scores into tmp_path/out with a scorer `length`, and gives the folder."""
    number = 0

    def go(
        data, *more: str, output: str = "out", scorers: tuple[str, ...] = (f"+rewards.length._target_={LENGTH}",)
    ) -> Path:
        nonlocal number
        if not isinstance(data, Path):
            number += 1
            path = tmp_path / f"data{number}"
            write_groups(data, path)
        else:
            path = data
        return score(compose("score", [f"data.path={path}", f"output={tmp_path / output}", *scorers, *more]))

    return go


def asked(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def rewards(folder: Path) -> dict[tuple[str, str, int], tuple]:
    return {(g.id, r.source, r.sample): (r.reward, r.verdict) for g in iter_groups(folder) for r in g.responses}


def test_every_answer_has_its_score_and_reward(run):
    folder = run(groups())
    for group in iter_groups(folder):
        for response in group.responses:
            expected = Length("length").one(type("I", (), {"key": "", "group": group, "response": response}))
            entry = response.extra["scores"]["length"]
            assert entry == {"reward": expected.reward, "verdict": expected.verdict, "detail": expected.detail}
            assert (response.reward, response.verdict) == (expected.reward, expected.verdict)
    told = read_manifest(folder).extra
    assert told["verb"] == "score"
    assert told["reasons"]["length"] == {
        "the answer is empty": sum(r["unknown"] for r in told["scores"] if r["scorer"] == "length")
    }
    assert sum(row["responses"] for row in told["scores"] if row["scorer"] == "length") == 24


def test_equal_answers_to_equal_prompts_are_scored_once(run, tmp_path):
    data = groups(8)
    run(data, f"+rewards.length.asked={tmp_path / 'asked'}")
    distinct = {(g.prompt, g.reference, r.text) for g in data for r in g.responses}
    assert len(asked(tmp_path / "asked")) == len(set(asked(tmp_path / "asked"))) == len(distinct)


def test_a_finished_folder_is_left_alone_and_more_data_scores_only_what_is_new(run, tmp_path):
    log = f"+rewards.length.asked={tmp_path / 'asked'}"
    data = groups(6, samples=3)
    few = [replace(g, responses=tuple(r for r in g.responses if r.sample < 2)) for g in data[:4]]
    folder = run(few, log)
    before, written = len(asked(tmp_path / "asked")), (folder / "manifest.json").stat().st_mtime_ns
    run(tmp_path / "data1", log)
    assert (folder / "manifest.json").stat().st_mtime_ns == written, "nothing new: nothing is written"
    run(data, log)
    keys = asked(tmp_path / "asked")
    assert len(keys) == len(set(keys)) > before
    assert digest_of(iter_groups(folder)) == digest_of(iter_groups(run(data, output="at_once")))


def test_another_setting_of_the_scorer_scores_anew(run, tmp_path):
    log, data = f"+rewards.length.asked={tmp_path / 'asked'}", groups(2)
    one = rewards(run(data, log))
    first = len(asked(tmp_path / "asked"))
    two = rewards(run(data, log, "+rewards.length.weight=2"))
    assert len(asked(tmp_path / "asked")) == 2 * first
    assert {key: None if r is None else 2 * r for key, (r, _) in one.items()} == {key: r for key, (r, _) in two.items()}


def test_what_else_of_the_group_decides_a_score_is_part_of_its_key(run):
    data = groups(2, samples=2)
    scorers = ("+rewards.peers._target_=scoring_kit.Peers",)
    grown = [replace(g, responses=(*g.responses, Response("s9", "x" * 99, 0))) for g in data]
    run(data, scorers=scorers)
    assert rewards(run(grown, scorers=scorers)) == rewards(run(grown, scorers=scorers, output="at_once"))


def test_scorers_stand_side_by_side_and_each_keeps_to_its_domains(run):
    folder = run(
        groups(),
        "+rewards.length.domains=[math]",
        "+rewards.peers._target_=scoring_kit.Peers",
        "combine=weighted",
        "combine.weights={length: 1.0, peers: 100.0}",
        "combine.verdict=length",
    )
    for group in iter_groups(folder):
        for response in group.responses:
            scores = response.extra["scores"]
            assert set(scores) == ({"length", "peers"} if group.domain == "math" else {"peers"})
            lengths = scores.get("length", {}).get("reward")
            assert response.reward == (None if lengths is None else lengths + 100 * scores["peers"]["reward"])


def test_earlier_scorers_stay_when_another_is_added_in_place(run, tmp_path):
    data = groups()
    run(data)
    peers = ("+rewards.peers._target_=scoring_kit.Peers",)
    grown = [*data, *groups(8)[6:]]
    folder = run([grown[n] for n in Random(1).sample(range(8), 8)], scorers=peers)  # another order, two prompts more
    for group in iter_groups(folder):
        names = {"length", "peers"} if int(group.id[1:]) < 6 else {"peers"}
        assert all(set(response.extra["scores"]) == names for response in group.responses)
    assert set(read_manifest(folder).extra["scorers"]) == {"length", "peers"}
    again = run(folder, "combine.scorer=length", scorers=())
    assert {r.reward for g in iter_groups(again) for r in g.responses if "length" not in r.extra["scores"]} == {None}


def test_scores_and_rewards_that_came_with_the_data_stay(run, tmp_path):
    data = [
        replace(g, responses=tuple(replace(r, reward=0.5, verdict="wrong") for r in g.responses)) for g in groups(2)
    ]
    folder = run(data)
    for group in iter_groups(folder):
        for response in group.responses:
            assert response.extra["scores"]["given"] == {"reward": 0.5, "verdict": "wrong", "detail": {}}
            assert response.reward != 0.5
    next_folder = run(folder, output="next", scorers=("+rewards.peers._target_=scoring_kit.Peers",))
    kept = {name for g in iter_groups(next_folder) for r in g.responses for name in r.extra["scores"]}
    assert kept == {"given", "length", "peers"}


def test_standardising_by_domain_is_a_pass_over_the_data_and_is_told(run):
    standardised = ["combine=weighted", "combine.weights={length: 1.0}", "combine.standardise=domain"]
    folder = run(groups(10), *standardised)
    for domain in ("math", "chat"):
        found = [
            r.reward for g in iter_groups(folder) if g.domain == domain for r in g.responses if r.reward is not None
        ]
        assert sum(found) == pytest.approx(0.0, abs=1e-9)
        assert sum(x * x for x in found) / len(found) == pytest.approx(1.0)
        assert read_manifest(folder).extra["calibration"]["length"][domain]["count"] == len(found)


def test_failures_are_told_never_kept_and_asked_again(run, tmp_path):
    more = (
        "+rewards.length.word='4'",
        f"+rewards.length.mended={tmp_path / 'mended'}",
        f"+rewards.length.asked={tmp_path / 'asked'}",
    )
    scorers = ("+rewards.length._target_=scoring_kit.Failing",)
    data = groups()
    with pytest.raises(FuserlError, match="answers got no score") as caught:
        run(data, *more, scorers=scorers)
    assert "failures.jsonl" in caught.value.where
    failed = [json.loads(line) for line in (tmp_path / "out/failures.jsonl").read_text().splitlines()]
    bad = {(g.prompt, r.text) for g in data for r in g.responses if "4" in r.text}
    assert len(failed) == len(bad) > 1
    assert not (tmp_path / "out/manifest.json").exists()
    first = len(asked(tmp_path / "asked"))

    folder = run(tmp_path / "data1", *more, "on_failure=leave_out", scorers=scorers)
    assert len(asked(tmp_path / "asked")) == first + len(bad), "failures alone are asked again"
    assert all(
        ("length" in r.extra.get("scores", {})) == ("4" not in r.text) for g in iter_groups(folder) for r in g.responses
    )

    (tmp_path / "mended").touch()
    folder = run(tmp_path / "data1", *more, scorers=scorers)
    assert all("length" in r.extra["scores"] for g in iter_groups(folder) for r in g.responses)
    assert Counter(asked(tmp_path / "asked")).most_common(1)[0][1] == 3
    assert not read_manifest(folder).extra["scorers"]["length"]["failures"]


def test_a_scorer_that_only_fails_is_given_up(run, tmp_path):
    more = (
        "+rewards.length.word=because",
        f"+rewards.length.mended={tmp_path / 'never'}",
        f"+rewards.length.asked={tmp_path / 'asked'}",
    )
    with pytest.raises(FuserlError, match="got no score"):
        run(groups(20), *more, "give_up=3", scorers=("+rewards.length._target_=scoring_kit.Failing",))
    assert len(asked(tmp_path / "asked")) < 20


@pytest.mark.parametrize(
    ("how", "what"),
    [
        ("nan", "gave the reward nan"),
        ("verdict", "the verdict maybe"),
        ("twice", "not asked, or twice"),
        ("stranger", "not asked, or twice"),
        ("silent", "left 8 answers without a score"),
    ],
)
def test_what_a_scorer_must_not_do_is_told(run, how, what):
    data = [replace(g, responses=tuple(replace(r, text=f"{g.id}{r}") for r in g.responses)) for g in groups(2)]
    with pytest.raises(FuserlError, match=what):
        run(data, f"+rewards.length.how='{how}'", scorers=("+rewards.length._target_=scoring_kit.Bad",))


NOTHING = ("+rewards.length._target_=no.such.Thing",)
MISTAKES = {
    "no such scorer": (NOTHING, (), "cannot be made"),
    "a setting it has not": ((f"+rewards.length._target_={LENGTH}",), ("+rewards.length.colour=red",), "cannot be made"),
    "no scorer at all": ((), (), "no scorer was chosen"),
    "a combination of strangers": ((f"+rewards.length._target_={LENGTH}",), ("combine.scorer=armorm",), "no scorer `armorm` runs"),
    "two without a choice": (
        (f"+rewards.length._target_={LENGTH}", "+rewards.peers._target_=scoring_kit.Peers"), (), "2 scorers run",
    ),
    "no way of failing": ((f"+rewards.length._target_={LENGTH}",), ("on_failure=ignore",), "no way to treat failures"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told_before_anything_is_scored(run, tmp_path, mistake):
    scorers, more, what = MISTAKES[mistake]
    log = (f"+rewards.length.asked={tmp_path / 'asked'}",) if scorers and scorers[0].endswith("Length") else ()
    with pytest.raises(FuserlError, match=what):
        run(groups(), *more, *log, scorers=scorers)
    assert not asked(tmp_path / "asked")


def test_a_field_of_that_name_that_is_not_ours_is_told(run):
    data = groups(1)
    data[0] = replace(data[0], responses=(replace(data[0].responses[0], extra={"scores": [1, 2]}),))
    with pytest.raises(FuserlError, match="something else than scores"):
        run(data)


def test_a_folder_of_another_verb_is_not_written_over(run, tmp_path):
    write_groups(groups(), tmp_path / "generated", manifest_extra={"verb": "generate"})
    with pytest.raises(FuserlError, match="did not make"):
        run(groups(), output="generated")
    assert read_manifest(tmp_path / "generated").extra == {"verb": "generate"}


def test_two_processes_do_not_write_one_folder(run, tmp_path):
    from fuserl.records.journal import locked

    with locked(tmp_path / "out"), pytest.raises(FuserlError, match="another process"):
        run(groups())


def test_no_torch_where_the_scorer_needs_none(tmp_path):
    write_groups(groups(2), tmp_path / "data")
    code = (
        "import sys; from fuserl.cli import run_verb; "
        f"run_verb('score', ['data.path={tmp_path / 'data'}', 'output={tmp_path / 'out'}', '+rewards.length._target_={LENGTH}']); "
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'torch', 'transformers', 'datasets', 'vllm', 'openai'}))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
