#!/usr/bin/env bash
# Measures everything on one GPU in at most eight minutes, without a network; prints a table and saves it below runs/gpu.
#     bash benchmarks/gpu.sh                   # -device cuda
#     bash benchmarks/gpu.sh -device fake      # the same steps on the counting device: it shows that they work
cd "$(dirname "$0")/.." && exec "${PYTHON:-python}" benchmarks/gpu.py "$@"
