"""Record what mergekit makes of random models, for `test_mergekit_parity.py`. Run by hand where mergekit is installed:

    pip install -c constraints.txt mergekit==0.1.5
    python tests/merging/record_mergekit.py

The models are those of `merging_kit.family`, in several shards each; mergekit merges them from folder to folder, by its
own planner, readers and writers, in float32. Kept are, of every tensor, a few elements and two sums.
"""

from __future__ import annotations

import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

from merging_kit import family, tensors

OUT = Path(__file__).with_name("mergekit.json")
NOISE = 0.3  # of the experts: below a mean energy of 1e-6, mergekit's SCE weighs alike
KEPT = 5  # elements of a tensor, at even distances
CASES: dict[str, dict[str, Any]] = {  # name -> (ours, theirs)
    "linear": {"ours": ["merge=linear"], "method": "linear", "each": {"weight": 1 / 3}},
    "linear 1:2:1": {"ours": ["merge=linear", "merge.weights=[1,2,1]"], "method": "linear", "weights": [1, 2, 1]},
    "task_arithmetic": {"ours": ["merge=task_arithmetic"], "method": "task_arithmetic", "each": {"weight": 0.3}},
    "ties": {
        "ours": ["merge=ties"],
        "method": "ties",
        "each": {"weight": 0.2, "density": 0.6},
        "all": {"normalize": True},
    },
    "model_stock": {"ours": ["merge=model_stock"], "method": "model_stock"},
    "slerp": {"ours": ["merge=slerp", "merge.t=0.3"], "method": "slerp", "all": {"t": 0.3}, "experts": "a"},
    **{
        f"sce {select}": {
            "ours": ["merge=sce", "merge.variant=mergekit", f"merge.select={select}"],
            "method": "sce",
            "all": {"select_topk": select},
        }
        for select in (0.1, 0.5, 1.0)
    },
}


def digest(weight: Tensor) -> dict[str, Any]:
    """What is kept of a tensor."""
    flat = weight.double().flatten()
    places = torch.linspace(0, len(flat) - 1, min(KEPT, len(flat))).long()
    return {"sum": flat.sum().item(), "squares": flat.square().sum().item(), "some": flat[places].tolist()}


def merged_by_mergekit(folder: Path, case: dict[str, Any], out: Path) -> dict[str, Tensor]:
    """A folder's models by mergekit's own command."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    experts = case.get("experts", "abc")
    models = []
    for number, name in enumerate(experts):
        parameters = dict(case.get("each", {}))
        if "weights" in case:
            parameters["weight"] = case["weights"][number]
        models.append({"model": str(folder / name), "parameters": parameters})
    given = {"merge_method": case["method"], "models": models, "dtype": "float32", "parameters": case.get("all", {})}
    if case["method"] != "linear":
        given["base_model"] = str(folder / "base")
    run_merge(MergeConfiguration.model_validate(given), str(out), MergeOptions(copy_tokenizer=False, quiet=True))
    return tensors(out)


def main() -> None:
    """Merge all cases, and write."""
    recorded = {"mergekit": version("mergekit"), "torch": version("torch"), "noise": NOISE, "cases": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        family(folder, noise=NOISE)
        for title, case in CASES.items():
            there = merged_by_mergekit(folder, case, folder / title.replace(" ", "_"))
            recorded["cases"][title] = {
                "ours": case["ours"],
                "experts": case.get("experts", "abc"),
                "tensors": {key: digest(weight) for key, weight in sorted(there.items())},
            }
            print(title, len(there))
    OUT.write_text(json.dumps(recorded, indent=1))


if __name__ == "__main__":
    main()
