"""All cores for the tokenizer, without what threads do to forked processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

SWITCH, OURS = "TOKENIZERS_PARALLELISM", "off"  # users write true or false
_process = os.getpid()
os.environ.setdefault(SWITCH, OURS)  # one core outside `all_cores`, and no warning at every fork


@contextmanager
def all_cores() -> Iterator[None]:
    """Encode batches on all cores in here; a user's own setting of the switch wins.

    A forked child has the tokenizer's pool without its threads and would wait for them for ever: it keeps to one core.
    """
    if os.environ.get(SWITCH) != OURS or os.getpid() != _process:
        yield
        return
    os.environ[SWITCH] = "true"
    try:
        yield
    finally:
        os.environ[SWITCH] = OURS
