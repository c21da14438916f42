#!/bin/sh
# FusePO against WRPO; see README.md. Run from the repository's root; a killed run continues.
set -eu
FUSERL=${FUSERL:-.venv/bin/fuserl}
export PYTHONPATH=experiments/0001_miniature
for seed in 0 1 2; do
  $FUSERL pipeline seed=$seed 'overrides=["logger=csv"]' output=runs/0007_wrpo/start_$seed
  .venv/bin/python experiments/0007_wrpo/own_samples.py runs/0007_wrpo/start_$seed/01_sft/model runs/0007_wrpo/data_$seed $seed
done
common="data=own data.path=runs/0007_wrpo/data_\${seed} target.path=runs/0007_wrpo/start_\${seed}/01_sft/model \
  data.part=[0.4,1] weights.tau=0.1 max_steps=100 optimizer.lr=3e-4 logger=csv test.split=test test.samples=2 probe.prompts=64 probe.max_new_tokens=24 probe.score=fuserl.miniature.tasks.score seed=0,1,2 output=runs/0007_wrpo/runs"
$FUSERL train --multirun objective=fusepo_dpo objective.beta=0.3 objective.nll=1 'data.sources=[gemma2,llama,mistral,qwen2]' $common
$FUSERL train --multirun objective=wrpo objective.beta=0.3 objective.nll=1 objective.alpha=0,0.1,0.5 target_source=target $common
$FUSERL compare 'runs=[runs/0007_wrpo/runs]' by=[objective.name,objective.alpha] baseline=fusepo_dpo output=runs/0007_wrpo/compare
.venv/bin/python experiments/picture.py experiments/0007_wrpo/figure.png "FusePO against WRPO, 95 % intervals" runs/0007_wrpo/compare
