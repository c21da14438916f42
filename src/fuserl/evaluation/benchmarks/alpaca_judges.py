"""Who says which of two answers is better: one of AlpacaEval's annotators, a file of annotations, a scorer of ours."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from fuserl.errors import FuserlError
from fuserl.evaluation.benchmarks.alpaca_annotator import BASELINE
from fuserl.evaluation.benchmarks.alpaca_pairs import Judged, Pair, annotated
from fuserl.evaluation.benchmarks.alpaca_templates import template_of
from fuserl.evaluation.benchmarks.protocol import Work
from fuserl.records.schema import PromptGroup, Response
from fuserl.records.store import file_digest
from fuserl.rewards.findings import FIELD
from fuserl.rewards.made import made

Answered = Callable[[], tuple[str, str, list[Pair]]]  # asks the model: (its name, the baseline's, pairs)
DRAW = 1.5


@runtime_checkable
class Judge(Protocol):
    """One of conf/alpaca_judge/."""

    asks: bool  # whether it needs the model's answers
    prefix: str  # of the numbers' names

    def identity(self) -> Mapping[str, Any]:
        """What decides its preferences beside the graders."""
        ...

    def check(self, work: Work) -> None:
        """Raises: FuserlError: it cannot work; found before the model is asked."""
        ...

    def judged(self, work: Work, questions: Sequence[PromptGroup], answered: Answered) -> Judged:
        """Every pair with a preference, or with none where nobody knows."""
        ...


@dataclass(frozen=True)
class Annotations:
    """A file of annotations: no judge is asked, and no model.

    Args:
        path: a file or `hf://datasets/OWNER/NAME/FILE`, rows as in AlpacaEval's `annotations.json`.
        revision: of the hub's repository; None: the newest.
    """

    path: str
    revision: str | None
    asks = False
    prefix = ""

    def identity(self) -> Mapping[str, Any]:
        """The file by its content; on the hub, by name and commit."""
        file = Path(self.path).expanduser()
        return {"annotations": file_digest(file) if file.is_file() else [self.path, self.revision]}

    def check(self, work: Work) -> None:
        """The file is read at once, nothing comes before it."""

    def judged(self, work: Work, questions: Sequence[PromptGroup], answered: Answered) -> Judged:
        """See `Judge`; questions without a row are not known."""
        pairs, names, others = annotated(self.path, self.revision, questions)
        if not pairs:
            raise FuserlError(
                "no row is of one of the questions", where=self.path, hint="give the questions it was made of"
            )
        if several := [name for name, seen in names.items() if len(seen) > 1 and name != "annotator"]:
            raise FuserlError(
                f"`{several[0]}` names several models", where=self.path, hint="give a file for each model of them"
            )
        model, baseline, judge = (", ".join(sorted(names[n])) for n in ("generator_2", "generator_1", "annotator"))
        notes = [f"the annotations of `{model}` are read from a file: no model and no judge was asked"]
        if others:
            notes.append(f"{others:,} annotations are of other questions, and left out")
        return Judged(pairs, model, baseline, judge, {"judge": judge, "annotations": self.path}, tuple(notes))


@dataclass(frozen=True)
class Annotated:
    """The scorer `graders.annotator`, see `alpaca_annotator.Annotator`.

    Args:
        config: the scorer's.
    """

    config: str | Mapping[str, Any]
    asks = True
    prefix = ""

    def identity(self) -> Mapping[str, Any]:
        """The annotator by its content; model and order stand with the graders."""
        return {"judge": "annotator", **template_of(self.config, 0).identity()}

    def check(self, work: Work) -> None:
        """See `Judge`."""
        _grader(work)

    def judged(self, work: Work, questions: Sequence[PromptGroup], answered: Answered) -> Judged:
        """See `Judge`."""
        name, scorer = _grader(work)
        model, baseline, pairs = answered()
        shown = [replace(p.group, extra={**p.group.extra, BASELINE: p.baseline}) for p in pairs]
        found = _by_id(work.scored(shown, "judged", [name]))
        judged = [pair.preferred(*_finding(found[pair.group.id].responses[0], name)) for pair in pairs]
        own = scorer.template.request.get("model_name")
        kind = (
            scorer.template.name
            if scorer.source.path == own
            else f"{scorer.template.name}, asked of {scorer.source.path}"
        )
        about = {"judge": scorer.source.path, "annotator": scorer.template.name, "judge_template": scorer.template.hash}
        notes = []
        if parted := sum(bool(pair.detail.get("defused")) for pair in judged):
            notes.append(
                f"{parted:,} prompts held texts that look like parts of the judge's template: they were parted"
            )
        return Judged(judged, model, baseline, kind, about | _dates(judged), tuple(notes))


@dataclass(frozen=True)
class LocalJudge:
    """Any scorer of conf/reward/ under `graders`, asked about both answers by themselves; their order means nothing to it.

    Args:
        scale: reward units in which a difference of 1 is odds of e: the preference is 1 + sigmoid(difference / scale).
            1 for reward models that were trained by Bradley and Terry's likelihood. None: the larger reward wins
            outright, equal ones are a draw; that needs no unit.
    """

    scale: float | None
    asks = True
    prefix = "local_judge_"

    def __post_init__(self) -> None:
        if self.scale is not None and not (isinstance(self.scale, int | float) and 0 < self.scale < math.inf):
            raise FuserlError(f"`scale` is {self.scale!r}", where="`judge.scale`", hint="above 0, or null")

    def identity(self) -> Mapping[str, Any]:
        """The scorer's stands with the graders."""
        return {"judge": "local", "scale": self.scale}

    def check(self, work: Work) -> None:
        """See `Judge`."""
        _grader(work)

    def judged(self, work: Work, questions: Sequence[PromptGroup], answered: Answered) -> Judged:
        """See `Judge`; an answer without a reward leaves its pair unknown."""
        name, scorer = _grader(work)
        model, baseline, pairs = answered()
        both = [replace(p.group, responses=(p.group.responses[0], Response(BASELINE, p.baseline))) for p in pairs]
        both = [replace(g, responses=(replace(g.responses[0], source="model", sample=0), g.responses[1])) for g in both]
        found = _by_id(work.scored(both, "judged", [name]))
        judged = [self._preferred(pair, found[pair.group.id], name) for pair in pairs]
        what = getattr(scorer, "path", None) or type(scorer).__name__
        about = {
            "judge": f"local judge: {what}",
            "local": True,
            "scale": self.scale,
            "judge_settings": dict(work.graders[name]),
        }
        how = (
            "wins by the larger reward"
            if self.scale is None
            else f"1 + sigmoid of the rewards' difference over {self.scale:g}"
        )
        note = f"judged locally by `{what}` ({how}): comparable with runs under the same judge alone, with no published number"
        return Judged(judged, model, baseline, f"local judge: {what}", about, (note,))

    def _preferred(self, pair: Pair, group: PromptGroup, name: str) -> Pair:
        ours, theirs = (_finding(response, name) for response in group.responses)
        if ours[0] is None or theirs[0] is None:
            return pair.preferred(None, {"why": ours[1].get("why") or theirs[1].get("why") or "no reward"})
        detail = {"reward": ours[0], "baseline_reward": theirs[0]}
        difference = ours[0] - theirs[0]
        if self.scale is None:
            return pair.preferred(DRAW + 0.5 * ((difference > 0) - (difference < 0)), detail)
        return pair.preferred(1.0 + 0.5 * (1.0 + math.tanh(0.5 * difference / self.scale)), detail)


