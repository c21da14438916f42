"""Figures as plotly objects, from plain numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from fuserl.reporting.statistics import Interval

# Apart for eyes that see no red or no green, after Okabe and Ito; the last is a neutral grey.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#6a4c93", "#57534e")


def curves(runs: Mapping[str, Sequence[tuple[float, float]]], *, title: str, x: str, y: str) -> go.Figure:
    """One line a run: (step, value) points."""
    figure = go.Figure()
    for index, (name, points) in enumerate(runs.items()):
        if points:
            steps, values = zip(*points, strict=True)
            style = {"color": PALETTE[index % len(PALETTE)]}
            figure.add_scatter(x=steps, y=values, name=name, mode="lines+markers", line=style, marker={"size": 5})
    return styled(figure, title, x, y)


def bars(groups: Mapping[str, Mapping[str, float]], *, title: str, y: str) -> go.Figure:
    """One colour a series: series -> category -> value."""
    figure = go.Figure()
    for index, (name, values) in enumerate(groups.items()):
        colour = PALETTE[index % len(PALETTE)]
        figure.add_bar(x=list(values), y=list(values.values()), name=name, marker={"color": colour})
    return styled(figure, title, "", y)


def histogram(
    edges: Sequence[float],
    counts: Mapping[str, Sequence[int]],
    *,
    title: str,
    x: str,
    window: Sequence[float | None] = (),
) -> go.Figure:
    """One stepped line a series over bins that all share.

    Args:
        edges: of the bins, one more than there are counts.
        window: places to mark on the scale; None marks nothing.
    """
    figure = go.Figure()
    for index, (name, values) in enumerate(counts.items()):
        style = {"color": PALETTE[index % len(PALETTE)], "shape": "hv"}
        figure.add_scatter(
            x=list(edges), y=[*values, 0], name=name, mode="lines", line=style, fill="tozeroy", opacity=0.6
        )
    for place in window:
        if place is not None:
            figure.add_vline(x=place, line={"color": PALETTE[-1], "dash": "dash"})
    return styled(figure, title, x, "number")


def intervals(rows: Mapping[str, Interval], *, title: str, x: str) -> go.Figure:
    """One dot a row with its interval, best at the top."""
    ordered = sorted(rows.items(), key=lambda item: item[1].mean)
    means = [interval.mean for _, interval in ordered]
    figure = go.Figure(
        go.Scatter(
            x=means,
            y=[name for name, _ in ordered],
            mode="markers",
            marker={"size": 9, "color": PALETTE[0]},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [interval.high - interval.mean for _, interval in ordered],
                "arrayminus": [interval.mean - interval.low for _, interval in ordered],
            },
        )
    )
    return styled(figure, title, x, "")


def styled(figure: go.Figure, title: str, x: str, y: str) -> go.Figure:
    """The look that all figures share."""
    axis = {"gridcolor": "#e7e5e4", "zeroline": False, "linecolor": "#a8a29e", "automargin": True}
    figure.update_layout(
        title={"text": title, "x": 0, "font": {"size": 16}},
        xaxis={"title": {"text": x}, **axis},
        yaxis={"title": {"text": y}, **axis},
        template="none",  # plotly's own is 6 kB a figure
        height=400,
        margin={"l": 60, "r": 20, "t": 50, "b": 50},
        legend={"orientation": "h", "y": -0.2},
        font={"family": "system-ui, sans-serif", "size": 13, "color": "#44403c"},
        bargap=0.25,
    )
    return figure
