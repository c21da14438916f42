"""The figures of a comparison. A method has one colour and one dash everywhere; nothing to draw is no figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from fuserl.evaluation.comparing import Comparison, Row
from fuserl.evaluation.runs import Run, Series
from fuserl.evaluation.strokes import bar, bars, cut, dots, finished, kept, lines, reach, styles
from fuserl.reporting.figures import styled

CURVES = (  # metric, title, unit
    ("val/nll", "Validation NLL of the best response", "nats a token"),
    ("val/loss", "Validation loss", "the objective's own units"),
    ("val/accuracy", "Preference accuracy on held-out pairs", "share"),
    ("val/margin", "Reward margin on held-out pairs", "nats"),
    ("probe/score", "Score of the probe", "score"),
    ("probe/tokens", "Length of the probe's answers", "tokens"),
)


def curves(comparison: Comparison) -> list[go.Figure]:
    """The mean over seeds of each validation curve, with a band from the lowest to the highest seed."""
    return kept(
        lines(comparison, [("", "", lambda run, name=name: run.series.get(name, []))], title, unit)
        for name, title, unit in CURVES
    )


def gaps(comparison: Comparison) -> list[go.Figure]:
    """The same quantity on training and on validation prompts, and how far they are apart."""
    quantity = next(
        (q for q in ("nll", "loss") if any(_both(run, q)[0] for m in comparison.methods for run in m.runs)), None
    )
    if quantity is None:
        return []
    sides = [
        ("", "validation", lambda run: _both(run, quantity)[1]),
        ("dot", "training", lambda run: _both(run, quantity)[0]),
    ]
    unit = "nats a token" if quantity == "nll" else "the objective's own units"
    both = lines(comparison, sides, f"Training (dotted) and validation {quantity.upper()}", unit)
    gap = lines(
        comparison, [("", "", lambda run: _gap(run, quantity))], f"Validation less training {quantity.upper()}", unit
    )
    return kept([both, gap])


def _both(run: Run, quantity: str) -> tuple[Series, Series]:
    """(training, validation) at the steps of the validations; training is the mean of what was logged since the last."""
    train, validation = run.series.get(f"train/{quantity}", []), run.series.get(f"val/{quantity}", [])
    means: Series = []
    before = float("-inf")
    for step, _ in validation:
        since = [value for at, value in train if before < at <= step]
        if since:
            means.append((step, float(np.mean(since))))
        before = step if since else before
    return means, validation


def _gap(run: Run, quantity: str) -> Series:
    train, validation = _both(run, quantity)
    held = dict(validation)
    return [(step, held[step] - value) for step, value in train]


def logps(comparison: Comparison) -> list[go.Figure]:
    """Chosen and rejected logps: a falling chosen one is a warning that margins do not show."""
    sides = [
        ("", "chosen", lambda run: run.series.get("val/chosen_logps", [])),
        ("dash", "rejected", lambda run: run.series.get("val/rejected_logps", [])),
    ]
    return kept([lines(comparison, sides, "Logps, chosen (solid) and rejected (dashed)", "nats a response")])


def by_source(comparison: Comparison) -> list[go.Figure]:
    """Margin and accuracy at the end, by the source that wrote the pair."""
    return kept(
        bars(comparison, lambda run, name=name: _slices(run, f"{name}/source/"), title, unit)
        for name, title, unit in (
            ("val/accuracy", "Preference accuracy by source, at the end", "share"),
            ("val/margin", "Reward margin by source, at the end", "nats"),
        )
    )


def weights(comparison: Comparison) -> list[go.Figure]:
    """Who teaches, and how evenly."""
    return kept(
        [
            bars(comparison, lambda run: _floats(run.summary.get("weight_by_source")), "Weight by source", "share"),
            bars(
                comparison,
                lambda run: _floats({"": run.summary.get("weight_entropy")}),
                "Entropy of a prompt's weights",
                "nats",
            ),
        ]
    )


def domains(comparison: Comparison, rows: Mapping[str, Sequence[Row | None]], name: str) -> list[go.Figure]:
    """A metric by domain, with each method's interval."""
    figure = go.Figure()
    for index, (method, style) in enumerate(zip(comparison.methods, styles(comparison), strict=True)):
        found = [(domain, row) for domain, of in rows.items() if (row := of[index]) is not None]
        if found:
            figure.add_bar(
                x=[domain for domain, _ in found],
                y=[row.mean for _, row in found],
                error_y=reach([(row.mean, row.low, row.high) for _, row in found]),
                **bar(method, index, style),
            )
    figure.update_xaxes(type="category")
    return kept([finished(figure, f"{name} by domain", "", name)])


def intervals(comparison: Comparison) -> list[go.Figure]:
    """Means with their intervals, and differences to the baseline with theirs."""
    rows = comparison.rows
    means = dots(
        comparison, [(row.mean, row.low, row.high) for row in rows], comparison.metric.name, comparison.metric.told
    )
    if comparison.baseline is None:
        return [means]
    tested = [
        None if row.difference is None else (row.difference, row.difference_low, row.difference_high) for row in rows
    ]
    gaps = dots(comparison, tested, f"Difference to {cut(comparison.baseline.label)}", comparison.metric.told)
    gaps.add_vline(x=0, line={"color": "#a8a29e", "width": 1})
    return [means, gaps]


def heat(comparison: Comparison, keys: Sequence[str]) -> list[go.Figure]:
    """The metric over two settings; methods that differ in others are averaged."""
    cells: dict[tuple[str, str], list[float]] = {}
    for row in comparison.rows:
        settings = row.method.settings
        cells.setdefault((settings[keys[0]], settings[keys[1]]), []).append(row.mean)
    ups, rights = (sorted({cell[at] for cell in cells}, key=_order) for at in (0, 1))
    z = [[float(np.mean(cells[up, right])) if (up, right) in cells else None for right in rights] for up in ups]
    figure = go.Figure(
        go.Heatmap(
            z=z,
            x=rights,
            y=ups,
            colorscale="Cividis",
            reversescale=comparison.metric.direction < 0,
            texttemplate="%{z:.3f}",
            hovertemplate="%{y}, %{x}: %{z:.4f}<extra></extra>",
            xgap=2,
            ygap=2,
        )
    )
    figure.update_xaxes(type="category", showgrid=False)
    figure.update_yaxes(type="category", showgrid=False)
    averaged = max(len(values) for values in cells.values()) > 1
    title = f"{comparison.metric.name}{', mean over the other settings' if averaged else ''}"
    return [styled(figure, title, keys[1], keys[0])]


def _order(text: str) -> tuple:
    try:
        return (0, float(text), text)
    except ValueError:
        return (1, 0.0, text)


def _slices(run: Run, prefix: str) -> dict[str, float]:
    return {name.removeprefix(prefix): points[-1][1] for name, points in run.series.items() if name.startswith(prefix)}


def _floats(values: object) -> dict[str, float]:
    """Those that are numbers, of a mapping that a file holds."""
    pairs = values.items() if isinstance(values, Mapping) else []
    return {str(name): float(value) for name, value in pairs if isinstance(value, int | float)}
