"""One rank of a training run: `python -m fuserl.training.worker CONFIG`, started by torchrun."""

from __future__ import annotations

import sys

from omegaconf import OmegaConf

from fuserl.errors import FuserlError
from fuserl.settings import register_resolvers
from fuserl.training.run import train

if __name__ == "__main__":
    register_resolvers()
    try:
        train(OmegaConf.load(sys.argv[1]))  # type: ignore[arg-type]
    except FuserlError as error:
        sys.exit(f"error: {error}")
