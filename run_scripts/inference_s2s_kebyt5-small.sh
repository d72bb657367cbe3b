#!/usr/bin/env bash
# Predicts a TSV with the model of train_s2s_kebyt5-small.sh (beam search) and scores it where there are references.
# Set by the environment: MODEL, TEST_DATA, OUTPUT (prefix of the files written), GPUS; further flags go behind.
set -euo pipefail
cd "$(dirname "$0")/.."
source run_scripts/recipe.sh
MODEL=${MODEL:-runs/s2s_kebyt5-small/best}
TEST_DATA=${TEST_DATA:-samples/text_normalization/test.tsv}
OUTPUT=${OUTPUT:-runs/s2s_kebyt5-small/test}
needs_environment
python inference.py -model "$MODEL" -test_data "$TEST_DATA" -gpus "${GPUS:--1}" -beam_size 4 \
    -save_output "$OUTPUT.predictions.txt" -save_label "$OUTPUT.references.txt" -save_report "$OUTPUT.report.json" "$@"
