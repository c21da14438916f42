"""`fuserl compare`, from folders to files."""

from __future__ import annotations

import csv
import json
import re

import numpy as np
import pytest
from fake_runs import study, write_run
from hostile import CORPUS

from fuserl.cli import run_verb
from fuserl.errors import FuserlError
from fuserl.evaluation.compare import tell
from fuserl.evaluation.comparing import compared
from fuserl.evaluation.measures import Metric, scores, value
from fuserl.evaluation.methods import methods_of
from fuserl.evaluation.runs import LeftOut, find_runs
from fuserl.evaluation.tables import harmless, write_runs, write_table


def read(path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_study_becomes_a_table_and_a_page(tmp_path, capsys):
    run_verb("compare", [f"runs=[{study(tmp_path / 'runs')}]", f"output={tmp_path / 'out'}", "baseline=sft_best"])
    out = tmp_path / "out"
    table = {row["method"]: row for row in read(out / "table.csv")}
    assert len(table) == 5
    best = table["objective=fusesft, tau=1.0"]
    assert best["verdict"] == "better"
    assert best["test"] == "paired by seed and prompt"
    assert float(best["p"]) <= float(best["p_holm"]) < 0.05
    assert float(best["difference"]) == pytest.approx(
        float(best["mean"]) - float(table["objective=sft_best, tau=auto"]["mean"])
    )
    assert float(best["low"]) < float(best["mean"]) < float(best["high"])
    assert table["objective=sft_best, tau=auto"]["baseline"] == "yes"
    assert table["objective=sft_best, tau=auto"]["p"] == ""

    runs = read(out / "runs.csv")
    assert [row["status"] for row in runs].count("complete") == 15
    assert {row["why"] for row in runs if row["status"] == "left out"} == {
        "failed: there is no data", "not finished: it has no summary.json",
    }  # fmt: skip
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["metric"] == {"name": "test/score", "at": "last"}
    assert sum(map(len, manifest["methods"].values())) == 15
    page = (out / "index.html").read_text()
    for heading in (
        "Methods",
        "Validation",
        "Training against validation",
        "Preferences",
        "Who teaches",
        "Domains",
        "Answers",
    ):
        assert f"<h2>{heading}</h2>" in page
    told = capsys.readouterr().err
    assert "▲ better" in told
    assert "◆ baseline" in told
    assert "failed: there is no data" in told
    assert (out / "index.html").stat().st_size < 7e6


def test_through_the_verb_null_methods_stay_and_a_planted_effect_is_found(tmp_path):
    rng = np.random.default_rng(7)
    prompt = rng.normal(0, 0.2, 80)
    for number in range(10):  # the last one is better
        own, gain = rng.normal(0, 0.05, 80), 0.6 * (number == 9)
        for seed in range(4):
            values = 0.5 + gain + 0.03 * rng.normal() + prompt + own + 0.1 * rng.normal(size=80)
            write_run(tmp_path / "runs" / f"{number}-{seed}", seed, {"optimizer.lr": number + 1}, scores=values)
    run_verb(
        "compare",
        [
            f"runs={tmp_path / 'runs'}",
            f"output={tmp_path / 'out'}",
            "baseline='lr=1'",
            "answers=0",
            "names=['lr=10: planted']",
        ],
    )
    rows = {row["method"]: row for row in read(tmp_path / "out" / "table.csv")}
    assert rows["planted"]["verdict"] == "better"
    others = [row for name, row in rows.items() if name not in ("planted", "lr=1")]
    assert len(others) == 8
    assert sum(float(row["p"]) < 0.05 for row in others) <= 3
    assert {row["verdict"] for row in others} == {"not told apart"}


def comparison(folder, name, *, baseline="sft_best"):
    runs = find_runs([str(folder)])[0]
    methods = methods_of(runs)
    chosen = next(method for method in methods if baseline in method.label)
    return compared(methods, Metric(name, "last"), chosen)


def two(folder, *, ours=range(3), theirs=range(3), test=True):
    rng = np.random.default_rng(0)
    for name, seeds in (("sft_best", theirs), ("fusesft", ours)):
        for seed in seeds:
            values = 0.5 + 0.1 * rng.normal(size=20) if test else None
            write_run(
                folder / f"{name}{seed}", seed, {"objective.name": name}, scores=values, nll=1 + 0.1 * rng.normal()
            )
    return folder


@pytest.mark.parametrize(
    ("ours", "theirs", "metric", "said"),
    [
        (range(3), range(3), "test/score", "paired by seed and prompt"),
        (range(3), range(5), "test/score", "paired by seed and prompt"),
        (range(3), range(3, 6), "test/score", "seeds apart (Welch), paired by prompt"),
        (range(2), range(4), "test/score", "seeds apart (Welch), paired by prompt; two seeds are too few to trust it"),
        (range(1), range(1), "test/score", "paired by prompt; one seed: nothing is known of training's own noise"),
        (range(1), range(3), "test/score", "paired by prompt; one seed: nothing is known of training's own noise"),
        (range(3), range(3), "val/nll", "paired by seed"),
        (range(3), range(3, 7), "val/nll", "seeds apart (Welch)"),
        (range(1), range(1), "val/nll", "no test: one seed"),
    ],
)  # fmt: skip
def test_how_runs_are_paired(tmp_path, ours, theirs, metric, said):
    found = comparison(two(tmp_path, ours=ours, theirs=theirs), metric)
    (row,) = [row for row in found.rows if row.method is not found.baseline]
    assert row.test == said
    assert (row.p is None) == said.startswith("no test")
    assert row.verdict in ("not tested" if row.p is None else "better worse not told apart")


def test_a_length_is_neither_better_nor_worse_and_a_loss_is_better_when_lower(tmp_path):
    for seed in range(3):
        write_run(tmp_path / f"a{seed}", seed, {"objective.name": "sft_best"}, nll=1.0)
        write_run(tmp_path / f"b{seed}", seed, {"objective.name": "fusesft"}, nll=0.5 + 0.01 * seed)
    found = comparison(tmp_path, "val/nll")
    assert [row.method.label for row in found.rows] == ["objective=fusesft", "objective=sft_best"]
    assert found.rows[0].verdict == "better"
    assert Metric("probe/tokens", "last").direction == 0
    assert {Metric(name, "last").direction for name in ("val/accuracy/source/nll", "test/score/domain/loss")} == {1}


def test_metrics_of_a_run(tmp_path):
    run = find_runs([str(write_run(tmp_path / "a", 0, scores=np.arange(10.0)))])[0][0]
    assert value(run, Metric("test/score", "last")) == 4.5
    assert value(run, Metric("test/score/domain/code", "last")) == 5.0
    assert value(run, Metric("train_seconds", "last")) == 10.0
    assert value(run, Metric("val/accuracy", "best")) == pytest.approx(0.8)
    series = [v for _, v in run.series["val/nll"]]
    assert value(run, Metric("val/nll", "best")) == min(series)
    assert scores([run], Metric("test/score", "last")).values.shape == (1, 10)
    assert scores([run], Metric("val/nll", "last")).values.shape == (1, 1)


def test_prompts_that_one_run_lacks_are_left_out_of_all(tmp_path):
    a = write_run(tmp_path / "a", 0, scores=np.array([0.0, 1.0, 1.0]))
    b = write_run(tmp_path / "b", 1, scores=np.array([1.0, 1.0]))
    runs = [*find_runs([str(a)])[0], *find_runs([str(b)])[0]]
    np.testing.assert_array_equal(scores(runs, Metric("test/score", "last")).values, [[0, 1], [1, 1]])


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        (["metric=val/nul"], "no run has the metric"),
        (["at=first"], "no place in a run"),
        (["baseline=grpo"], "no methods match"),
        (["by=[tua]"], "no run has a setting"),
        (["only={tua: 1}"], "no run has a setting"),
        (["only={objective.name: grpo}"], "no run has these settings"),
        (["heat=[lr]"], "a heat map takes two settings"),
        (["runs=[{a: 1}]"], "must be a list of texts"),
        (["names=[x]"], "names no label"),
        (["runs=[/nowhere/at/all]"], "no such folder"),
    ],
)  # fmt: skip
def test_mistakes_are_told_before_anything_is_written(tmp_path, overrides, what):
    folder = two(tmp_path / "runs", ours=range(1), theirs=range(1))
    with pytest.raises(FuserlError, match=what):
        run_verb("compare", [f"runs=[{folder}]", f"output={tmp_path / 'out'}", *overrides])
    assert not (tmp_path / "out").exists()


