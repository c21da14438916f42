"""The verb `demo`: base, FuseSFT, the three FusePO objectives and their baselines on the shipped small world.

Everything is trained here and now; the numbers are whatever they are.
"""

from __future__ import annotations

import csv
import json
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table as Terminal

import fuserl
from fuserl.evaluation.answering import scores_by_prompt, write_answers
from fuserl.miniature.tasks import DOMAINS
from fuserl.models.load import load_policy, load_tokenizer
from fuserl.records.formats import read_groups
from fuserl.records.manifest import write_text_atomically
from fuserl.records.schema import PromptGroup
from fuserl.reporting import figures
from fuserl.reporting.report import Section, Table, Text, write_report
from fuserl.reporting.statistics import Interval, bootstrap, paired_difference
from fuserl.settings import compose
from fuserl.terminal import say
from fuserl.tokens.templates import load_template
from fuserl.training.quiet import quiet
from fuserl.training.run import train
from fuserl.training.testing import tested

PACKAGE = Path(fuserl.__file__).parent / "miniature"


@dataclass(frozen=True)
class Run:
    """One training run of the demo."""

    name: str
    overrides: tuple[str, ...]
    start: str | None = None  # the run whose model it starts from; None: the base target


SFT, PO = ("data.part=[0,0.4]", "max_steps=60", "optimizer.lr=5e-4"), ("data.part=[0.4,1]", "max_steps=100")
RUNS = (
    Run("FuseSFT", ("objective=fusesft", *SFT)),
    Run("SFT best", ("objective=sft_best", *SFT)),
    Run("FusePO-DPO", ("objective=fusepo_dpo", *PO, "optimizer.lr=3e-4", "objective.beta=0.3", "objective.nll=1"), "FuseSFT"),
    Run("FusePO-SimPO", ("objective=fusepo_simpo", *PO, "optimizer.lr=3e-4", "objective.beta=2", "objective.gamma_beta_ratio=0.5", "objective.nll=1"), "FuseSFT"),
    Run("FusePO-RLOO", ("objective=fusepo_rloo", *PO, "optimizer.lr=3e-4", "objective.kl=0.1"), "FuseSFT"),
    Run("DPO best", ("objective=dpo_best", *PO, "optimizer.lr=3e-4", "objective.beta=0.3", "objective.nll=1"), "SFT best"),
    Run("SFT same steps", ("objective=sft_best", "max_steps=160", "optimizer.lr=5e-4")),
)  # fmt: skip


def demo(cfg: DictConfig) -> Path:
    """Train, evaluate, and write table, figures and `report.html`; finished runs are kept.

    Returns:
        The folder written.
    """
    quiet()
    started = time.perf_counter()
    output = Path(cfg.output)
    output.mkdir(parents=True, exist_ok=True)
    test = list(read_groups(PACKAGE / "data", split="test"))
    fixed = [
        *("data=miniature", "target=miniature", "logger=csv", "trainer.progress_bar=false", f"seed={cfg.seed}"),
        *("probe.score=fuserl.miniature.tasks.score", "probe.prompts=64", "probe.max_new_tokens=24"),
        *("test.split=test", f"test.samples={cfg.samples}"),
    ]
    scores = {"base": graded(base_answers(output / "base.jsonl", test, compose("train", fixed)))}
    for number, run in enumerate(RUNS, 1):
        folder = output / slug(run.name)
        say(f"[{number}/{len(RUNS)}] {run.name}")
        start = [] if run.start is None else [f"target.path='{output / slug(run.start) / 'model'}'"]
        train(compose("train", [*fixed, f"output='{folder}'", *run.overrides, *start]))
        scores[run.name] = graded(folder / "test.jsonl")
    best = best_source(test)
    scores = {
        "base": scores["base"],
        f"best source ({best[0]})": best[1],
        **{k: v for k, v in scores.items() if k != "base"},
    }
    domains = np.array([group.domain for group in test])
    _print(scores, domains)
    _write(output, scores, domains, test)
    say(f"report: {output / 'report.html'}   ({time.perf_counter() - started:.0f} s)")
    return output


def slug(name: str) -> str:
    """A folder name.

    >>> slug("FusePO-DPO")
    'fusepo_dpo'
    """
    return name.lower().replace(" ", "_").replace("-", "_")


def base_answers(path: Path, test: list[PromptGroup], cfg: DictConfig) -> Path:
    """What the untrained target answers to the test prompts; kept."""
    if not path.exists():
        tokenizer = load_tokenizer(str(PACKAGE / "target"))
        policy, template = load_policy(str(PACKAGE / "target"), dtype="float32"), load_template(tokenizer)
        write_answers(path, tested(policy, template, test, cfg, first=True))
    return path


def graded(path: Path) -> np.ndarray:
    """[P] mean score of the answers to each test prompt, from a run's `test.jsonl`."""
    return scores_by_prompt([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()])


def best_source(test: list[PromptGroup]) -> tuple[str, np.ndarray]:
    """The source with the highest mean score on the test prompts, and its score for each prompt."""
    per_source: dict[str, list[float]] = defaultdict(list)
    for group in test:
        found: dict[str, list[float]] = defaultdict(list)
        for response in group.responses:
            found[response.source].append(response.extra["score"])
        for source, values in found.items():
            per_source[source].append(float(np.mean(values)))
    name = max(per_source, key=lambda source: float(np.mean(per_source[source])))
    return name, np.array(per_source[name])


