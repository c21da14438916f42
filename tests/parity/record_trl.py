"""Record TRL's preference losses on random log-probs, for `test_trl.py`. Run by hand where TRL is installed:

    pip install torch==2.13.0 trl==1.16.0 transformers==5.23.0
    python tests/parity/record_trl.py

TRL computes its losses inside trainer methods, so the methods are called unbound: with a stub for `self` and a stub
model that returns the given log-probs. All arithmetic is TRL's own, in float64.
"""

from __future__ import annotations

import json
from collections import defaultdict
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

OUT = Path(__file__).with_name("trl.json")
PROMPT, LONGEST, PAIRS = 3, 12, 6  # tokens of the prompt, of the longest response; pairs a case


class Accelerator:
    """One process: gathering is the identity."""

    device = torch.device("cpu")

    @staticmethod
    def gather(value: Tensor) -> Tensor:
        return value

    gather_for_metrics = gather


class Model:
    """Answers with given log-probs a token, whatever it is asked."""

    training = True

    def __init__(self, log_probs: Tensor) -> None:
        self.log_probs = log_probs

    def __call__(self, **_: object) -> SimpleNamespace:
        zeros = torch.zeros_like(self.log_probs)
        return SimpleNamespace(log_probs=self.log_probs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())


def random_pairs(seed: int) -> dict[str, Tensor]:
    """Log-probs a token of chosen and rejected responses, [2 * PAIRS, LONGEST]; zero behind a response's end."""
    random = torch.Generator().manual_seed(seed)
    num_tokens = torch.randint(1, LONGEST + 1, (2 * PAIRS,), generator=random)
    mask = torch.arange(LONGEST) < num_tokens[:, None]
    policy, reference = (
        -torch.randn(2 * PAIRS, LONGEST, generator=random, dtype=torch.float64).abs() * mask for _ in range(2)
    )
    return {"num_tokens": num_tokens, "mask": mask, "policy": policy, "reference": reference}


def dpo(pairs: dict[str, Tensor], *, loss_type: str, beta: float) -> float:
    """TRL's DPO loss, mean over pairs."""
    from trl.trainer.dpo_trainer import DPOTrainer

    mask = torch.cat([torch.zeros(2 * PAIRS, PROMPT), pairs["mask"]], dim=1).long()
    before = torch.zeros(2 * PAIRS, PROMPT - 1, dtype=torch.float64)  # predictions of the prompt's own tokens
    stub = SimpleNamespace(
        accelerator=Accelerator(),
        model=Model(before),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[loss_type],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=0.0,
        use_weighting=False,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
        maybe_activation_offload_context=nullcontext(),
    )
    chosen, rejected = pairs["reference"].sum(dim=1).chunk(2)
    inputs = {
        "input_ids": torch.zeros_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "ref_chosen_logps": chosen,
        "ref_rejected_logps": rejected,
    }
    return DPOTrainer._compute_loss(stub, Model(torch.cat([before, pairs["policy"]], dim=1)), inputs, False).item()


def simpo(pairs: dict[str, Tensor], *, beta: float, simpo_gamma: float, label_smoothing: float) -> float:
    """TRL's SimPO, mean over pairs. TRL averages log-probs over tokens before it calls its loss for SimPO."""
    from trl.experimental.cpo.cpo_trainer import CPOTrainer

    stub = SimpleNamespace(
        accelerator=Accelerator(),
        loss_type="simpo",
        alpha=0.0,
        beta=beta,
        simpo_gamma=simpo_gamma,
        label_smoothing=label_smoothing,
    )
    averages = pairs["policy"].sum(dim=1) / pairs["num_tokens"]
    losses, _, _ = CPOTrainer.cpo_loss(stub, *averages.chunk(2))
    assert losses.dtype == torch.float64
    return losses.mean().item()


def main() -> None:
    """Write `trl.json`."""
    import trl

    settings = [
        *(
            (dpo, {"loss_type": kind, "beta": beta})
            for kind in ("sigmoid", "sigmoid_norm", "ipo")
            for beta in (0.01, 0.1, 5.0)
        ),
        *(
            (simpo, {"beta": beta, "simpo_gamma": gamma, "label_smoothing": smoothing})
            for beta, gamma, smoothing in ((2.0, 1.0, 0.0), (10.0, 0.0, 0.0), (10.0, 3.0, 0.1))
        ),
    ]
    cases = []
    for seed, (oracle, hyper) in enumerate(settings):
        pairs = random_pairs(seed)
        cases.append(
            {
                "name": "-".join([oracle.__name__, *(str(value) for value in hyper.values())]),
                "loss_type": hyper.get("loss_type", "simpo"),
                "hyper": {key: value for key, value in hyper.items() if key != "loss_type"},
                "num_tokens": pairs["num_tokens"].view(2, PAIRS).tolist(),
                "policy_logps": pairs["policy"].sum(dim=1).view(2, PAIRS).tolist(),
                "reference_logps": pairs["reference"].sum(dim=1).view(2, PAIRS).tolist(),
                "loss": oracle(pairs, **hyper),
            }
        )
    head = {"trl": trl.__version__, "torch": torch.__version__, "dtype": "float64"}
    rows = ",\n".join(json.dumps(case) for case in cases)
    OUT.write_text(f'{json.dumps(head)[:-1]}, "cases": [\n{rows}\n]}}\n')
    print(f"{len(cases)} cases of trl {trl.__version__} in {OUT}")


if __name__ == "__main__":
    main()
