"""A question with the answers of a model and of a baseline, and which of them is better."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fuserl.errors import FuserlError
from fuserl.evaluation.benchmarks.questions import rows
from fuserl.records.manifest import write_text_atomically
from fuserl.records.schema import Message, PromptGroup, Response
from fuserl.records.splits import prompt_digest
from fuserl.sources.resumed import clean


@dataclass(frozen=True, slots=True)
class Pair:
    """The model's answer is the group's only response."""

    group: PromptGroup
    place: int  # of the question among the benchmark's
    baseline: str
    preference: float | None = None  # from 1, the baseline's is better, to 2, the model's is; None: nobody knows
    detail: Mapping[str, Any] = field(default_factory=dict)

    @property
    def instruction(self) -> str:
        """What was asked."""
        return self.group.prompt[-1].content

    @property
    def answer(self) -> str:
        """The model's."""
        return self.group.responses[0].text

    def preferred(self, preference: float | None, detail: Mapping[str, Any]) -> Pair:
        """The same pair, judged."""
        return replace(self, preference=preference, detail=detail)


@dataclass(frozen=True, slots=True)
class Judged:
    """What a judge found."""

    pairs: Sequence[Pair]
    model: str  # whose answers; as the package says, its generator
    baseline: str
    judge: str  # its name, as in published tables where it is one of them
    about: Mapping[str, Any]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Baseline:
    """The answers that the model's are compared with.

    Args:
        path: a file, or `hf://datasets/OWNER/NAME/FILE`: rows with `instruction`, `output` and perhaps `generator`.
        revision: of the hub's repository; None: the newest.
    """

    path: str
    revision: str | None

    def of(self, questions: Sequence[PromptGroup]) -> tuple[str, list[str]]:
        """(whose, an answer a question).

        Raises:
            FuserlError: the file cannot be read, or a question has no answer, or several.
        """
        found: dict[str, str] = {}
        names: dict[str, None] = {}
        for where, row in read_rows(self.path, self.revision, "baseline.path"):
            instruction, output = text_of(row, "instruction", where), text_of(row, "output", where)
            if found.setdefault(instruction, output) != output:
                raise FuserlError("an instruction has two answers", where=where, hint="take one of the rows out")
            names[str(row.get("generator") or "unknown")] = None
        lacking = [group for group in questions if group.prompt[-1].content not in found]
        if lacking:
            raise FuserlError(
                f"the baseline has no answer to {len(lacking):,} of {len(questions):,} questions, "
                f"the first: `{lacking[0].id}`",
                where=self.path,
                hint="give the outputs of one model on these questions with `baseline.path=FILE`",
            )
        return ", ".join(names), [found[group.prompt[-1].content] for group in questions]


def question(row: Mapping[str, Any], *, instruction: str) -> PromptGroup:
    """A row of AlpacaEval's questions, or of anybody's outputs on them.

    Args:
        instruction: the column with what is asked.
    """
    asked = row[instruction]
    if not isinstance(asked, str) or not asked.strip():
        raise ValueError(f"`{instruction}` is no text")
    prompt = (Message("user", clean(asked)),)
    extra = {"dataset": str(row["dataset"])} if row.get("dataset") is not None else {}
    return PromptGroup(f"alpaca-{prompt_digest(prompt)}", prompt, (), "instruction", None, extra)


def annotated(
    path: str, revision: str | None, questions: Sequence[PromptGroup]
) -> tuple[list[Pair], dict[str, set[str]], int]:
    """Pairs with their preferences from a file of annotations, in the order of the questions.

    Returns:
        Pairs; the names that the file has as `generator_1`, `generator_2` and `annotator`; rows of other questions.

    Raises:
        FuserlError: the file cannot be read, a row is no annotation, or a question has two.
    """
    place = {group.prompt[-1].content: number for number, group in enumerate(questions)}
    found: dict[int, Pair] = {}
    names: dict[str, set[str]] = {"generator_1": set(), "generator_2": set(), "annotator": set()}
    others = 0
    for where, row in read_rows(path, revision, "judge.path"):
        number = place.get(text_of(row, "instruction", where))
        if number is None:
            others += 1
            continue
        if number in found:
            raise FuserlError("a question is annotated twice", where=where, hint="take one of the rows out")
        for name, seen in names.items():
            seen.add(str(row.get(name) or "unknown"))
        answer = Response(str(row.get("generator_2") or "unknown"), text_of(row, "output_2", where))
        group = replace(questions[number], responses=(answer,))
        found[number] = Pair(
            group, number, text_of(row, "output_1", where), preference_of(row.get("preference"), where)
        )
    return [found[number] for number in sorted(found)], names, others


def preference_of(value: Any, where: str) -> float | None:
    """A preference as files have it: from 1 to 2; 0 is an old draw; null, NaN and -1 are not known.

    Raises:
        FuserlError: it is something else.
    """
    if value is None or value == -1 or value != value:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not (value == 0 or 1 <= value <= 2):
        raise FuserlError(
            f"`preference` is {str(value)[:40]!r}",
            where=where,
            hint="1: the baseline's answer is better; 2: the model's; between: a chance; null: not known",
        )
    return 1.5 if value == 0 else float(value)


def read_rows(path: str, revision: str | None, setting: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows of a file or of the hub, mistakes told by their setting."""
    try:
        yield from rows(path, None, None, revision)
    except FuserlError as error:
        hint = error.hint.replace("questions.path", setting)
        raise FuserlError(error.what.replace("the questions", "the rows"), where=error.where, hint=hint) from error


def text_of(row: Mapping[str, Any], column: str, where: str) -> str:
    """A text of a row; it may be empty.

    Raises:
        FuserlError: there is none.
    """
    if not isinstance(row.get(column), str):
        raise FuserlError(
            f"the row has no text `{column}`", where=where, hint="the rows must be those of AlpacaEval's own files"
        )
    return clean(row[column])


def write(folder: Path, judged: Judged, answered: bool) -> None:
    """`annotations.json`, and `model_outputs.json` where the model was asked, as the package writes them."""
    outputs, annotations = [], []
    for pair in judged.pairs:
        asked = {"dataset": pair.group.extra.get("dataset", ""), "instruction": pair.instruction}
        outputs.append({**asked, "output": pair.answer, "generator": judged.model})
        first = {"output_1": pair.baseline, "generator_1": judged.baseline}
        second = {"output_2": pair.answer, "generator_2": judged.model}
        found = {"annotator": judged.judge, "preference": pair.preference}
        annotations.append({"index": pair.place, **asked, **first, **second, **found})
    folder.mkdir(parents=True, exist_ok=True)
    write_text_atomically(folder / "annotations.json", json.dumps(annotations, indent=1) + "\n")
    if answered:
        write_text_atomically(folder / "model_outputs.json", json.dumps(outputs, indent=1) + "\n")
