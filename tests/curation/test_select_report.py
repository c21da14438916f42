"""The page: hostile texts stay texts wherever they come from; figures and tables say what `report.json` says."""

from __future__ import annotations

from html.parser import HTMLParser

import numpy as np
import pytest
from curation.select_kit import lay, of_rewards, report, run, world

from fuserl.curation.measures import Entropies, Measures
from fuserl.records.schema import Message, PromptGroup, Response

HOSTILE = "</script><script>document.title='broken'</script><img src=x onerror=alert(1)>\x1b[31m\u202e"
WORDS = "one two three four five six seven eight nine ten eleven twelve thirteen"


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Hostile prompts, texts, ids, sources and domains; some dropped by every kind of rule."""
    folder = tmp_path_factory.mktemp("hostile")
    groups = [
        PromptGroup(
            f"{HOSTILE}{n}",
            (Message("user", f"{HOSTILE} {WORDS}" + (f" {n}" if n > 3 else "")),),
            tuple(
                Response(
                    f"{HOSTILE}{source}",
                    f"{HOSTILE} {n} {source} {sample}" if sample != 3 else "",
                    sample,
                    0.1 * sample * n + 0.01 * n,
                )
                for source in "ab"
                for sample in range(4)
            ),
            HOSTILE + "de"[n % 2],
        )
        for n in range(30)
    ]
    cut = [PromptGroup("cut", (Message("user", "?"),), (Response(HOSTILE, HOSTILE, finish_reason="length"),), HOSTILE)]
    return run(
        f"data.path={lay(groups + cut, folder / 'in.jsonl')}", f"output={folder / 'out'}", "po.max_gap=1.0", "trl=true"
    )


def test_no_text_of_the_data_becomes_an_element(hostile):
    page = (hostile / "report.html").read_text()
    tags = Tags()
    tags.feed(page)
    assert "img" not in tags.seen
    assert "broken'</script>" not in page
    assert "alert(1)" in "".join(tags.text), "it is shown, as a text"
    figures = page.count('<script type="application/json">')  # data, which no browser runs
    assert figures >= 2
    assert page.count("<script>") == 2, "plotly and ours"
    assert tags.seen.count("script") == 2 + figures


def test_what_acts_on_a_terminal_is_taken_out(hostile, capsys, tmp_path):
    run(f"data.path={hostile.parent / 'in.jsonl'}", f"output={tmp_path / 'out'}", "po.max_gap=0.01")
    said = capsys.readouterr().err
    assert "none of" in said, "a domain of which nothing is left is told"
    assert "\x1b[31m" not in said
    assert "\u202e" not in said


def test_the_page_tells_every_step_every_reason_and_some_examples(hostile):
    tags = Tags()
    tags.feed((hostile / "report.html").read_text())
    shown = set(tags.text)
    told = report(hostile)
    assert {entry["step"] for entry in told["steps"]} <= shown
    assert {why for side in told["sides"].values() for _, why, _ in side["dropped"]} <= shown
    assert told["examples"]["truncated"][0]["prompt_id"] == "cut"
    assert len(told["examples"]["empty"]) == 5
    assert {row["why"] for rule in told["examples"].values() for row in rule} <= shown
    assert told["findings"]["duplicate_prompts"]["counts"][0]["texts"] == 30
    assert told["trl_pairs"]["train"] == sum(told["sides"]["po/train"]["num_pairs"].values())


def test_figures_of_a_world_of_several_domains(tmp_path):
    path = lay(world(60), tmp_path / "in.jsonl")
    folder = run(f"data.path={path}", f"output={tmp_path / 'out'}", "sft=top", "po=pairs_in_window")
    told = report(folder)
    assert told["windows"]["math"] == [0.01, 0.1]
    page = (folder / "report.html").read_text()
    assert "dashed: the window of pairs" in page
    assert sum(told["measures"]["gaps"]["math"]["counts"]["all"]) > 10
    rewards = told["measures"]["rewards"]["math"]
    counted = {source: sum(counts) for source, counts in rewards["counts"].items()}
    assert counted == told["clean"]["responses"]["math"]
    assert "chinese" not in told["measures"]["rewards"], "nothing is scored there"
    assert told["measures"]["tokens"]["alder"]["max"] > 10


def test_the_best_response_is_shared_between_those_that_tie():
    measures = Measures()
    for rewards in ({"a": [0.9, 0.1], "b": [0.9]}, {"a": [0.2], "b": [0.1]}, {"a": [0.1], "b": [0.4], "c": [None]}):
        measures.add(of_rewards(rewards))
    assert measures.plain()["win_share"] == {"math": {"a": 0.5, "b": 0.5}}
    assert measures.gaps["math"].tolist() == pytest.approx([0.8])


def test_the_evenness_of_weights_worked_out_by_hand():
    entropies = Entropies()
    entropies.add([0.15, 0.14, 0.13, 0.12])
    entropies.add([0.3])
    weights = np.array([0.6439, 0.2369, 0.0871, 0.0321])  # softmax at a temperature of 0.01
    assert entropies.plain()["entropy"]["0.01"] == pytest.approx(
        -(weights * np.log(weights)).sum() / np.log(4), abs=1e-3
    )
    assert entropies.plain()["entropy"]["1.0"] > 0.9999
    assert entropies.plain()["prompts"] == 1
    assert Entropies().plain() is None
