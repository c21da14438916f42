"""What docs/clusters.md tells to type is composed as it stands there; `tests/clusters` runs it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from fuserl.settings import compose
from fuserl.sweeps.plan import planned

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "clusters.md").read_text()
COMMANDS = re.findall(r"^fuserl (\w+) ((?:.*\\\n)*.*)$", PAGE, re.MULTILINE)


def test_the_page_has_commands():
    assert [verb for verb, _ in COMMANDS] == ["train", "train", "generate", "score"]


@pytest.mark.parametrize(("verb", "rest"), COMMANDS)
def test_commands_of_the_page_are_composed(verb, rest):
    words = [word for word in shlex.split(rest.replace("\\\n", " "), comments=True) if word != "..."]
    if "--multirun" in words:
        (launcher,) = [word for word in words if word.startswith("hydra/launcher=")]
        if launcher == "hydra/launcher=slurm":
            pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
        else:
            pytest.importorskip("hydra_plugins.hydra_ray_launcher")
        found = planned(verb, [word for word in words if word != "--multirun"])
        assert len(found.jobs or ()) == 6
    else:
        cfg = compose(verb, [*words, *(["data.path=x"] if verb in ("generate", "score") else [])])
        assert "ray" in str(cfg)


def test_every_script_of_the_page_is_shell():
    (script,) = re.findall(r"```sh\n(#!/bin/bash\n.*?)```", PAGE, re.DOTALL)
    assert "fuserl.training.worker" in script
    options = re.findall(r"^#SBATCH --([a-z-]+)", script, re.MULTILINE)
    assert options.index("signal") > 0
    assert "requeue" in options
