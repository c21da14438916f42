"""The page in a real browser: it opens in silence, filters, sorts, and texts stay texts."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, chromium
from fake_runs import study, write_run
from hostile import CORPUS

from fuserl.cli import run_verb

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: `make browser` (needs root)")
ROWS = "[...document.querySelectorAll('table')[{}].tBodies[0].rows]"
SHOWN = f"{ROWS.format(0)}.filter(row => row.offsetParent).map(row => row.cells[{{}}].innerText.trim())"
TRACES = "[...document.querySelectorAll('.figure')].map(f => f.data.filter(t => t.meta && t.visible !== false).length)"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """One browser for all tests of this module."""
    with chromium(tmp_path_factory.mktemp("profile")) as page:
        yield page


def compared(folder: Path, *overrides: str) -> Path:
    run_verb("compare", [f"output={folder}", *overrides])
    return folder / "index.html"


def type_into_the_filter(page, text: str) -> None:
    page.run(
        "(() => { const field = document.querySelector('.filter input'); field.value = " + repr(text) + ";"
        "field.dispatchEvent(new Event('input')) })()"
    )


def press(page, column: int) -> None:
    page.run(f"document.querySelectorAll('table')[0].tHead.rows[0].cells[{column}].querySelector('button').click()")


def test_it_opens_filters_sorts_and_has_its_picture_taken(page, tmp_path):
    page.open(compared(tmp_path / "out", f"runs=[{study(tmp_path / 'runs')}]", "baseline=sft_best"))
    all_traces = page.run(TRACES)
    assert len(all_traces) > 10
    assert page.run("[...document.querySelectorAll('.figure svg.main-svg')].length") >= len(all_traces)

    names = page.run(SHOWN.format(0))
    assert len(names) == 5
    means = [float(text.split()[0]) for text in page.run(SHOWN.format(2))]
    assert means == sorted(means, reverse=True), "the best first"
    press(page, 2)
    assert [float(text.split()[0]) for text in page.run(SHOWN.format(2))] == sorted(means)
    press(page, 2)
    assert [float(text.split()[0]) for text in page.run(SHOWN.format(2))] == sorted(means, reverse=True)
    press(page, 3)
    assert page.run(SHOWN.format(3))[-1] == "", "the baseline, which has no difference, stays at the end"

    type_into_the_filter(page, "FUSESFT tau=1")
    page.until("document.querySelector('.filter output').innerText === '1 of 5 methods'")
    assert page.run(SHOWN.format(0)) == ["objective=fusesft, tau=1.0"]
    page.until(f"{TRACES}.every((number, i) => number < {all_traces}[i] || {all_traces}[i] === 0)")
    rest = page.run("[...document.querySelectorAll('tr[data-method]')].filter(row => row.offsetParent).length")
    assert rest == 1 + 6 + 3, "its row, its answers to six prompts, its three runs"
    type_into_the_filter(page, "")
    page.until(f"JSON.stringify({TRACES}) === JSON.stringify({all_traces})")
    assert len(page.run(SHOWN.format(0))) == 5

    picture = Path(os.environ.get("FUSERL_PICTURE", tmp_path / "page.png"))
    page.picture(picture)
    assert picture.stat().st_size > 100_000
    assert page.said == []


def hostile_runs(folder: Path) -> Path:
    """Every text of the corpus as a setting, a domain, a source, a prompt and an answer."""
    for number, text in enumerate(CORPUS):
        given = {"objective.name": text, "target.path": text}
        scores = np.random.default_rng(number).random(len(CORPUS))
        others = [CORPUS[number - 1], CORPUS[number - 2]]
        write_run(folder / str(number), 0, given, scores=scores, domains=CORPUS, sources=others, texts=CORPUS)
    left = write_run(folder / "left", 1)
    (left / "summary.json").unlink()
    (left / "failure.json").write_text('{"error": "<img src=x onerror=window.hacked=1>"}')
    return folder


def test_hostile_texts_do_nothing(page, tmp_path):
    runs = hostile_runs(tmp_path / "runs")
    page.open(compared(tmp_path / "out", f"runs=[{runs}]", "answers=30", "by=[objective.name,target.path]"))
    made = ("img, iframe, object, embed, base, form, svg[onload], td b, td a", ".figure a[href], .figure b, .figure i",
            "[onerror], [onload], [onmouseover]")  # fmt: skip
    for elements in made:
        assert page.run(f"document.querySelectorAll('{elements}').length") == 0
    assert page.run("[...document.scripts].filter(one => one.type !== 'application/json').length") == 2
    shown = page.run("document.body.innerText")
    assert all(text in shown for text in CORPUS[:4]), "they are shown as they are"
    drawn = page.run("[...document.querySelectorAll('.figure text')].map(text => text.textContent).join(' ')")
    assert "<script>" in drawn, "and in figures, too"
    over = "one.dispatchEvent(new Event('mouseover', {bubbles: true}))"
    page.run(f"document.querySelectorAll('td, th, text').forEach(one => {over})")
    type_into_the_filter(page, "<script>")
    assert 1 <= len(page.run(SHOWN.format(0))) < len(CORPUS)
    assert page.run("typeof window.hacked") == "undefined"
    assert page.said == []


def test_the_last_wall_holds_when_the_others_are_broken(page, tmp_path):
    """An element that did get into the page is stopped by the page's own policy."""
    page_file = compared(tmp_path / "out", f"runs=[{study(tmp_path / 'runs', num_prompts=4)}]")
    broken = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>"
    page_file.write_text(page_file.read_text().replace("<h1>", broken + "<h1>"))
    page.open(page_file)
    assert page.run("typeof window.hacked") == "undefined"
    assert any("Content Security Policy" in one for one in page.said)
