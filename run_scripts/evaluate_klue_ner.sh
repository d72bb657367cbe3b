#!/usr/bin/env bash
# Predicts the KLUE-NER dev sentences with the model of train_klue_ner.sh, and scores them.
# Set by the environment: MODEL, TEST_DATA, OUTPUT (prefix of the files written), GPUS; further flags go behind.
set -euo pipefail
cd "$(dirname "$0")/.."
source run_scripts/recipe.sh
MODEL=${MODEL:-runs/klue_ner_kebyt5-small/best}
TEST_DATA=${TEST_DATA:-data/klue/klue-ner-v1.1_dev.tsv}
OUTPUT=${OUTPUT:-runs/klue_ner_kebyt5-small/dev}
needs_klue TEST_DATA
needs_environment
python inference.py -model "$MODEL" -task klue-ner -test_data "$TEST_DATA" -gpus "${GPUS:--1}" \
    -save_output "$OUTPUT.predictions.txt" -save_label "$OUTPUT.references.txt" -save_report "$OUTPUT.report.json" "$@"
