#!/usr/bin/env bash
# Sets up and runs every check and test: formatting, lint, types, tests, branch coverage (at least 90 %).
set -euo pipefail
cd "$(dirname "$0")/.."
source run_scripts/environment.sh requirements-dev.txt
export HF_HUB_OFFLINE=1
ruff check .
ruff format --check .
mypy
rm -f .coverage .coverage.*
# Two workers of one thread each: the tests start processes of their own, and spinning threads slow each other down.
OMP_NUM_THREADS=1 python -m pytest -n "${TEST_WORKERS:-2}" --dist worksteal --cov --cov-report= "$@"
coverage report --fail-under=90
