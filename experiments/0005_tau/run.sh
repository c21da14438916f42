#!/bin/sh
# The temperature of the weights; see README.md. Run from the repository's root; a killed run continues.
set -eu
FUSERL=${FUSERL:-.venv/bin/fuserl}
$FUSERL train --multirun objective=fusesft weights.tau=0.01,0.03,0.1,0.3,1 seed=0,1,2 data.part=[0,0.4] max_steps=60 \
  optimizer.lr=5e-4 logger=csv test.split=test test.samples=2 probe.prompts=64 probe.max_new_tokens=24 probe.score=fuserl.miniature.tasks.score output=runs/0005_tau/sft
$FUSERL pipeline --multirun recipe.po_tau=0.01,0.03,0.1,0.3,1 seed=0,1,2 'overrides=["logger=csv"]' output=runs/0005_tau/po
$FUSERL compare 'runs=[runs/0005_tau/sft]' 'baseline="tau=0.1"' output=runs/0005_tau/compare_sft
$FUSERL compare 'runs=[runs/0005_tau/po]' 'only={objective.name:fusepo_dpo}' 'baseline="tau=0.1"' output=runs/0005_tau/compare_po
.venv/bin/python experiments/picture.py experiments/0005_tau/figure_sft.png "FuseSFT by temperature, 95 % intervals" runs/0005_tau/compare_sft
.venv/bin/python experiments/picture.py experiments/0005_tau/figure_po.png "FusePO-DPO by temperature, 95 % intervals" runs/0005_tau/compare_po
