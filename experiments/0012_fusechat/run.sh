#!/bin/sh
# FuseLLM, FuseChat's pairs and its merges against CLM; see README.md. Run from the repository's root; a killed run continues.
set -eu
FUSERL=${FUSERL:-.venv/bin/fuserl}
PYTHON=${PYTHON:-.venv/bin/python}
OUT=${OUT:-runs/0012_fusechat}
BASE=src/fuserl/miniature/target
$PYTHON experiments/0012_fusechat/sources.py $OUT/sources
QUIET='overrides={distill: ["logger=csv"]}'
PAIR='overrides={first: ["logger=csv"], second: ["logger=csv"]}'
SOURCES="recipe.first=$OUT/sources/gemma2 recipe.second=$OUT/sources/qwen2"
for SEED in 0 1 2; do
  RUN=$OUT/seed-$SEED
  $FUSERL train objective=sft_best optimizer.lr=5e-4 max_steps=120 seed=$SEED probe.prompts=0 logger=csv output=$RUN/clm
  for SHARE in 0.9 0.5; do
    $FUSERL pipeline recipe=fusellm_miniature $SOURCES recipe.share=$SHARE "$QUIET" seed=$SEED output=$RUN/fusellm-$SHARE
    $FUSERL pipeline recipe=fusechat_miniature $SOURCES recipe.share=$SHARE "$PAIR" seed=$SEED output=$RUN/fusechat-$SHARE
  done
  MODELS="clm=$RUN/clm/model"
  for SHARE in 0.9 0.5; do
    PAIRS=$RUN/fusechat-$SHARE
    MODELS="$MODELS fusellm_$SHARE=$RUN/fusellm-$SHARE/02_distill/model gemma2_$SHARE=$PAIRS/02_first/model qwen2_$SHARE=$PAIRS/03_second/model"
    for MERGE in varm linear ties; do
      $FUSERL merge base=$BASE "experts=[$PAIRS/02_first/model,$PAIRS/03_second/model]" merge=$MERGE output=$PAIRS/$MERGE
      MODELS="$MODELS ${MERGE}_$SHARE=$PAIRS/$MERGE"
    done
    for VARIANT in mergekit authors_code; do
      $FUSERL merge base=$BASE "experts=[$PAIRS/02_first/model,$PAIRS/03_second/model]" merge=sce merge.variant=$VARIANT output=$PAIRS/sce_$VARIANT
      MODELS="$MODELS sce_${VARIANT}_$SHARE=$PAIRS/sce_$VARIANT"
    done
    MODELS="$MODELS sce_$SHARE=$PAIRS/04_merge"
  done
  for ONE in pivot=$BASE $MODELS; do
    $FUSERL evaluate name=${ONE%%=*} model=${ONE#*=} seed=$SEED samples=2 max_new_tokens=24 score=fuserl.miniature.tasks.score output=$OUT/evaluated/${ONE%%=*}-$SEED
  done
done
$FUSERL compare "runs=[$OUT/evaluated]" by=[name] 'baseline="clm"' output=$OUT/compare
$PYTHON experiments/picture.py experiments/0012_fusechat/figure.png "Fusing by distributions and by weights, 95 % intervals" $OUT/compare