def cells(scores: dict[str, np.ndarray], domains: np.ndarray) -> tuple[list[str], list[list[str]], dict[str, Interval]]:
    """Header, rows and the overall intervals of the result table."""
    overall = {name: bootstrap(values) for name, values in scores.items()}
    header = ["model", "score, 95 % interval", *DOMAINS]
    rows = [
        [name, str(overall[name]), *(f"{values[domains == domain].mean():.3f}" for domain in DOMAINS)]
        for name, values in scores.items()
    ]
    return header, rows, overall


def _print(scores: dict[str, np.ndarray], domains: np.ndarray) -> None:
    header, rows, _ = cells(scores, domains)
    table = Terminal(title="sampled test score (T = 1), by domain", title_justify="left", box=None, padding=(0, 1))
    for column in header:
        table.add_column(column, justify="left" if column == "model" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console(width=140, highlight=False).print(table)


def _write(output: Path, scores: dict[str, np.ndarray], domains: np.ndarray, test: list[PromptGroup]) -> None:
    header, rows, overall = cells(scores, domains)
    trained = list(scores)[2:]
    best = frozenset(
        (2 + int(np.argmax([float(row[column].split()[0]) for row in rows[2:]])), column)
        for column in range(1, len(header))
    )
    drawn = {
        "scores": figures.intervals(overall, title="Test score with 95 % intervals", x="score"),
        "validation_nll": _curves(output, "val/nll", "Validation NLL of the best response", "nats a token"),
        "training_loss": _curves(output, "train/loss", "Training loss", "loss"),
        "validation_accuracy": _curves(output, "val/accuracy", "Preference accuracy on held-out pairs", "share"),
        "probe_score": _curves(output, "probe/score", "Sampled score of the probe", "score"),
        "weights": figures.bars(
            {run.name: _summary(output, run.name)["weight_by_source"] for run in RUNS},
            title="Weight by source",
            y="share",
        ),
    }
    (output / "figures").mkdir(exist_ok=True)
    for name, figure in drawn.items():
        figure.write_html(output / "figures" / f"{name}.html", include_plotlyjs="directory")
    write_report(
        output / "report.html",
        title="fuserl demo: one weak model, taught by four",
        lead=conclusion(scores),
        sections=[
            Section("Test scores", [Text(f"{len(test)} prompts that no run has seen, sampled at temperature 1, graded exactly. "
                                         "Intervals resample prompts. Marked: the best trained model of each column."),
                                    Table(header, rows, best), drawn["scores"]]),
            Section("Curves", [drawn["validation_nll"], drawn["training_loss"], drawn["validation_accuracy"], drawn["probe_score"]]),
            Section("Who teaches", [Text("Share of each source in the pull upwards over the training prompts."), drawn["weights"]]),
            Section("Cost", [_cost(output, trained)]),
        ],
    )  # fmt: skip
    summary = {name: {"score": overall[name]._asdict()} for name in scores}
    write_text_atomically(output / "summary.json", json.dumps(summary, indent=1))


def conclusion(scores: dict[str, np.ndarray]) -> str:
    """What the numbers say, whichever way they fall."""
    fused = max((name for name in scores if name.startswith("FusePO")), key=lambda name: scores[name].mean())
    plain = max(("DPO best", "SFT best", "SFT same steps"), key=lambda name: scores[name].mean())
    gap = paired_difference(scores[fused], scores[plain])
    verdict = (
        "the interval holds 0: this one seed does not separate them"
        if gap.low <= 0 <= gap.high
        else f"{fused if gap.mean > 0 else plain} is ahead on this seed"
    )
    base, stage = scores["base"].mean(), scores["FuseSFT"].mean()
    return (
        f"Sampled score: base {base:.3f}, after FuseSFT {stage:.3f}, best FusePO ({fused}) {scores[fused].mean():.3f}, best baseline "
        f"({plain}) {scores[plain].mean():.3f}. Paired difference of the two: {gap}; {verdict}."
    )


def _curves(output: Path, metric: str, title: str, y: str):
    runs = {}
    for run in RUNS:
        with (output / slug(run.name) / "metrics.csv").open(newline="") as file:
            rows = [(float(row["step"]), row.get(metric)) for row in csv.DictReader(file)]
        runs[run.name] = [(step, float(value)) for step, value in rows if value]
    return figures.curves(runs, title=title, x="optimiser step", y=y)


def _summary(output: Path, name: str) -> dict:
    return json.loads((output / slug(name) / "summary.json").read_text())


def _cost(output: Path, names: list[str]) -> Table:
    rows = []
    for name in names:
        found = _summary(output, name)
        ratio = found["tokens_naive"] / max(found["tokens_computed"], 1)
        seconds = f"{found['train_seconds']:.1f}"
        rows.append(
            [
                name,
                str(found["steps"]),
                seconds,
                f"{found['tokens_computed']:,}",
                f"{found['tokens_naive']:,}",
                f"{ratio:.1f}",
            ]
        )
    return Table(["run", "steps", "training seconds", "tokens computed", "tokens of separate forwards", "ratio"], rows)
