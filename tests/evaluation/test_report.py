"""Intervals mean what they say; hostile text stays text."""

from __future__ import annotations

import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from fuserl.evaluation import figures
from fuserl.evaluation.report import Section, Table, Text, write_report
from fuserl.evaluation.statistics import bootstrap, paired_difference

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


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
def test_it_opens_in_a_browser_without_running_hostile_text(tmp_path):
    command = [
        "chromium",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
    ]
    command += [
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--virtual-time-budget=5000",
    ]
    done = subprocess.run(
        [*command, "--dump-dom", f"file://{page(tmp_path)}"], capture_output=True, text=True, timeout=90
    )
    assert "<title>broken" not in done.stdout
    assert "js-plotly-plot" in done.stdout, "the figure was not drawn"
