"""Libraries' advice that does not apply here is silenced; what matters is printed by `summary.say`."""

from __future__ import annotations

import logging
import warnings

import transformers


def quiet() -> None:
    """Call before a verb works; idempotent."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for package in ("lightning", "torch", "wandb", "peft"):
        warnings.filterwarnings("ignore", module=package)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
