"""These tests need vLLM, which has an environment of its own: `make test-vllm` makes it and runs them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
collect_ignore_glob = [] if os.environ.get("FUSERL_WITH_VLLM") else ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """vLLM and what it imports warn of much that is theirs."""
    for item in items:
        if "with_vllm" in item.path.parts:
            item.add_marker(pytest.mark.filterwarnings("ignore"))


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> dict[str, Path]:
    """Folders of two small models that answer, by name."""
    import small_models

    work = tmp_path_factory.mktemp("models")
    return {"qwen3": small_models.qwen3(work), "llama": small_models.llama(work)}
