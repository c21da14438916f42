"""The verb `select`: groups in; clean, split, mixed groups out, with a report of everything dropped and why."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from fuserl import settings
from fuserl.curation.folder import FREE, SelectFolder
from fuserl.curation.gather import gather
from fuserl.curation.keep import Keep
from fuserl.curation.ledger import of_rules
from fuserl.curation.planned import Planned, planned
from fuserl.curation.report import page, terminal
from fuserl.curation.sifting import Left, Sifted, sift
from fuserl.curation.split import Splitting, together
from fuserl.curation.staging import stage
from fuserl.curation.texts import excerpt
from fuserl.curation.written import export_pairs, write
from fuserl.errors import FuserlError
from fuserl.records.manifest import write_text_atomically, written_atomically
from fuserl.settings import plain
from fuserl.terminal import say, say_table


def select(cfg: DictConfig) -> Path:
    """Select as `conf/select.yaml` says; a finished folder is left alone, an unfinished one is continued.

    Returns:
        The folder, with `sft/`, `po/`, `report.html` and `report.json` in it.

    Raises:
        FuserlError: settings or data cannot work, or nothing is left.
    """
    given = plain(cfg)
    plan = planned(given)
    folder = SelectFolder(given["output"] or Path("runs") / settings.digest("select", given, FREE))
    with folder.locked():
        contents = folder.open(given, plan.inputs)
        if folder.finished():
            folder.clear()
            say(f"{folder.path} is finished already; nothing to do")
            return folder.path
        report = _selected(plan, folder, contents, trl=given["trl"])
        page(report, folder.page)
        write_text_atomically(folder.report, json.dumps(report, indent=1, ensure_ascii=False, default=str))
        folder.clear()
    for table in terminal(report):
        say_table(table)
    for caution in _cautions(report):
        say(caution)
    say(f"done: {folder.page}")
    return folder.path


def _selected(plan: Planned, folder: SelectFolder, contents: Mapping[str, str], *, trl: bool) -> dict[str, Any]:
    """All steps in turn, each of which finds what it has done before."""
    work = folder.work
    facts = gather(plan.inputs, work / "groups")
    _require_known_domains(plan, dict(facts["prompts"]))
    sifted = sift(plan.steps, work / "groups", work / "rules")
    same = together(work / "groups", lambda prompt_id: prompt_id not in sifted.gone, plan.same_side)
    splitting = Splitting(same, plan.validation_fraction)
    staged = stage(plan, Left(work / "groups", sifted), splitting, work / "piles")
    steps = of_rules(facts, sifted.counts, staged["clean"])
    _require_some(staged, steps)
    written = write(work / "piles", folder.path, plan.mixtures, {"inputs": dict(contents)})
    pairs = export_pairs(folder.path, lambda domain: plan.protocol(domain).po) if trl else {}
    _list_dropped(folder)
    return _report(plan, contents, facts, sifted, staged, steps, written) | {"trl_pairs": pairs}


def _require_known_domains(plan: Planned, there: Mapping[str, int]) -> None:
    """Mixtures and rules name domains that the data has; found before the rules take their time.

    Raises:
        FuserlError: one does not.
    """
    hint = (
        f"the data has {', '.join(f'{number} prompts of `{excerpt(name)}`' for name, number in sorted(there.items()))}"
    )
    for side, mixture in plan.mixtures.items():
        if mixture.by == "domain" and (unknown := sorted(name for name in mixture.named if name not in there)):
            raise FuserlError(f"the data has no domain `{unknown[0]}`", where=f"`mixture.{side}`", hint=hint)
    for step in plan.steps:
        if step.domains and not step.domains & there.keys():
            raise FuserlError(
                f"the data has no domain that the rule `{step.name}` is for",
                where=f"`rules.{step.name}.only`",
                hint=hint,
            )


def _report(
    plan: Planned,
    contents: Mapping[str, str],
    facts: Mapping[str, Any],
    sifted: Sifted,
    staged: Mapping[str, Any],
    steps: list[dict[str, Any]],
    written: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    sides = {}
    for name, pile in staged["piles"].items():
        own = dict(written[name])
        sides[name] = {**pile, "mixture": own.pop("mixture"), "digest": own.pop("digest"), "written": own}
    return {
        "inputs": {
            one.name: {"path": one.path, "digest": contents[one.name], **facts["read"][one.name]} for one in plan.inputs
        },
        "bad_rows": facts["skipped"],
        "steps": steps,
        "clean": staged["clean"],
        "together": staged["together"],
        "sides": sides,
        "windows": {domain: _window(plan.protocol(domain).po) for domain in staged["clean"]["prompts"]},
        "measures": staged["measures"],
        "findings": sifted.findings,
        "examples": sifted.examples,
    }


def _window(keep: Keep | None) -> list[float | None]:
    """The limits of a protocol's gaps, where it has any."""
    return [getattr(keep, "min_gap", None), getattr(keep, "max_gap", None)]


def _require_some(staged: Mapping[str, Any], steps: list[dict[str, Any]]) -> None:
    """Something must be left to train on.

    Raises:
        FuserlError: nothing is.
    """
    if any(staged["piles"][f"{side}/train"]["kept"]["prompts"] for side in ("sft", "po")):
        return
    reasons = [
        f"{number} x {why}" for side in ("sft", "po") for _, why, number in staged["piles"][f"{side}/train"]["dropped"]
    ]
    dropped = [f"{sum(row[1] for row in one['prompts'].values())} by rule {one['step']}" for one in steps]
    said = [text for text in dropped if not text.startswith("0 ")] + reasons
    raise FuserlError(
        "no prompt is left to train on",
        where="; ".join(said[:6]) or "all prompts are held out",
        hint="loosen the rules or the protocol; the folder's `work/` lists what was dropped",
    )


def _cautions(report: Mapping[str, Any]) -> list[str]:
    """What a person should see at once: domains of which a side keeps nothing, and quotas that were not met."""
    found = []
    for name, side in report["sides"].items():
        if not name.endswith("/train"):
            continue
        for domain, number in side["given"]["prompts"].items():
            if not side["kept"]["prompts"].get(domain):
                why = "; ".join(f"{n} x {why}" for place, why, n in side["dropped"] if place == domain)
                found.append(f"{name}: none of {number} prompts of `{excerpt(domain)}` is left ({why})")
        found += [
            f"{name}: {given} prompts of `{excerpt(part)}` given, {asked} were asked for"
            for part, (asked, _, given) in side["mixture"].items()
            if given < asked
        ]
    return found


def _list_dropped(folder: SelectFolder) -> None:
    """`dropped.jsonl`: step, prompt_id, domain, source, sample, why; of rules, then protocols, then mixtures."""
    keys = ("step", "prompt_id", "domain", "source", "sample", "why")
    lists = sorted((folder.work / "rules").glob("*.jsonl"))
    with written_atomically(folder.dropped) as file:
        for path in [*lists, folder.work / "piles" / "dropped.jsonl", folder.work / "piles" / "mixture.jsonl"]:
            with path.open(encoding="utf-8") as lines:
                for line in lines:
                    file.write(json.dumps(dict(zip(keys, json.loads(line), strict=True))) + "\n")
