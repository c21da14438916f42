"""The verb `evaluate`: a model on benchmarks, or on prompts of a data set that it never saw."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from fuserl.evaluation.held_out import held_out
from fuserl.evaluation.places import model_in
from fuserl.evaluation.suite import suite
from fuserl.settings import plain

OF_BENCHMARKS = ("benchmark", "benchmarks", "decoding", "engine", "context", "system", "on_failure", "give_up",
                 "trust_remote_code", "train_data", "papers", "wandb")  # fmt: skip


def evaluate(cfg: DictConfig) -> Path:
    """Evaluate as `conf/evaluate.yaml` says: benchmarks where any are named, else the split of `data`.

    Returns:
        The folder written; `compare` reads it.

    Raises:
        FuserlError: model, questions or settings cannot work; what was answered and graded is kept.
    """
    given = plain(cfg)
    found = model_in(given["model"])
    given["model"] = found.path
    if given["benchmarks"]:
        return suite(given, found)
    return held_out({key: value for key, value in given.items() if key not in OF_BENCHMARKS})
