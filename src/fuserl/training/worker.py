"""One rank of a training run, started by torchrun: `python -m fuserl.training.worker CONFIG`, or with settings instead.

With settings (`data.path=... trainer.nodes=2`) it is what is started on every machine of several: docs/scale.md.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import nullcontext

from omegaconf import OmegaConf

from fuserl.errors import FuserlError, Stopped
from fuserl.settings import compose, register_resolvers
from fuserl.terminal import end_in_order, say
from fuserl.training.agent import die_with_parent, write_down
from fuserl.training.folder import RunFolder
from fuserl.training.run import named, train


def launched(arguments: list[str]) -> bool:
    """Whether `fuserl train` has started the ranks: it holds the folder, and tells how they ended."""
    return len(arguments) == 1 and "=" not in arguments[0]


def main(arguments: list[str]) -> None:
    """Train as one rank; the first of a run that no `fuserl train` has started holds the folder."""
    die_with_parent()
    register_resolvers()
    cfg = OmegaConf.load(arguments[0]) if launched(arguments) else named(compose("train", arguments))
    first = os.environ.get("RANK") == "0"
    with nullcontext() if launched(arguments) or not first else RunFolder(cfg.output).locked():
        train(cfg)  # type: ignore[arg-type]


if __name__ == "__main__":
    end_in_order()
    try:
        main(sys.argv[1:])
    except FuserlError as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends already
        told = write_down(error) and launched(sys.argv[1:])
        sys.exit(1 if told else f"error: {error}")
    except Stopped as stopped:
        say(str(stopped))
        sys.exit(stopped.status)
