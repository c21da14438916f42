"""The curves of study 0002: `python experiments/0002_overfitting/curves.py RUNS`; writes figure.png and numbers.json beside this file."""

from __future__ import annotations

import csv
import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[1]))
from picture import picture

from fuserl.evaluation.curves import rise, stopping_point
from fuserl.reporting.figures import PALETTE

HERE = Path(__file__).parent
NAMES = {"sft_best": "SFT on the best", "fusesft": "FuseSFT"}
SINGLE = ("sort", "reverse", "largest", "roman")  # domains with one right answer
MANY = ("between", "pair", "evens", "letters")
EPOCH = 7  # optimiser steps
Curve = list[tuple[float, float]]


def read(folder: Path) -> dict[str, list[dict]]:
    """objective -> runs, in the order of seeds."""
    found = defaultdict(list)
    for path in sorted(folder.glob("train-*/summary.json")):
        summary = json.loads(path.read_text())
        with (path.parent / "metrics.csv").open(newline="") as file:
            summary["rows"] = list(csv.DictReader(file))
        found[summary["objective"]].append(summary)
    return {name: sorted(runs, key=lambda run: run["seed"]) for name, runs in found.items()}


def curve(run: dict, column: str) -> Curve:
    """(epoch, value)."""
    return [(float(row["step"]) / EPOCH, float(row[column])) for row in run["rows"] if row.get(column)]


def of_domains(run: dict, domains: tuple[str, ...]) -> Curve:
    """Mean validation NLL over domains."""
    curves = [curve(run, f"val/nll/domain/{name}") for name in domains]
    return [(points[0][0], float(np.mean([value for _, value in points]))) for points in zip(*curves, strict=True)]


def band(
    figure: go.Figure, runs: list[Curve], name: str, colour: str, place: dict, dash: str = "solid", legend: bool = True
) -> None:
    """Mean line over the seeds between their least and largest."""
    x = [point[0] for point in runs[0]]
    y = np.array([[value for _, value in points] for points in runs])
    figure.add_scatter(
        x=x + x[::-1],
        y=[*y.max(0), *y.min(0)[::-1]],
        fill="toself",
        fillcolor=colour,
        opacity=0.15,
        line={"width": 0},
        showlegend=False,
        hoverinfo="skip",
        **place,
    )
    figure.add_scatter(x=x, y=y.mean(0), name=name, line={"color": colour, "dash": dash}, showlegend=legend, **place)  # fmt: skip


def difference(runs: dict[str, list[dict]], number) -> dict[str, float]:
    """FuseSFT less SFT, paired by seed: mean, 95 % interval and p of the t-test."""
    each = np.array([number(a) - number(b) for a, b in zip(runs["fusesft"], runs["sft_best"], strict=True)])
    half = stats.t.ppf(0.975, len(each) - 1) * each.std(ddof=1) / np.sqrt(len(each))
    return {
        "difference": float(each.mean()), "low": float(each.mean() - half), "high": float(each.mean() + half),
        "p": float(stats.ttest_1samp(each, 0).pvalue), "fusesft": float(np.mean([number(r) for r in runs["fusesft"]])),
        "sft_best": float(np.mean([number(r) for r in runs["sft_best"]])),
    }  # fmt: skip


def at_equal_tokens(run: dict, tokens: float) -> float:
    """Validation NLL where the run had computed so many tokens, between its measurements."""
    points = curve(run, "val/nll")
    per_epoch = run["tokens_computed"] / points[-1][0]
    return float(np.interp(tokens / per_epoch, [x for x, _ in points], [y for _, y in points]))


def main(folder: Path) -> None:
    """Numbers and figure."""
    runs = read(folder)
    nll = {name: [curve(run, "val/nll") for run in found] for name, found in runs.items()}
    budget = min(run["tokens_computed"] for found in runs.values() for run in found)
    numbers = {
        "lowest validation NLL": difference(runs, lambda run: min(value for _, value in curve(run, "val/nll"))),
        "epoch of the lowest": difference(runs, lambda run: stopping_point(curve(run, "val/nll"), patience=4)[0]),
        "rise from the lowest to the end": difference(runs, lambda run: rise(curve(run, "val/nll"))),
        "rise, domains with one right answer": difference(runs, lambda run: rise(of_domains(run, SINGLE))),
        "rise, domains with many": difference(runs, lambda run: rise(of_domains(run, MANY))),
        "last validation NLL at equal tokens": difference(runs, lambda run: at_equal_tokens(run, budget)),
        "test score at the end": difference(runs, lambda run: run["test"]["score"]),
        "best probe score": difference(runs, lambda run: max(value for _, value in curve(run, "probe/score"))),
    }
    (HERE / "numbers.json").write_text(json.dumps(numbers, indent=1) + "\n")
    for name, row in numbers.items():
        print(f"{name:40} FuseSFT {row['fusesft']:7.3f}  SFT {row['sft_best']:7.3f}  difference {row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]  p {row['p']:.1g}")  # fmt: skip
    figure = make_subplots(1, 3, subplot_titles=("NLL of the best response", "validation by kind of domain", "sampled score of the probe"), horizontal_spacing=0.07)  # fmt: skip
    for colour, (name, found) in zip(PALETTE, runs.items(), strict=False):
        band(figure, nll[name], NAMES[name], colour, {"row": 1, "col": 1})
        band(figure, [curve(run, "train/nll") for run in found], "training", colour, {"row": 1, "col": 1}, "dot", False)
        band(
            figure,
            [of_domains(run, SINGLE) for run in found],
            "one right answer",
            colour,
            {"row": 1, "col": 2},
            "solid",
            False,
        )
        band(figure, [of_domains(run, MANY) for run in found], "many", colour, {"row": 1, "col": 2}, "dash", False)
        band(
            figure,
            [curve(run, "probe/score") for run in found],
            NAMES[name],
            colour,
            {"row": 1, "col": 3},
            "solid",
            False,
        )
    figure.update_layout(template="plotly_white", legend={"orientation": "h", "y": -0.2}, margin={"l": 45, "r": 10, "t": 40, "b": 40}, font={"family": "system-ui, sans-serif", "size": 12})  # fmt: skip
    figure.update_xaxes(title="epoch")
    figure.update_yaxes(title="nats a token", row=1, col=1)
    picture(figure, HERE / "figure.png", width=1150, height=380)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
