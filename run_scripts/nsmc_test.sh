#!/usr/bin/env bash
# Predicts the NSMC test rows with a model of one of the train_nsmc_*.sh scripts, and scores them.
# Set by the environment: MODEL, TEST_DATA, OUTPUT (prefix of the files written), GPUS; further flags go behind.
set -euo pipefail
cd "$(dirname "$0")/.."
source run_scripts/recipe.sh
MODEL=${MODEL:-runs/nsmc_byt5-small/best}
TEST_DATA=${TEST_DATA:-data/nsmc/ratings_test.txt}
OUTPUT=${OUTPUT:-runs/nsmc_byt5-small/test}
needs_nsmc TEST_DATA
needs_environment
python inference.py -model "$MODEL" -test_data "$TEST_DATA" -gpus "${GPUS:--1}" \
    -save_output "$OUTPUT.predictions.txt" -save_label "$OUTPUT.references.txt" -save_report "$OUTPUT.report.json" "$@"
