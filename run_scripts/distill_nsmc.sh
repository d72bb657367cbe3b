#!/usr/bin/env bash
# Makes a small student of a model of one of the train_nsmc_*.sh scripts: some of its layers, which learn from all of it.
# Then predicts the NSMC test rows with both: accuracy and rows a second. Needs a teacher of the T5 or BART family.
# Set by the environment: TEACHER, TRAIN_DATA, TEST_DATA, SAVE_PATH, ENCODER_LAYERS, DECODER_LAYERS, GPUS; further flags
# of train.py go behind the script's name.
set -euo pipefail
cd "$(dirname "$0")/.."
source run_scripts/recipe.sh
TEACHER=${TEACHER:-runs/nsmc_byt5-small}
TRAIN_DATA=${TRAIN_DATA:-data/nsmc/ratings_train.txt}
TEST_DATA=${TEST_DATA:-data/nsmc/ratings_test.txt}
SAVE_PATH=${SAVE_PATH:-runs/nsmc_student}
needs_nsmc TRAIN_DATA TEST_DATA
needs_environment
python train.py -task nsmc-prompted -train_data "$TRAIN_DATA" \
    -init_model "$TEACHER" -encoder_layers "${ENCODER_LAYERS:-3}" -decoder_layers "${DECODER_LAYERS:-1}" \
    -teacher "$TEACHER" -distill_temperature 2 -distill_weight 0.9 -save_path "$SAVE_PATH" -gpus "${GPUS:--1}" \
    -max_seq_length 512 -batch_size 32 -grad_acc 2 -max_epoch 3 -learning_rate 3e-4 -lr_scheduler linear -warmup_steps 0.05 "$@"
for model in "$TEACHER" "$SAVE_PATH"; do
    python inference.py -task nsmc-prompted -model "$model" -test_data "$TEST_DATA" -gpus "${GPUS:--1}"
done
