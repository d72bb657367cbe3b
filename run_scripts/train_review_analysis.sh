#!/usr/bin/env bash
# Fine-tunes KEByT5-small to find the keywords of reviews, and once more to tell the sentiment about each, then analyses
# other reviews. docs/reviews.md says what the files hold; LABELS are the keywords, as -label_map takes them, and
# NO_KEYWORD the one of reviews without any (empty = none).
# Set by the environment: MODEL, LABELS, NO_KEYWORD, KEYWORD_DATA, VALID_DATA, SENTIMENT_DATA, TEST_DATA, SAVE_PATH, GPUS;
# further flags, of both trainings, go behind the script's name.
set -euo pipefail
cd "$(dirname "$0")/.."
source run_scripts/recipe.sh
MODEL=${MODEL:-etri-lirs/kebyt5-small-preview}
LABELS=${LABELS:-1=가격,2=품질,3=배송,4=디자인,5=서비스,0=없음}
NO_KEYWORD=${NO_KEYWORD-없음}
KEYWORD_DATA=${KEYWORD_DATA:-data/reviews/keywords_train.jsonl}
VALID_DATA=${VALID_DATA:-data/reviews/keywords_valid.jsonl}
SENTIMENT_DATA=${SENTIMENT_DATA:-data/reviews/sentiments_train.jsonl}
TEST_DATA=${TEST_DATA:-data/reviews/reviews_test.jsonl}
SAVE_PATH=${SAVE_PATH:-runs/review_analysis}
needs_files "they are reviews of your own, see docs/reviews.md" KEYWORD_DATA VALID_DATA SENTIMENT_DATA TEST_DATA
needs_environment
training=(-init_model "$MODEL" -gpus "${GPUS:--1}" -batch_size 32 -grad_acc 2 -max_epoch 5 -optim adafactor
    -learning_rate 1e-3 -lr_scheduler constant -warmup_steps 0.02)
python train.py -task multi-label -label_map "$LABELS" -train_data "$KEYWORD_DATA" -valid_data "$VALID_DATA" \
    -monitor samples_f1 -save_path "$SAVE_PATH/keywords" "${training[@]}" "$@"
python train.py -task keyword-sentiment -train_data "$SENTIMENT_DATA" -valid_data_proportions 0.05 \
    -save_path "$SAVE_PATH/sentiments" "${training[@]}" "$@"
python analyze.py -keyword_model "$SAVE_PATH/keywords" -sentiment_model "$SAVE_PATH/sentiments" -data "$TEST_DATA" \
    -thresholds "$VALID_DATA" -no_keyword "$NO_KEYWORD" -gpus "${GPUS:--1}" \
    -save_output "$SAVE_PATH/analyses.jsonl" -save_report "$SAVE_PATH/report.json" -save_page "$SAVE_PATH/page.html"
