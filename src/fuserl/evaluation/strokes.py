"""How a method is drawn: one colour and one dash everywhere, lines with bands, bars and dots with whiskers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from fuserl.evaluation.comparing import Comparison
from fuserl.evaluation.methods import Method
from fuserl.evaluation.runs import Run, Series
from fuserl.reporting.figures import PALETTE, styled

DASHES = ("solid", "dash", "dot", "dashdot")
POINTS = 400  # of a line; more are thinned
CUT = 44  # signs of a method's name on an axis


class Style(NamedTuple):
    """How a method looks."""

    colour: str
    dash: str
    faint: str  # its colour for bands


def styles(comparison: Comparison) -> list[Style]:
    """One a method, in the order of the comparison; the baseline is grey."""
    found, number = [], 0
    for method in comparison.methods:
        if method is comparison.baseline:
            found.append(_style(PALETTE[-1], "solid"))
            continue
        found.append(_style(PALETTE[number % (len(PALETTE) - 1)], DASHES[number // (len(PALETTE) - 1) % len(DASHES)]))
        number += 1
    return found


def _style(colour: str, dash: str) -> Style:
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return Style(colour, dash, f"rgba({red},{green},{blue},0.15)")


def lines(
    comparison: Comparison, sides: Sequence[tuple[str, str, Callable[[Run], Series]]], title: str, unit: str
) -> go.Figure:
    """One line a method and side, (dash, what it is, its points), with the band of its seeds."""
    figure = go.Figure()
    for index, (method, style) in enumerate(zip(comparison.methods, styles(comparison), strict=True)):
        for dash, what, points in sides:
            steps, low, mean, high = _band([points(run) for run in method.runs])
            if not len(steps):
                continue
            group = {"meta": {"method": index}}
            if (high > low).any():
                figure.add_scatter(
                    x=np.concatenate([steps, steps[::-1]]),
                    y=np.concatenate([high, low[::-1]]),
                    fill="toself",
                    fillcolor=style.faint,
                    line={"width": 0},
                    mode="lines",
                    hoverinfo="skip",
                    **group,
                )
            figure.add_scatter(
                x=steps,
                y=mean,
                name=f"{method.label}, {what}" if what else method.label,
                mode="lines+markers" if len(steps) < 30 else "lines",
                marker={"size": 4},
                line={"color": style.colour, "dash": dash or style.dash, "width": 2},
                **group,
            )
    return finished(figure, title, "optimiser step", unit)


def _band(series: Sequence[Series]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(steps, lowest, mean, highest) over runs, at the steps that all of those that have any share."""
    maps = [dict(points) for points in series if points]
    shared = sorted(set.intersection(*(set(one) for one in maps))) if maps else []
    steps = np.array(shared[:: max(1, -(-len(shared) // POINTS))])
    values = np.array([[one[step] for step in steps] for one in maps]).reshape(len(maps), len(steps))
    if not len(steps):
        return steps, steps, steps, steps
    return steps, values.min(0), values.mean(0), values.max(0)


def bars(comparison: Comparison, values: Callable[[Run], Mapping[str, float]], title: str, unit: str) -> go.Figure:
    """One colour a method over categories; the whiskers reach from the lowest to the highest seed."""
    figure = go.Figure()
    for index, (method, style) in enumerate(zip(comparison.methods, styles(comparison), strict=True)):
        found = [values(run) for run in method.runs]
        names = [
            name for name in dict.fromkeys(name for one in found for name in one) if all(name in one for one in found)
        ]
        of = {name: [one[name] for one in found] for name in names}
        if of:
            ends = [(float(np.mean(all_)), min(all_), max(all_)) for all_ in of.values()]
            figure.add_bar(x=list(of), y=[end[0] for end in ends], error_y=reach(ends), **bar(method, index, style))
    figure.update_xaxes(type="category")
    return finished(figure, title, "", unit)


def bar(method: Method, index: int, style: Style) -> dict:
    """How a method's bars look: its colour, and a pattern for the dash that its lines have."""
    pattern = {"shape": ("", "/", ".", "x")[DASHES.index(style.dash)], "fillmode": "overlay"}
    return {
        "name": method.label,
        "marker": {"color": style.colour, "pattern": pattern},
        "meta": {"method": index},
    }


def dots(comparison: Comparison, ends: Sequence[tuple | None], title: str, x: str) -> go.Figure:
    """A dot a method with its interval, the first on top."""
    figure = go.Figure()
    places = range(len(ends), 0, -1)
    for index, (method, style, place) in enumerate(zip(comparison.methods, styles(comparison), places, strict=True)):
        end = ends[index]
        if end is not None:
            figure.add_scatter(
                x=[end[0]],
                y=[place],
                name=method.label,
                mode="markers",
                marker={"size": 9, "color": style.colour},
                error_x=reach([end]) | {"thickness": 2, "color": style.colour},
                hovertemplate="%{x:.4f}",
                meta={"method": index},
                showlegend=False,
            )
    figure.update_yaxes(tickvals=list(places), ticktext=[cut(m.label) for m in comparison.methods], automargin=True)
    styled(figure, title, x, "")
    return figure.update_layout(height=150 + 30 * len(ends), hoverlabel={"namelength": -1})


def reach(ends: Sequence[tuple[float, float | None, float | None]]) -> dict:
    """Plotly's error bars of (mean, low, high)."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [0.0 if high is None else high - mean for mean, _, high in ends],
        "arrayminus": [0.0 if low is None else mean - low for mean, low, _ in ends],
        "thickness": 1,
        "width": 3,
        "color": "#44403c",
    }


def finished(figure: go.Figure, title: str, x: str, y: str) -> go.Figure:
    """The look of a comparison's figures; the page's own legend stays in sight."""
    styled(figure, title, x, y)
    return figure.update_layout(showlegend=False, hoverlabel={"namelength": -1}, height=330)


def kept(figures: Iterable[go.Figure]) -> list[go.Figure]:
    """Those that show something."""
    return [figure for figure in figures if figure.data]


def cut(label: str) -> str:
    """A name that leaves room for the figure."""
    return label if len(label) <= CUT else f"{label[: CUT - 1]}\N{HORIZONTAL ELLIPSIS}"
