#!/usr/bin/env bash
# Pretrains a small T5 on the texts of the NSMC reviews: tokenizer, span corruption, fine-tuning on some labelled
# reviews, and beside it the same model fine-tuned from scratch with the same steps. Ends with the accuracy of both.
# Up to half an hour of one CPU core.
# Set by the environment: TRAIN_DATA, TEST_DATA, CORPUS (other texts, a document a line), SAVE_PATH, MODEL (a preset),
# VOCAB (tokens), STEPS (of the pretraining, a multiple of 4), ROWS (labelled reviews), EVERY (10 = every tenth test
# row), SEEDS, GPUS; further flags of pretrain.py go behind the script's name.
set -euo pipefail
cd "$(dirname "$0")/.."
source run_scripts/recipe.sh
TRAIN_DATA=${TRAIN_DATA:-data/nsmc/ratings_train.txt}
TEST_DATA=${TEST_DATA:-data/nsmc/ratings_test.txt}
SAVE_PATH=${SAVE_PATH:-runs/pretrain_nsmc}
STEPS=${STEPS:-3000}
needs_nsmc TRAIN_DATA TEST_DATA
needs_environment
mkdir -p "$SAVE_PATH"
if [ -z "${CORPUS:-}" ]; then
    CORPUS=$SAVE_PATH/reviews.txt
    tail -n +2 "$TRAIN_DATA" | cut -f2 > "$CORPUS"
fi
[ -e "$SAVE_PATH/tokenizer" ] ||
    python train_tokenizer.py -data "$CORPUS" -save_path "$SAVE_PATH/tokenizer" -task nsmc-naive \
        -vocab_size "${VOCAB:-4000}"
model=(-config_path "${MODEL:-t5-mini}" -tokenizer "$SAVE_PATH/tokenizer")
python pretrain.py -corpus "$CORPUS" "${model[@]}" -save_path "$SAVE_PATH/pretrained" -gpus "${GPUS:--1}" \
    -resume_checkpoint auto -max_steps "$STEPS" -valid_every "$((STEPS / 4))" -max_seq_length 64 -batch_size 32 \
    -noise_density 0.3 -optim adamwscale -learning_rate 2e-2 -lr_scheduler linear -warmup_steps 0.1 -dropout 0 "$@"
for seed in ${SEEDS:-1}; do
    for start in pretrained scratch; do
        begin=("${model[@]}")
        if [ "$start" = pretrained ]; then begin=(-init_model "$SAVE_PATH/pretrained/best" -dropout 0.1); fi
        python train.py -task nsmc-naive -train_data "$TRAIN_DATA" -train_rows "${ROWS:-10000}" "${begin[@]}" \
            -save_path "$SAVE_PATH/$start-$seed" -gpus "${GPUS:--1}" -resume_checkpoint auto -seed "$seed" \
            -valid_data_proportions 0.005 -max_seq_length 96 -batch_size 50 -max_epoch 3 -optim adamwscale \
            -learning_rate 1e-2 -lr_scheduler linear -warmup_steps 0.05
        python inference.py -task nsmc-naive -model "$SAVE_PATH/$start-$seed" -test_data "$TEST_DATA:${EVERY:-10}" \
            -gpus "${GPUS:--1}" -label_decoding score -save_report "$SAVE_PATH/$start-$seed.json" > /dev/null
    done
done
python - "$SAVE_PATH" <<'PYTHON'
import json, pathlib, sys

for start in ("pretrained", "scratch"):
    found = sorted(pathlib.Path(sys.argv[1]).glob(f"{start}-*.json"))
    print(start, " ".join(f"{json.loads(path.read_text())['metrics']['accuracy']:.4f}" for path in found))
PYTHON
