"""Hostile files for as long as you like: what ends in a traceback, hangs, or takes the memory.

    python benchmarks/fuzz.py -seconds 600 [-kinds checkpoint model_folder] [-first 1000] [-memory_gb 12]

The kinds are the trials of tests/fuzz_trials.py, whose first seeds the test suite tries. A line for each file that is
not answered by a result or one of our errors: its kind and seed, what was changed, and what came of it. Exit code 1 if
there was one.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.fuzz_trials import TRIALS, try_one


def main() -> int:
    """Try files of all kinds in turn until the time is up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-seconds", type=float, default=60)
    parser.add_argument("-kinds", nargs="+", choices=list(TRIALS), default=list(TRIALS))
    parser.add_argument("-first", type=int, default=1000, help="the first seed")
    parser.add_argument("-memory_gb", type=int, default=12, help="address space of this process")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (options.memory_gb << 30, options.memory_gb << 30))
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    end, tried, wrong = time.monotonic() + options.seconds, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        for seed in itertools.count(options.first):
            for kind in options.kinds:
                if time.monotonic() > end:
                    print(f"{tried} files tried, {wrong} answered wrongly; the next seed is {seed}")
                    return int(wrong > 0)
                told, problem = try_one(kind, seed, Path(folder))
                tried += 1
                if problem:
                    wrong += 1
                    print(f"{kind} {seed}: {told[:200]} -> {problem}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
