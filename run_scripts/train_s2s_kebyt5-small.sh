#!/usr/bin/env bash
# Fine-tunes KEByT5-small on any two-column TSV (source TAB target); as it stands, on the bundled sample.
# Set by the environment: MODEL, TRAIN_DATA, VALID_DATA, SAVE_PATH, GPUS; further flags go behind the script's name.
set -euo pipefail
cd "$(dirname "$0")/.."
source run_scripts/recipe.sh
MODEL=${MODEL:-etri-lirs/kebyt5-small-preview}
TRAIN_DATA=${TRAIN_DATA:-samples/text_normalization/train.tsv}
VALID_DATA=${VALID_DATA:-samples/text_normalization/valid.tsv}
SAVE_PATH=${SAVE_PATH:-runs/s2s_kebyt5-small}
needs_environment
python train.py -task seq2seq -train_data "$TRAIN_DATA" -valid_data "$VALID_DATA" \
    -init_model "$MODEL" -save_path "$SAVE_PATH" -gpus "${GPUS:--1}" \
    -batch_size 32 -grad_acc 2 -max_epoch 4 -optim adafactor -learning_rate 1e-3 -lr_scheduler constant \
    -warmup_steps 0.02 "$@"
