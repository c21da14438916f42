"""Study 0004 by the number of sources: `python experiments/0004_number_of_sources/by_number.py RUNS`; writes figure.png and numbers.json here."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from omegaconf import OmegaConf
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[1]))
from picture import picture

from fuserl.reporting.figures import PALETTE, styled

HERE = Path(__file__).parent
OBJECTIVES = {"fusesft": "after FuseSFT", "fusepo_dpo": "after FusePO-DPO"}


def read(folder: Path, objective: str) -> dict[int, dict[tuple[str, ...], dict[int, float]]]:
    """number of sources -> subset -> seed -> test score."""
    found: dict = defaultdict(lambda: defaultdict(dict))
    for path in folder.glob("train-*/summary.json"):
        summary, config = json.loads(path.read_text()), OmegaConf.load(path.parent / "config.yaml")
        if summary["objective"] == objective:
            subset = tuple(config.data.sources)
            found[len(subset)][subset][summary["seed"]] = summary["test"]["score"]
    return {number: dict(subsets) for number, subsets in sorted(found.items())}


def by_seed(subsets: dict[tuple[str, ...], dict[int, float]]) -> np.ndarray:
    """[S] mean over the subsets of one size, for each seed."""
    return np.mean([[scores[seed] for seed in sorted(scores)] for scores in subsets.values()], axis=0)


def main(folder: Path) -> None:
    """Numbers and figure."""
    figure, numbers = go.Figure(), {}
    for colour, (objective, name) in zip(PALETTE, OBJECTIVES.items(), strict=False):
        found = read(folder, objective)
        means = {number: by_seed(subsets) for number, subsets in found.items()}
        steps = {}
        for number in (2, 3, 4):
            gain = means[number] - means[number - 1]
            half = stats.t.ppf(0.975, len(gain) - 1) * gain.std(ddof=1) / np.sqrt(len(gain))
            steps[f"{number - 1} to {number}"] = {"gain": gain.mean(), "low": gain.mean() - half, "high": gain.mean() + half, "p": stats.ttest_1samp(gain, 0).pvalue}  # fmt: skip
            print(f"{name:18} {number - 1} -> {number}: {gain.mean():+.4f} [{gain.mean() - half:+.4f}, {gain.mean() + half:+.4f}] p {steps[f'{number - 1} to {number}']['p']:.2g}")  # fmt: skip
        numbers[objective] = {"means": {number: float(value.mean()) for number, value in means.items()}, "steps": {key: {k: float(v) for k, v in row.items()} for key, row in steps.items()}}  # fmt: skip
        figure.add_scatter(x=list(means), y=[value.mean() for value in means.values()], name=name, line={"color": colour}, mode="lines")  # fmt: skip
        points = [(number, np.mean(list(scores.values())), "+".join(s[0] for s in subset)) for number, subsets in found.items() for subset, scores in subsets.items()]  # fmt: skip
        x, y, text = zip(*points, strict=True)
        figure.add_scatter(x=x, y=y, text=text, mode="markers+text", textposition="middle right", marker={"color": colour, "size": 8}, textfont={"size": 10, "color": colour}, showlegend=False)  # fmt: skip
    (HERE / "numbers.json").write_text(json.dumps(numbers, indent=1) + "\n")
    styled(figure, "Sampled test score by number of sources (points: subsets, by initials)", "sources", "score")
    figure.update_xaxes(tickvals=[1, 2, 3, 4], range=[0.8, 4.4])
    picture(figure, HERE / "figure.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
