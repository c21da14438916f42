"""One rank of a training run, started by torchrun: `python -m fuserl.training.worker CONFIG`, or with settings instead.

With settings (`data.path=... trainer.nodes=2`) it is what is started on every machine of several: docs/scale.md.
"""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext

from omegaconf import OmegaConf

from fuserl.errors import FuserlError
from fuserl.settings import compose, register_resolvers
from fuserl.training.folder import RunFolder
from fuserl.training.run import named, train


def main(arguments: list[str]) -> None:
    """Train as one rank; the first of a run that no `fuserl train` has started holds the folder."""
    register_resolvers()
    launched = len(arguments) == 1 and "=" not in arguments[0]  # it holds the folder then
    cfg = OmegaConf.load(arguments[0]) if launched else named(compose("train", arguments))
    first = os.environ.get("RANK") == "0"
    with nullcontext() if launched or not first else RunFolder(cfg.output).locked():
        train(cfg)  # type: ignore[arg-type]


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except FuserlError as error:
        sys.exit(f"error: {error}")
