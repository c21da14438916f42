#!/bin/sh
# FuseSFT against SFT on the best response: which overfits less?; see README.md. Run from the repository's root; a killed run continues.
set -eu
FUSERL=${FUSERL:-.venv/bin/fuserl}
$FUSERL train --multirun objective=sft_best,fusesft seed=0,1,2,3,4 data.limit=200 max_epochs=32 weights.tau=0.1 \
  optimizer.lr=5e-4 optimizer.decay=flat trainer.val_every=7 trainer.log_every=7 \
  logger=csv test.split=test test.samples=2 probe.prompts=64 probe.max_new_tokens=24 probe.score=fuserl.miniature.tasks.score output=runs/0002_overfitting
$FUSERL compare 'runs=[runs/0002_overfitting]' baseline=sft_best output=runs/0002_overfitting/compare
.venv/bin/python experiments/0002_overfitting/curves.py runs/0002_overfitting