def test_without_a_shared_metric_the_shared_ones_are_named(tmp_path):
    for name in ("a", "b"):
        folder = write_run(tmp_path / name, 0, {"objective.name": name})
        text = (folder / "metrics.csv").read_text()
        (folder / "metrics.csv").write_text(text.replace("val/nll", f"val/{name}"))
    with pytest.raises(FuserlError, match="neither a test, nor a benchmark, nor a validation NLL") as error:
        run_verb("compare", [f"runs=[{tmp_path}]"])
    assert "val/accuracy" in error.value.hint


def test_runs_without_the_metric_are_named_not_counted(tmp_path):
    two(tmp_path / "runs")
    write_run(tmp_path / "runs" / "untested", 9)
    run_verb("compare", [f"runs=[{tmp_path / 'runs'}]", f"output={tmp_path / 'out'}", "metric=test/score"])
    assert [row["why"] for row in read(tmp_path / "out" / "runs.csv") if row["status"] == "left out"] == [
        "it has no test/score"
    ]
    assert len(read(tmp_path / "out" / "table.csv")) == 2


def test_no_text_of_the_corpus_is_a_formula_in_a_spreadsheet(tmp_path):
    for number, text in enumerate(CORPUS):
        write_run(tmp_path / "runs" / str(number), 0, {"objective.name": text})
    found = comparison(tmp_path / "runs", "val/accuracy", baseline=CORPUS[0])
    write_table(tmp_path / "table.csv", found)
    write_runs(tmp_path / "runs.csv", found, [LeftOut(tmp_path, text) for text in CORPUS])
    for name in ("table.csv", "runs.csv"):
        with (tmp_path / name).open(newline="") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert len(cells) > 100
        for cell in cells:
            assert not re.match(r"\s*[=+\-@\t\r]", cell) or float(cell) is not None
    assert harmless("=1") == "'=1"
    assert harmless("-1e-3") == "-1e-3"


def test_the_terminal_is_not_touched_by_names(tmp_path, capsys):
    for number, text in enumerate(CORPUS):
        write_run(tmp_path / str(number), 0, {"objective.name": text})
    found = comparison(tmp_path, "val/nll", baseline=CORPUS[0])
    tell(found, [LeftOut(tmp_path, text) for text in CORPUS], tmp_path)
    told = capsys.readouterr().err
    assert "\x1b" not in told
    assert "\x07" not in told
    assert "[bold red]markup" in told
