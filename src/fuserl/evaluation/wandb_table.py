"""The results of benchmarks in W&B: a run of its own beside the one that trained the model, numbers and tables."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fuserl.evaluation.benchmarks import results
from fuserl.evaluation.benchmarks.protocol import Result
from fuserl.reporting.window import QUIET, mode, set_aside, without_secrets
from fuserl.terminal import say

MOST_ANSWERS = 200  # rows of a benchmark's table of answers
NUMBERS = ("benchmark", "number", "value", "low", "high", "interval", "counts", "made_with", "notes")
ANSWERS = ("prompt_id", "sample", "prompt", "answer", "score", "tokens", "unfinished", "detail")


def log(folder: Path, *, project: str, name: str, group: str | None, config: Mapping[str, Any]) -> None:
    """Write all benchmarks of a folder into its W&B run, which is opened anew each time and holds the newest state.

    W&B that cannot be reached costs nothing but the window: the run is kept offline.

    Args:
        group: of W&B's runs; the run that trained the model names it.
    """
    import wandb

    folder = folder.resolve()
    run_id = hashlib.sha256(str(folder).encode()).hexdigest()[:16]

    def opened(how: str) -> Any:
        """The run, by one of W&B's modes; what an earlier offline run of it left is set aside."""
        if how in ("offline", "dryrun"):
            set_aside(folder, run_id)
        return wandb.init(
            project=project,
            group=group,
            job_type="evaluate",
            name=name,
            id=run_id,
            resume="allow" if how == "online" else None,
            reinit="create_new",
            mode=how,  # type: ignore[arg-type]
            dir=str(folder),
            config=without_secrets(dict(config)),
            settings=wandb.Settings(init_timeout=60, finish_timeout=60, **QUIET),
        )

    try:
        run = opened(mode())
    except Exception as error:  # whatever W&B raises: the evaluation does not depend on it
        if mode() != "online":
            raise
        say(f"W&B cannot be reached ({type(error).__name__}); the run is kept offline, `wandb sync` sends it later")
        wandb.teardown()
        run = opened("offline")
    found = results.all_in(folder)
    try:
        run.log({"benchmarks": wandb.Table(list(NUMBERS), _numbers(found), allow_mixed_types=True)})
        for benchmark in found:
            rows = _answers(folder / benchmark)
            run.log({f"answers/{benchmark}": wandb.Table(list(ANSWERS), rows, allow_mixed_types=True)})
        for benchmark, result in found.items():
            values = results.numbers_of(result)
            run.summary.update({f"evaluation/{benchmark}/{key}": value for key, value in values.items()})
    finally:
        run.finish()


def _numbers(found: Mapping[str, Result]) -> list[list[Any]]:
    return [
        [name, one.name, one.value, one.low, one.high, one.over, str(dict(result.counts)), str(dict(result.about)), " ".join(result.notes)]
        for name, result in found.items()
        for one in result.numbers
    ]  # fmt: skip


def _answers(folder: Path) -> list[list[Any]]:
    return [
        [
            row.prompt_id,
            row.sample,
            row.prompt,
            row.answer,
            row.score,
            row.tokens,
            row.unfinished,
            str(dict(row.detail)),
        ]
        for row in results.graded(folder)[:MOST_ANSWERS]
    ]
