"""The miniature's groups with four more answers to each prompt: the FuseSFT model's own, graded like the others.

    PYTHONPATH=experiments/0001_miniature python experiments/0007_wrpo/own_samples.py MODEL OUTPUT SEED

WRPO reads the target's best and worst answer; `fuserl generate` keeps the sources' answers beside them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import fuserl
from fuserl.cli import run_verb
from fuserl.records.formats import read_groups
from fuserl.records.manifest import write_text_atomically

DATA = Path(fuserl.__file__).parent / "miniature" / "data"
