"""SIGKILL at any moment of `fuserl merge`: nothing half-written is ever its output, and the end is that of an undisturbed run."""

from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path

import pytest
from forking import Nursery
from merging_kit import family

KILLS = 6
OWN = ("seconds", "peak_memory_mb")  # of a manifest: a run's own


@pytest.fixture(scope="module")
def nursery(tmp_path_factory):
    nursery = Nursery(
        tmp_path_factory.mktemp("nursery"), "fuserl.merging.merge", "transformers.models.llama.modeling_llama"
    )
    yield nursery
    nursery.close()


def contents(folder: Path) -> dict[str, object]:
    """File -> what is in it."""
    found: dict[str, object] = {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
    told = json.loads((folder / "manifest.json").read_text())
    return found | {"manifest.json": {name: value for name, value in told.items() if name not in OWN}}


def require_whole(folder: Path, wanted: dict[str, object]) -> None:
    """Nothing is missing, and nothing is left of the making."""
    assert contents(folder) == wanted


def undisturbed(nursery: Nursery, given: list[str], out: Path) -> dict[str, object]:
    """What the run leaves; the folder is gone afterwards."""
    assert nursery.run("merge", given)
    found = contents(out)
    shutil.rmtree(out)
    return found


def test_killed_and_run_again(nursery, tmp_path):
    out, part = tmp_path / "out", tmp_path / "out.part"
    given = [*family(tmp_path, "abc", num_hidden_layers=8, shard="40KB"), "merge=sce", "merge.unit=layer"]
    given += ["merge.select=0.3", "shard_gb=1.0e-5", "reload_gb=0", f"output={out}"]
    started = time.monotonic()
    wanted = undisturbed(nursery, given, out)
    longest = time.monotonic() - started
    assert sum(name.endswith(".safetensors") for name in wanted) > 5

    rng, unfinished, kills = random.Random(6), 0, 0
    while kills < KILLS or not unfinished:
        assert kills < 10 * KILLS, "no kill came while it was writing"
        kills += not nursery.run("merge", given, kill_after=rng.uniform(0, longest))
        if out.exists():  # a kill may come behind the last step, and a run may be through before it
            require_whole(out, wanted)
            shutil.rmtree(out)
        else:
            unfinished += any(part.glob("*.safetensors"))
    assert nursery.run("merge", given)
    require_whole(out, wanted)
    assert not part.exists()


def test_a_folder_that_was_killed_before_it_got_its_name_is_made_anew(nursery, tmp_path):
    """Between the last two steps: all is written, the lock has gone."""
    out = tmp_path / "out"
    given = [*family(tmp_path, "ab"), "reload_gb=0", f"output={out}"]
    assert nursery.run("merge", given)
    wanted = contents(out)
    out.rename(tmp_path / "out.part")
    assert nursery.run("merge", given)
    require_whole(out, wanted)
