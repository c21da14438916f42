"""The verb `generate`: prompts x sources -> groups of responses, resumable at any moment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from fuserl.errors import FuserlError
from fuserl.records.formats import ReadReport
from fuserl.records.inputs import num_rows
from fuserl.records.journal import Journal, locked
from fuserl.settings import digest, plain, require_whole
from fuserl.sources.asked import Asked
from fuserl.sources.asking import Outcome, ask
from fuserl.sources.chosen import Chosen, chosen_sources
from fuserl.sources.finish import Made, finish
from fuserl.sources.folder import Folder, by_name, joined
from fuserl.sources.prompts import Prompts, prompts_of
from fuserl.sources.source import Source
from fuserl.sources.survey import Survey, surveyed
from fuserl.terminal import bar, say

LARGE = 4 << 30  # bytes of a local model from which on one is told that it is read
DECISIVE = ("seed", "data")  # with the sources, all that decides what is asked


def generate(cfg: DictConfig) -> Path:
    """Ask sources as `conf/generate.yaml` says; what the folder holds already is not asked again.

    Returns:
        The folder: a data set, with the journals that it is made from.

    Raises:
        FuserlError: settings, prompts or an engine cannot work, or requests got no answer; all answers are kept.
    """
    settings = plain(cfg)
    if settings["on_failure"] not in ("error", "leave_out"):
        raise FuserlError(
            f"`{settings['on_failure']}` is no way to treat failures",
            where="`on_failure`",
            hint="error: stop before the data set is written; leave_out: write it without them",
        )
    require_whole(1, give_up=settings["give_up"])
    if not isinstance(settings["seed"], int):
        raise FuserlError(f"`seed` is {settings['seed']!r}", where="`seed`", hint="a whole number")
    chosen, prompts = chosen_sources(settings), prompts_of(settings["data"])
    by_name((one.source for one in chosen), settings["seed"])
    _first_of(prompts)
    folder = Folder(settings["output"] or Path("runs") / _name(settings, chosen))
    folder.require_ours()
    with locked(folder.path):
        _generate(settings, folder, prompts, chosen)
    return folder.path


def _name(settings: Mapping[str, Any], chosen: list[Chosen]) -> str:
    """Of the folder where none is given: the same prompts, sources and seed have one, on whatever engine."""
    asked = {key: settings[key] for key in DECISIVE}
    return digest("generate", asked | {"sources": {one.source.name: one.source.plain() for one in chosen}}, ())


def _first_of(prompts: Prompts) -> None:
    """Fail before a folder is made where there are no prompts."""
    if next(prompts.groups(), None) is None:
        raise FuserlError(
            "no prompt is left to ask",
            where=f"`data.path={prompts.path}`",
            hint="widen `data.domains` or `data.part`, or look at the rows",
        )


def _generate(settings: Mapping[str, Any], folder: Folder, prompts: Prompts, chosen: list[Chosen]) -> None:
    """With the folder's lock: look, ask, write."""
    asked = by_name((_known(one.source) for one in chosen), settings["seed"])
    whole, changed = joined(folder.asked_before(), asked)
    for name in changed:
        say(
            f"`{name}` has other settings than before: its earlier answers stay in the journal, but not in the data set"
        )
    report = ReadReport()
    with folder.journals(whole) as journals:
        with bar("reading prompts", lambda: num_rows(prompts.path, prompts.split)) as told:
            survey = surveyed(prompts.groups(report), asked, journals, told)
        _say_survey(survey, report)
        made = Made(folder, prompts, survey, report, whole, journals)
        if not survey.open and made.is_written():
            say(f"nothing new to ask; the data set is complete: {folder.path}")
            return
        folder.write(settings, whole.values())
        outcomes = _ask_all(settings, folder, prompts, chosen, asked, journals, survey)
        finish(made, outcomes, settings["on_failure"])


def _known(source: Source) -> Source:
    """A local model by its files, which takes a moment where they are large."""
    size = sum(file.stat().st_size for file in source.local_files())
    if size > LARGE:
        say(f"reading the {size / 2**30:,.0f} GiB of `{source.name}`, to know it again")
    return source.with_content()


def _say_survey(survey: Survey, report: ReadReport) -> None:
    wanted, answered = sum(survey.wanted.values()), sum(survey.answered.values())
    say(f"{survey.prompts:,} prompts, {wanted:,} answers wanted, {answered:,} of them here already")
    if survey.repeated:
        say(f"{survey.repeated:,} prompts repeat an earlier one and share its answers")
    if report.skipped:
        say(f"{len(report.skipped):,} bad rows left out, the first: {report.skipped[0][0]}: {report.skipped[0][1]}")


def _ask_all(
    settings: Mapping[str, Any],
    folder: Folder,
    prompts: Prompts,
    chosen: list[Chosen],
    asked: list[Asked],
    journals: Mapping[str, Journal],
    survey: Survey,
) -> dict[str, Outcome]:
    """One source after the other; an engine starts only where there is something to ask."""
    outcomes: dict[str, Outcome] = {}
    with folder.failed() as failed:
        for one, choice in zip(asked, chosen, strict=True):
            name = one.source.name
            wanted, before = survey.wanted[name], survey.answered[name]
            if wanted == before:
                continue
            engine = choice.start(one.source)
            try:
                with bar(f"asking {name}", lambda wanted=wanted: wanted) as told:
                    outcomes[name] = ask(
                        one,
                        engine,
                        journals[name],
                        prompts.groups(),
                        failed,
                        give_up=settings["give_up"],
                        told=lambda so_far, before=before, told=told: told(before + so_far.answers, so_far.beside()),
                    )
            finally:
                engine.close()
            done = outcomes[name]
            say(f"{name}: {done.answers:,} answers in {done.seconds:,.1f} s, {done.beside()}")
    return outcomes
