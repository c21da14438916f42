"""Fixtures for all tests; `kit` is importable from every test module."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numeric  # after the environment above
from hypothesis import settings

numeric.only_where_there_are_arrays()
settings.register_profile("steady", deadline=None)  # a busy machine is no failure
settings.load_profile("steady")
