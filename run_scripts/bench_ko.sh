#!/usr/bin/env bash
# Trains and scores MODEL on every Korean task whose published files lie below DATA_FOLDER, with three seeds, and writes
# one table (bench.md, bench.json). The same command goes on where it was stopped. Further flags go to train.py.
# Usage: bash run_scripts/bench_ko.sh MODEL DATA_FOLDER [flags]
# Set by the environment: SEEDS (default "1 2 3"), OUT (folder of the runs and the table), TASKS (default: all), EVERY
# (N scores every N-th test row, for a trial). A trial of some minutes: EVERY=100 bash run_scripts/bench_ko.sh bart-mini
# DATA_FOLDER -train_rows 200 -max_epoch 1 -batch_size 8
set -euo pipefail
cd "$(dirname "$0")/.."
source run_scripts/recipe.sh
needs_environment
python benchmarks/korean_tasks.py "$@"
