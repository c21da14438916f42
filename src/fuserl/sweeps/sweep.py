"""`fuserl train --multirun`, `fuserl pipeline --multirun`: plan, launch, watch, tell what failed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from fuserl.errors import FuserlError
from fuserl.records.journal import locked
from fuserl.records.manifest import write_text_atomically
from fuserl.settings import config_folder
from fuserl.sweeps.job import task
from fuserl.sweeps.plan import Sweep, planned
from fuserl.sweeps.progress import say_result, states, watching
from fuserl.terminal import say

SWEEP = "sweep.json"


def sweep(verb: str, overrides: Sequence[str]) -> Path:
    """Run every job of the sweep that is not finished yet.

    Args:
        overrides: of the verb and of Hydra; `key=a,b` is a choice.

    Returns:
        The sweep's folder, which holds one folder a job.

    Raises:
        FuserlError: a setting is wrong (no job has been started then), or jobs failed (all others are finished then).
    """
    found = planned(verb, overrides)
    found = replace(found, folder=found.folder.absolute())
    if found.jobs is not None:
        found = replace(found, jobs=tuple(replace(job, folder=job.folder.absolute()) for job in found.jobs))
        say(f"{len(found.jobs)} jobs in {found.folder}")
    with locked(found.folder):
        _remember(found)
        with watching(found):
            gave_up = _launch(found)
        ended = states(found)
        say_result(ended, found)
    failed = [state for state in ended if state.what != "done"]
    if gave_up and (failed or not ended):
        raise FuserlError(
            f"{len(failed)} of {len(ended)} jobs are not done, and their launcher gave up ({gave_up})",
            where=str(found.folder),
            hint="what a cluster still runs goes on there; the same command waits for it, and continues the others",
        )
    if failed:
        raise FuserlError(
            f"{len(failed)} of {len(ended)} jobs failed; the first, `{failed[0].job.label}`: {failed[0].detail}",
            where=str(failed[0].job.folder),
            hint="`log.txt` there has the whole story; the same command tries the failed ones again",
        )
    say(f"all {len(ended)} jobs are done; look at them with: fuserl compare 'runs=[{found.folder}]'")
    return found.folder


def _remember(found: Sweep) -> None:
    """`sweep.json`: the jobs of this sweep and of earlier ones in the same folder."""
    path = found.folder / SWEEP
    before = json.loads(path.read_text(encoding="utf-8"))["jobs"] if path.exists() else []
    jobs = {job["folder"]: job for job in before}
    for job in found.jobs or ():
        jobs[job.folder.name] = {"folder": job.folder.name, "label": job.label, "overrides": list(job.overrides)}
    told = {"verb": found.verb, "overrides": list(found.overrides), "jobs": list(jobs.values())}
    write_text_atomically(path, json.dumps(told, indent=1, ensure_ascii=False))


def _launch(found: Sweep) -> str:
    """Let Hydra's sweeper and launcher run the jobs.

    Returns:
        Why a launcher gave up before all had ended, as one of a cluster does that lost a job; else nothing.
    """
    import hydra

    output = str(found.folder).replace("\\", "\\\\").replace("'", "\\'")
    folders = (f"output='{output}'", f"hydra.sweep.dir='{output}'")
    given = [one for one in found.overrides if not one.startswith("output=")]
    before = sys.argv
    sys.argv = [f"fuserl {found.verb}", *given, *folders, "--multirun"]
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    try:
        hydra.main(version_base="1.3", config_path=str(config_folder()), config_name=found.verb)(
            partial(task, found.verb)
        )()
    except Exception as error:  # launchers raise what they like; what a job raises stands in its folder
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return " ".join([type(error).__name__ + ":", *lines[:2]])[:400]
    finally:
        sys.argv = before
    return ""
