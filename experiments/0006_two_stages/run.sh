#!/bin/sh
# FuseSFT alone, FusePO alone, both; see README.md. Run from the repository's root; a killed run continues.
set -eu
FUSERL=${FUSERL:-.venv/bin/fuserl}
$FUSERL pipeline --multirun recipe=miniature,miniature_po seed=0,1,2 'overrides=["logger=csv"]' output=runs/0006_two_stages
$FUSERL pipeline --multirun recipe=miniature_po recipe.share=0 recipe.po_steps=160 seed=0,1,2 'overrides=["logger=csv"]' output=runs/0006_two_stages
$FUSERL train --multirun objective=fusesft weights.tau=0.1 max_steps=160 seed=0,1,2 optimizer.lr=5e-4 logger=csv test.split=test test.samples=2 probe.prompts=64 probe.max_new_tokens=24 probe.score=fuserl.miniature.tasks.score output=runs/0006_two_stages
$FUSERL compare 'runs=[runs/0006_two_stages]' by=[objective.name,target.path,max_steps,data.part] 'baseline="objective=fusesft,max_steps=160"' output=runs/0006_two_stages/compare
.venv/bin/python experiments/picture.py experiments/0006_two_stages/figure.png "One stage and two, 95 % intervals" runs/0006_two_stages/compare
