#!/usr/bin/env bash
# Fine-tunes mT5-small on translations in several directions, and scores the test rows by direction. The files are TSV with
# a first line: source_language, target_language (codes such as ko and en), source, target.
# Set by the environment: MODEL, TRAIN_DATA, TEST_DATA, SAVE_PATH, GPUS; further flags go behind the script's name.
set -euo pipefail
cd "$(dirname "$0")/.."
source run_scripts/recipe.sh
MODEL=${MODEL:-google/mt5-small}
TRAIN_DATA=${TRAIN_DATA:-data/translation/train.tsv}
TEST_DATA=${TEST_DATA:-data/translation/test.tsv}
SAVE_PATH=${SAVE_PATH:-runs/translation_mt5-small}
needs_files "write your translations there, in columns source_language, target_language, source, target" TRAIN_DATA TEST_DATA
needs_environment
python train.py -task translation -train_data "$TRAIN_DATA" -valid_data_proportions 0.02 -test_data "$TEST_DATA" \
    -source_column source -target_column target \
    -source_language "{{ source_language }}" -target_language "{{ target_language }}" \
    -input_template "translate {{ source_language | language_name }} to {{ target_language | language_name }}: {{ source }}" \
    -init_model "$MODEL" -save_path "$SAVE_PATH" -gpus "${GPUS:--1}" \
    -batch_size 32 -grad_acc 2 -max_epoch 5 -optim adafactor -learning_rate 1e-3 -lr_scheduler constant -warmup_steps 0.02 "$@"