def _grader(work: Work) -> tuple[str, Any]:
    """The only scorer under `graders`, made but not started.

    Raises:
        FuserlError: there is none or several, or it cannot be made.
    """
    if len(work.graders) != 1:
        raise FuserlError(
            f"there are {len(work.graders)} graders, a judge is one",
            where="`benchmarks.alpaca_eval.graders`",
            hint="as in conf/alpaca_judge/",
        )
    ((name, node),) = work.graders.items()
    scorer = made({"name": name, **{key: value for key, value in node.items() if key != "domains"}}, f"graders.{name}")
    return name, scorer


def _by_id(groups: Sequence[PromptGroup]) -> dict[str, PromptGroup]:
    return {group.id: group for group in groups}


def _finding(response: Response, name: str) -> tuple[float | None, Mapping[str, Any]]:
    """(reward, detail) of a scorer; a response that it did not score has neither."""
    entry = (response.extra.get(FIELD) or {}).get(name) or {}
    return entry.get("reward"), entry.get("detail") or {}


def _dates(pairs: Sequence[Pair]) -> dict[str, Any]:
    """First and last day of judging."""
    days = sorted({str(pair.detail["date"]) for pair in pairs if "date" in pair.detail})
    return {"date": days[0] if len(days) == 1 else [days[0], days[-1]]} if days else {}
