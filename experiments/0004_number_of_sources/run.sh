#!/bin/sh
# One source to four; see README.md. Run from the repository's root; a killed run continues.
set -eu
FUSERL=${FUSERL:-.venv/bin/fuserl}
$FUSERL pipeline --multirun \
  'recipe.sources=[gemma2],[llama],[mistral],[qwen2],[gemma2,llama],[mistral,qwen2],[gemma2,llama,mistral],[llama,mistral,qwen2],[gemma2,llama,mistral,qwen2]' \
  seed=0,1,2 'overrides=["logger=csv"]' output=runs/0004_number_of_sources
$FUSERL compare 'runs=[runs/0004_number_of_sources]' 'only={objective.name:fusepo_dpo}' output=runs/0004_number_of_sources/compare
.venv/bin/python experiments/0004_number_of_sources/by_number.py runs/0004_number_of_sources
