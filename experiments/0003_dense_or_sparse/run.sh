#!/bin/sh
# Dense against sparse preference; see README.md. Run from the repository's root; a killed run continues.
set -eu
FUSERL=${FUSERL:-.venv/bin/fuserl}
$FUSERL pipeline --multirun recipe.po=fusepo_dpo,fusepo_simpo,fusepo_rloo recipe.po_weights=best,uniform,softmax seed=0,1,2 \
  'overrides=["logger=csv"]' output=runs/0003_dense_or_sparse
for po in fusepo_dpo fusepo_simpo fusepo_rloo; do
  $FUSERL compare 'runs=[runs/0003_dense_or_sparse]' "only={objective.name:$po}" baseline=best output=runs/0003_dense_or_sparse/compare_$po
done
.venv/bin/python experiments/picture.py experiments/0003_dense_or_sparse/figure.png "Dense against sparse, 95 % intervals" runs/0003_dense_or_sparse/compare_fusepo_*
