"""What `objective=distill` relies on: a row is the distribution at a trained token, a probability, in the target's ids."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from align_kit import GROUPS, like_target, models, overrides, run, write_data  # noqa: F401
from safetensors.torch import load_file, save_file

from fuserl.distributions.store import LOWEST, Distributions
from fuserl.models.load import load_tokenizer
from fuserl.records.reading import sides_of
from fuserl.settings import compose
from fuserl.tokens.store import TokenStore
from fuserl.tokens.templates import load_template
from fuserl.tokens.tokenize import tokens_of


@pytest.fixture
def go(models, tmp_path):  # noqa: F811
    """`go(name, setting, ...)` aligns the small data."""
    data = write_data(tmp_path / "data.jsonl")

    def align(name: str, *more: str, sources=("pieces", "bytes"), groups=None) -> Path:
        if groups:
            write_data(data, groups)
        return run(overrides(models, data, tmp_path, *more, f"output={tmp_path / name}", sources=sources))

    return align


def target_tokens(models: dict[str, Path], folder: Path) -> TokenStore:  # noqa: F811
    """As training would make them."""
    side, _ = sides_of(compose("align", overrides(models, folder / "data.jsonl", folder)).data)
    template = load_template(load_tokenizer(str(models["target"])))
    return tokens_of(side, template, folder / "own")


def places(tokens: TokenStore) -> dict[str, tuple[int, int]]:
    """Key of every different text -> (row, column)."""
    rows, columns = (part.tolist() for part in np.nonzero(tokens.valid))
    return {bytes(tokens.keys[place]).hex(): place for place in zip(rows, columns, strict=True)}


def labels(tokens: TokenStore, place: tuple[int, int]) -> np.ndarray:
    """The trained tokens."""
    return tokens.branch(*place)[int(tokens.untrained[place]) :]


def require_contract(store: Distributions, tokens: TokenStore) -> None:
    texts = places(tokens)
    assert set(store) == set(texts)
    for key, place in texts.items():
        sample = store[key]
        assert len(sample.rows) == tokens.num_tokens[place]
        top, tail = sample.top_k(), np.exp(sample.tail.astype(np.float64))
        np.testing.assert_allclose(top.probs.sum(axis=1) + tail, 1.0, atol=4e-3)
        assert top.ids.max() < store.vocabulary
        for ids, logps in zip(top.ids, top.logps, strict=True):
            kept = ids[ids >= 0].tolist()
            assert len(kept) == len(set(kept))
            assert (np.diff(logps[ids >= 0]) <= 0).all(), "the likeliest first"


@pytest.mark.parametrize(
    "more",
    [
        ("blend=avg_ce", "matching=min_edit"),
        ("collision=added", "aligner=offsets"),
        ("aligner.scope=response", "criterion=bits_per_byte", "k=3"),
        ("k=1000", "matching=exact"),
    ],
)
def test_rows_are_probabilities_at_trained_tokens(go, models, tmp_path, more):  # noqa: F811
    store = Distributions(go("out", *more) / "fused" / "all")
    require_contract(store, target_tokens(models, tmp_path))
    template = load_template(load_tokenizer(str(models["target"])))
    assert store.made_from["tokenizer"] == template.tokenizer_digest
    assert store.made_from["template"] == template.hash
    assert store.vocabulary == len(template.tokenizer)
    said = [s for s in map(Distributions, (tmp_path / "cache/distributions").iterdir()) if s.vocabulary == 330]
    if more[0] == "k=1000":  # more than there are tokens: all of them, and what is left is the head's padding
        assert all(((sample := said[0][key]).ids < 330).sum() == 330 * len(sample.rows) for key in said[0])


def test_a_source_that_is_the_target_is_copied(go, models, tmp_path):  # noqa: F811
    twin = like_target(models, tmp_path / "twin")
    more = like_target(models, tmp_path / "more", more_tokens=1)
    names = f"+sources.twin.path={twin}", f"+sources.more.path={more}"
    out = go("out", *names, "pairwise=true", "blend=avg_ce", "target.dtype=auto", sources=())
    read = {s.vocabulary: s for s in map(Distributions, (tmp_path / "cache/distributions").iterdir())}
    for name in ("twin", "more"):
        store = Distributions(out / "fused" / name)
        for key in store:
            own, fused = read[330][key].top_k(), store[key].top_k()
            np.testing.assert_array_equal(fused.ids[:, :10], own.ids)
            ours, theirs = (top.renormalised().logps[:, :10] for top in (fused, own))
            np.testing.assert_allclose(ours, theirs, atol=5e-3)
            assert (fused.ids[:, 10:] == -1).all()
            assert store[key].notes["weights"] == pytest.approx({"target": 0.5, name: 0.5}, abs=0.01)
            assert set(store[key].notes["origins"][name]) >= {"copied"}
            assert store[key].notes["origins"][name].get("gold", 0) == 0


@pytest.mark.parametrize("late", [0, 1])
@pytest.mark.parametrize(("matching", "aligner"), [("exact", "dtw"), ("statistics", "dtw"), ("min_edit", "offsets")])
def test_a_certain_model_gives_the_label_in_every_row(go, models, tmp_path, matching, aligner, late):  # noqa: F811
    """Trap 25, the off-by-one: one-hot on the next token, whether rows are copied, mapped, or fall back."""
    more = like_target(models, tmp_path / "more", more_tokens=1)  # another vocabulary, equal tokens: all is copied
    hand = ("collector._target_=align_kit.Certain", f"+collector.late={late}", f"+sources.more.path={more}")
    out = go("out", *hand, f"matching={matching}", f"aligner={aligner}", sources=())
    store, tokens = Distributions(out / "fused" / "all"), target_tokens(models, tmp_path)
    wrong = 0
    for key, place in places(tokens).items():
        sample = store[key]
        assert sample.notes["weights"] == {"more": 1.0}
        top = sample.top_k()
        assert np.exp(top.logps[:, 0]) == pytest.approx(1.0)
        assert (sample.tail == np.float16(LOWEST)).all()
        wrong += int((top.ids[:, 0] != labels(tokens, place)).sum())
    assert (wrong > 50) if late else (wrong == 0)


def test_where_nothing_fits_the_label_is_certain(go, models, tmp_path):  # noqa: F811
    """The one-hot that EM falls back to is on the label too, with other tokenizers."""
    out = go("out", "collector._target_=align_kit.Certain", "matching=exact", sources=("pieces",))
    store, tokens = Distributions(out / "fused" / "all"), target_tokens(models, tmp_path)
    gold = sum(store[key].notes["origins"]["pieces"]["gold"] for key in store)
    hits = sum(
        int((store[key].top_k().ids[:, 0] == labels(tokens, place)).sum()) for key, place in places(tokens).items()
    )
    assert 0 < gold <= hits


def test_shared_prompts_and_separate_forwards_agree(go):
    shared = Distributions(go("shared", "collector.packing=shared", "blend=avg_ce") / "fused" / "all")
    padded = Distributions(go("padded", "collector.packing=padded", "blend=avg_ce") / "fused" / "all")
    assert list(shared) == list(padded)
    np.testing.assert_array_equal(shared.rows["ids"], padded.rows["ids"])
    np.testing.assert_allclose(shared.rows["logps"], padded.rows["logps"], rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(shared.rows["ce"], padded.rows["ce"], rtol=1e-4, atol=1e-5)


def test_packs_do_not_matter(go):
    large = go("large")
    small = go("small", "collector.max_tokens=1", "collector.logits_memory=1e-7", f"cache={large.parent / 'other'}")
    one, other = (Distributions(out / "fused" / "all") for out in (large, small))
    np.testing.assert_array_equal(one.rows["ids"], other.rows["ids"])
    np.testing.assert_allclose(one.rows["logps"], other.rows["logps"], rtol=2e-3, atol=2e-3)


def test_a_model_of_nan_is_left_out_and_counted(go, models, tmp_path):  # noqa: F811
    broken = like_target(models, tmp_path / "broken", weights=float("nan"))
    out = go("out", f"+sources.broken.path={broken}", "collector.packing=padded", sources=("pieces",))
    plain = go("plain", "collector.packing=padded", sources=("pieces",))
    one, other = (Distributions(folder / "fused" / "all") for folder in (out, plain))
    np.testing.assert_array_equal(one.rows, other.rows)
    summary = json.loads((out / "summary.json").read_text())
    assert {m["model"]: m["unread"] for m in summary["models"]} == {
        "target": {}, "pieces": {}, "broken": {"no number": 11}
    }  # fmt: skip
    assert "broken" not in summary["fused"][0]["weights"]


def test_nan_on_one_text_is_no_other_texts_loss(go, models, tmp_path):  # noqa: F811
    """In a pack, a masked NaN times zero is NaN: texts are read again alone."""
    token = load_tokenizer(str(models["pieces"])).convert_tokens_to_ids("<0xE6>")  # of Japanese letters alone
    source = tmp_path / "broken"
    shutil.copytree(models["pieces"], source)
    weights = load_file(source / "model.safetensors")
    weights["gpt_neox.embed_in.weight"][token] = float("nan")
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    out = go("out", f"+sources.broken.path={source}", "pairwise=true", sources=("pieces",))
    summary = json.loads((out / "summary.json").read_text())
    assert [one["unread"] for one in summary["models"]] == [{}, {}, {"no number": 1}]
    one, other = (Distributions(out / "fused" / name) for name in ("broken", "pieces"))
    same = [np.array_equal(one[key].ids, other[key].ids) for key in one]
    assert same.count(False) <= 1


def test_a_target_of_nan_gives_empty_rows(go, models, tmp_path):  # noqa: F811
    broken = like_target(models, tmp_path / "broken", weights=float("nan"))
    out = go("out", f"target.path={broken}", "collector.packing=padded", sources=("pieces",))
    store = Distributions(out / "fused" / "all")
    assert (store.rows["ids"] == 2**16 - 1).all()
    assert (store.rows["tail"] == 0).all()
    assert len(store.rows) > 0
    assert json.loads((out / "summary.json").read_text())["fused"][0]["empty"] == len(store) == 11


def test_texts_longer_than_a_model_are_not_read_by_it(go, models, tmp_path):  # noqa: F811
    """Positions beyond `max_position_embeddings` would be garbage, or out of a table's range."""
    groups = {**GROUPS, "Long": ["It is seven. " * 56, "It is 7."], "Longer": ["It is seven. " * 90]}
    out = go("out", groups=groups)
    stores = [TokenStore.open(folder) for folder in (tmp_path / "cache/tokens").iterdir()]
    wanted = sorted(int(((s.prompt_tokens[:, None] + s.branch_tokens > 256) & s.valid).sum()) for s in stores if s)
    summary = json.loads((out / "summary.json").read_text())
    assert sorted(one["unread"].get("longer than the model", 0) for one in summary["models"]) == wanted
    assert wanted[0] < wanted[-1] == 2, "one model reads what another does not"
    store, tokens = Distributions(out / "fused" / "all"), target_tokens(models, tmp_path)
    require_contract(store, tokens)
    target_lengths = tokens.prompt_tokens[:, None] + tokens.branch_tokens
    for key, place in places(tokens).items():
        assert bool(store[key].notes["weights"]) == (target_lengths[place] <= 256)


def test_control_strings_of_every_model_are_text(go, models, tmp_path):  # noqa: F811
    """One that came through would be one token, which the others spell in many."""
    go("out", groups={"Say </s>": ["</s> <s> <|endoftext|> <|im_end|> <unk> <0xE4>"]})
    for store in map(TokenStore.open, (tmp_path / "cache/tokens").iterdir()):
        assert store is not None
        inner = store.branch(0, 0)[:-1].tolist()
        assert store.branch(0, 0)[-1] not in inner
        assert not {0, 1, 2} & set(inner), "no special token of any of these tokenizers is above 2"


def test_texts_of_lossy_tokenizers_are_read_once(go):
    """Two responses that the target cannot tell apart are one text; both find its rows."""
    out = go("out", groups={"x": ["It is 7.", "It is 7.", "It is 8."], "y": ["It is 7."]}, sources=("pieces",))
    assert len(Distributions(out / "fused" / "all")) == 3
