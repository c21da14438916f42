"""Counts and shares of domains and inputs: met by hash, never repeated unless asked for, told where they are not met."""

from __future__ import annotations

from collections import Counter

import pytest
from curation.select_kit import groups_of, lay, report, run
from hypothesis import given
from hypothesis import strategies as st

from fuserl.curation.mixture import Mixture, place_of, quotas, taken, whole
from fuserl.errors import FuserlError
from fuserl.records.schema import Message, PromptGroup, Response


@pytest.fixture(autouse=True)
def without_a_page(monkeypatch):
    """The page has tests of its own, and takes its time."""
    monkeypatch.setattr("fuserl.curation.select.page", lambda report, path: None)


def prompts(**numbers: int) -> list[PromptGroup]:
    """So many prompts of each domain."""
    return [
        PromptGroup(
            f"{domain}-{n}",
            (Message("user", f"{domain} {n}"),),
            (Response("a", f"yes {domain} {n}", reward=n),),
            domain,
        )
        for domain, number in numbers.items()
        for n in range(number)
    ]


def mixed(mixture: Mixture, groups: list[PromptGroup]) -> list[PromptGroup]:
    places: dict[str, list[tuple[float, str]]] = {}
    for group in groups:
        places.setdefault(mixture.part_of(group), []).append(place_of(group.id))
    return list(taken(mixture, quotas(mixture, places), groups))


def of(asked, total=None, repeat=False) -> Mixture:
    return Mixture.of("domain", asked, total, repeat=repeat, where="mixture.sft")


@pytest.mark.parametrize(
    ("mixture", "given"),
    [
        (of({"math": 5, "code": 3}), {"math": 5, "code": 3}),
        (of({"math": 5}), {"math": 5}),  # what is not named is not given
        (of({"math": 500, "code": 0}), {"math": 40}),  # there are no more
        (of({"math": 100}, repeat=True), {"math": 100}),
        (of({"math": 0.5, "code": 0.5}), {"math": 20, "code": 20}),  # as many as there are without repetition
        (of({"math": 0.8, "code": 0.2}), {"math": 40, "code": 10}),
        (of({"math": 0.6, "code": 0.3, "chat": 0.1}, 30), {"math": 18, "code": 9, "chat": 3}),
        (of({"math": 0.5, "code": 0.5}, 100), {"math": 40, "code": 20}),
        (of({"math": 0.5, "code": 0.5}, 100, True), {"math": 50, "code": 50}),
    ],
)
def test_mixtures_worked_out_by_hand(mixture, given):
    groups = prompts(math=40, code=20, chat=30)
    chosen = mixed(mixture, groups)
    assert Counter(group.domain for group in chosen) == given
    assert len({group.id for group in chosen}) == len(chosen)


def test_more_of_a_part_adds_to_what_less_of_it_gives():
    groups = prompts(math=40)
    ten, twenty = ({group.id for group in mixed(of({"math": n}), groups)} for n in (10, 20))
    assert ten < twenty


def test_what_is_repeated_is_repeated_evenly():
    times = Counter(group.id.split("#")[0] for group in mixed(of({"math": 100}, repeat=True), prompts(math=40)))
    assert Counter(times.values()) == {3: 20, 2: 20}


@given(st.dictionaries(st.sampled_from("abcd"), st.integers(1, 60), min_size=1), st.data())
def test_shares_give_whole_numbers_that_sum_to_the_total(there, data):
    weights = {name: data.draw(st.integers(1, 20)) for name in there}
    shares = {name: weight / sum(weights.values()) for name, weight in weights.items()}
    asked = of(shares).wanted(there)
    assert all(asked[name] <= there[name] for name in there), "nothing has to be repeated"
    total = sum(asked.values())
    assert all(abs(asked[name] - shares[name] * total) < 1 for name in there)
    assert min(there[name] / shares[name] for name in there) < total + 1, "and no more could be given"


@given(st.dictionaries(st.sampled_from("abcd"), st.floats(0, 50), min_size=1))
def test_rounding_loses_nothing(parts):
    total = round(sum(parts.values()))
    found = whole(parts, total)
    assert sum(found.values()) == total or sum(parts.values()) < total - len(parts)


def test_a_part_that_is_not_there_is_an_error_that_names_what_is():
    with pytest.raises(FuserlError, match="`maths`") as error:
        mixed(of({"maths": 5}), prompts(math=3, code=2))
    assert "3 of `math`" in error.value.hint


def test_a_domain_that_the_data_has_not_is_told_before_the_rules_take_their_time(tmp_path):
    path = lay(prompts(math=10, code=10), tmp_path / "in.jsonl")
    for setting, where in (
        ("mixture.po={maths: 5}", "`mixture.po`"),
        ("rules.refused.only=[maths]", "`rules.refused.only`"),
    ):
        with pytest.raises(FuserlError, match="has no domain") as error:
            run(f"data.path={path}", f"output={tmp_path / where.strip('`')}", setting)
        assert error.value.where == where
        assert "10 prompts of `math`" in error.value.hint
        assert not (tmp_path / where.strip("`") / "work" / "rules").exists()


def test_the_report_says_what_was_asked_for_what_there_was_and_what_was_given(tmp_path, capsys):
    path = lay(prompts(math=100, code=100), tmp_path / "in.jsonl")
    folder = run(
        f"data.path={path}", f"output={tmp_path / 'out'}", "rules=none", "same_side.near=null", "sft_share=1", "po=none",
        "validation_fraction=0", "mixture.sft={math: 30, code: 150}",
    )  # fmt: skip
    assert report(folder)["sides"]["sft/train"]["mixture"] == {"code": [150, 100, 100], "math": [30, 100, 30]}
    assert "100 prompts of `code` given, 150 were asked for" in " ".join(capsys.readouterr().err.split())
    assert Counter(group.domain for group in groups_of(folder / "sft/train")) == {"math": 30, "code": 100}
    assert (folder / "dropped.jsonl").read_text().count("more than was asked for") == 70


def test_inputs_can_be_mixed_too(tmp_path):
    one, other = lay(prompts(math=50), tmp_path / "a.jsonl"), lay(prompts(code=50), tmp_path / "b.jsonl")
    folder = run(
        f"data.inputs=[{{path: {one}}}, {{path: {other}, name: other}}]", f"output={tmp_path / 'out'}", "rules=none",
        "sft_share=1", "po=none", "validation_fraction=0", "mixture.by=input", "mixture.sft={a: 0.25, other: 0.75}",
    )  # fmt: skip
    given = Counter(group.extra["input_name"] for group in groups_of(folder / "sft/train"))
    assert given == {"a": 17, "other": 49}, "66 prompts, as 50 are three quarters of 66.7"
