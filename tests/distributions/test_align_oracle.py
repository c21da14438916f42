"""What `align` writes equals a slow, literal computation: three architectures, three tokenizers, hard texts."""

from __future__ import annotations

import json

import align_oracle
import numpy as np
import pytest
from align_kit import models, overrides, run, write_data  # noqa: F401

from fuserl.distributions.store import Distributions
from fuserl.sources.source import content_of

FORMS = [("exact", False, False), ("min_edit", True, False), ("statistics", False, True), ("statistics", True, True)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Data and a cache for all of the module."""
    folder = tmp_path_factory.mktemp("oracle")
    write_data(folder / "data.jsonl")
    return folder


# fp16 has steps of 2^-7 from 8 nats on: half a step for what was read, for its normaliser, and for what is written
HALVES = 3 * 2**-8


def rows_of(store: Distributions) -> list[list[dict[int, float]]]:
    """What is kept, as probabilities that sum to 1."""
    found = []
    for key in store:
        top = store[key].top_k().renormalised()
        found.append(
            [
                {int(t): float(p) for t, p in zip(*row, strict=True) if t >= 0}
                for row in zip(top.ids, top.probs, strict=True)
            ]
        )
    return found


@pytest.mark.parametrize(("mode", "mean", "pairwise"), FORMS)
def test_fused_rows_are_the_literal_ones(models, place, mode, mean, pairwise):  # noqa: F811
    more = (f"matching={mode}", f"blend={'avg_ce' if mean else 'min_ce'}", f"pairwise={pairwise}")
    name = f"{mode}-{mean}-{pairwise}"
    out = run(overrides(models, place / "data.jsonl", place, *more, f"output={place / name}"))
    for store in ("pieces", "bytes") if pairwise else ("all",):
        found = rows_of(Distributions(out / "fused" / store))
        wanted = align_oracle.fused(models, place / "data.jsonl", mode, mean, store if pairwise else None)
        assert [len(rows) for rows in found] == [len(rows) for rows in wanted]
        for text, (ours, theirs) in enumerate(zip(found, wanted, strict=True)):
            for place_, (row, other) in enumerate(zip(ours, theirs, strict=True)):
                assert row.keys() == other.keys(), (store, text, place_)
                for token, probability in other.items():
                    assert row[token] == pytest.approx(probability, rel=HALVES, abs=1e-5), (store, text, place_, token)


def test_all_models_and_origins_take_part(models, place):  # noqa: F811
    """Else the equality above would say little."""
    out = run(overrides(models, place / "data.jsonl", place, "blend=avg_ce", f"output={place / 'seen'}"))
    summary = json.loads((out / "summary.json").read_text())
    (fused,) = summary["fused"]
    assert set(fused["weights"]) == {"target", "pieces", "bytes"}
    assert fused["texts"] == 11  # of 12 responses, two of which are equal
    assert min(fused["origins"]["pieces"][kind] for kind in ("copied", "gold")) > 0
    assert [one["unread"] for one in summary["models"]] == [{}, {}, {}]
    tokens = {one["model"]: one["tokens"] for one in summary["models"]}
    assert len(set(tokens.values())) == 3, "the tokenizers cut alike"
    store = Distributions(out / "fused" / "all")
    assert fused["tokens"] == tokens["target"] == len(store.rows)
    assert np.isfinite(store.rows["ce"]).all()


def test_what_a_model_says_is_what_one_forward_says(models, place):  # noqa: F811
    """Ids, log-probs, the mass that is not kept, nats of every label."""
    run(overrides(models, place / "data.jsonl", place, f"output={place / 'said'}"))
    rows = map(json.loads, (place / "data.jsonl").open())
    texts = list({(row["prompt"], r["text"]): None for row in rows for r in row["responses"]})
    folders = {len(store): store for store in map(Distributions, (place / "cache" / "distributions").iterdir())}
    assert list(folders) == [len(texts)]
    ends = {"target": "<|im_end|>", "pieces": "</s>", "bytes": "<|endoftext|>"}
    by_content = {content_of(str(folder)): name for name, folder in models.items()}
    for store in map(Distributions, (place / "cache" / "distributions").iterdir()):
        name = by_content[store.made_from["model"]]
        model = align_oracle.Model(models[name], ends[name])
        for key, text in zip(store, texts, strict=True):
            wanted, found = align_oracle.answer(model, *text), store[key]
            assert found.ids.tolist() == [[token for token, _ in step] for step in wanted.steps.values()]
            logps = [[logp for _, logp in step] for step in wanted.steps.values()]
            np.testing.assert_allclose(found.logps, logps, rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(np.exp(found.tail.astype(float)), list(wanted.tails.values()), rtol=2e-3)
            assert found.ce.mean() == pytest.approx(wanted.ce, rel=1e-5)
            assert found.notes["nats"] == pytest.approx(wanted.ce * len(found.ce), rel=1e-5)
