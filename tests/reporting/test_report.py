"""Intervals mean what they say; hostile text stays text."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import numpy as np
import pytest
from hostile import CORPUS

from fuserl.reporting import figures, report
from fuserl.reporting.report import (
    Filter,
    Grid,
    Section,
    Table,
    Text,
    escaped,
    policy,
    scripts_of_pages,
    write_report,
)
from fuserl.reporting.statistics import bootstrap, paired_difference

HOSTILE = "</script><img src=x onerror=\"document.title='broken'\"><b>"


def test_the_interval_holds_the_mean_in_95_of_100():
    rng = np.random.default_rng(0)
    hits = sum((i := bootstrap(rng.normal(0.5, 1, 80), seed=n)).low <= 0.5 <= i.high for n in range(200))
    assert 178 <= hits <= 200


def test_paired_is_narrower_than_unpaired():
    rng = np.random.default_rng(0)
    base = rng.normal(size=200)
    ours = base + 0.1 + 0.05 * rng.normal(size=200)
    gap = paired_difference(ours, base)
    assert gap.low > 0
    assert gap.high - gap.low < 0.05 < bootstrap(ours).high - bootstrap(ours).low


def page(tmp_path):
    drawn = figures.bars({HOSTILE: {HOSTILE: 1.0, "b": 2.0}}, title="t", y="y")
    path = tmp_path / "report.html"
    parts = [Text(HOSTILE), Table(["a", HOSTILE], [[HOSTILE, "1"]], frozenset({(0, 1)})), drawn]
    write_report(path, title=HOSTILE, lead=HOSTILE, sections=[Section(HOSTILE, parts)])
    return path


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.seen, self.scripts = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.scripts += [
            value for name, value in attrs if name in ("src", "href") and value and not value.startswith("data:")
        ]


def test_hostile_text_makes_no_element_and_nothing_is_loaded(tmp_path):
    tags = Tags()
    tags.feed(page(tmp_path).read_text())
    assert "img" not in tags.seen
    assert "b" not in tags.seen
    assert tags.scripts == []
    assert tags.seen.count("table") == 1


@pytest.mark.parametrize("text", CORPUS, ids=range(len(CORPUS)))
def test_no_text_of_the_corpus_becomes_part_of_the_page(tmp_path, monkeypatch, text):
    """The page has the same elements and attributes with any text as with a plain one, and the same two scripts run."""
    monkeypatch.setattr(report, "scripts_of_pages", lambda: ("plotly()", "ours()"))
    found, plain = written(tmp_path / "a.html", text), written(tmp_path / "b.html", "plain")
    assert found.seen == plain.seen
    assert found.scripts == plain.scripts
    assert found.scripts == ["plotly()", "ours()"]


def written(path, text):
    drawn = figures.bars({text: {text: 1.0, "b": 2.0}}, title=text, y=text)
    drawn.add_annotation(text=text, hovertext=text)
    table = Table([text, text], [[text, text]], texts=frozenset({1}), methods=[0], colours=["#fff"], sortable=True)
    parts = [Filter([text], ["#fff"]), Text(text), Text(text, note=True), table, drawn, Grid([drawn])]
    write_report(path, title=text, lead=text, sections=[Section(text, parts)])
    elements = Elements()
    elements.feed(path.read_bytes().decode())
    for data in elements.data:
        assert not set("<>&'\u2028\u2029") & set(data), "nothing in it can end the script element"
        json.loads(data)
    return elements


class Elements(HTMLParser):
    """Elements with their attributes, what their scripts run, and the JSON beside."""

    def __init__(self):
        super().__init__()
        self.seen, self.scripts, self.data, self._in = [], [], [], None

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, tuple(attrs)))
        self._in = dict(attrs).get("type", "") if tag == "script" else None

    def handle_endtag(self, tag):
        self._in = None

    def handle_data(self, data):
        if self._in is not None:
            (self.data if self._in == "application/json" else self.scripts).append(data)


def test_every_text_of_a_figure_is_escaped_for_plotly():
    drawn = figures.bars({"<a href='javascript:1'>x</a>": {"<b>": 1.0}}, title="<i>", y="&lt;")
    text = json.dumps(escaped(json.loads(drawn.to_json())))
    assert "<" not in text
    assert "&lt;a href" in text
    assert "&amp;lt;" in text


def test_the_policy_runs_our_scripts_by_their_hashes_alone():
    said = policy(scripts_of_pages())
    assert "script-src 'sha256-" in said
    assert "unsafe-eval" not in said
    assert "'unsafe-inline'" not in said.split("style-src")[0]
