"""`align` by a real vLLM: what it keeps is what transformers' forwards say."""

from __future__ import annotations

import json
from pathlib import Path

import kit
import numpy as np

from fuserl.distributions.align import align
from fuserl.distributions.store import Distributions
from fuserl.settings import compose


def aligned(models: dict[str, Path], folder: Path, collector: str, *more: str) -> Path:
    settings = [
        f"data.path={kit.ROOT / 'src/fuserl/miniature/data'}", "data.limit=12", f"target.path={models['llama']}",
        f"+sources.qwen3.path={models['qwen3']}", "+sources.qwen3.dtype=float32", f"collector={collector}", "size=2", "k=6",
        f"cache={folder / collector}", f"output={folder / f'out_{collector}'}", "progress_bar=false", "blend=avg_ce", *more,
    ]  # fmt: skip
    return align(compose("align", settings))


def test_both_collectors_say_the_same(models, tmp_path):
    ours = aligned(models, tmp_path, "transformers", "collector.device=cpu")
    theirs = aligned(models, tmp_path, "vllm", "collector.enforce_eager=true", "+collector.options.max_model_len=128")
    one, other = (Distributions(folder / "fused" / "all") for folder in (ours, theirs))
    assert list(one) == list(other)
    assert len(one) > 12
    np.testing.assert_allclose(one.rows["ce"], other.rows["ce"], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(
        np.exp(one.rows["tail"].astype(float)), np.exp(other.rows["tail"].astype(float)), atol=2e-3
    )
    for key in one:
        for ids, logps, ids2, logps2 in zip(
            one[key].ids, one[key].logps, other[key].ids, other[key].logps, strict=True
        ):
            likely = dict(zip(ids.tolist(), np.exp(logps.astype(float)), strict=True))
            again = dict(zip(ids2.tolist(), np.exp(logps2.astype(float)), strict=True))
            both = likely.keys() | again.keys()
            assert max(abs(likely.get(token, 0.0) - again.get(token, 0.0)) for token in both) < 5e-3
    summaries = [json.loads((folder / "summary.json").read_text())["models"] for folder in (ours, theirs)]
    assert [m["unread"] for m in summaries[0]] == [m["unread"] for m in summaries[1]] == [{}, {}]
    for a, b in zip(*summaries, strict=True):
        assert abs(a["nats_per_token"] - b["nats_per_token"]) < 1e-3
