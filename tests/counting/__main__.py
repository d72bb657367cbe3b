"""Count what a device would do: `python -m tests.counting ARCHITECTURE...` prints one JSON object.

Of each architecture of `tests.small_configs`, in fp32 and bf16: a training step, a validation batch, every way of
decoding a batch of 32 rows, label scores, and of t5 a step of adafactor, each with the host's waits (by place), kernel
launches, casts, decoder steps, and whether the results are those of the CPU (in fp32). Of a name with layers,
`t5:12+4`: a training step in bf16, and one of adafactor. Of `loss`: that over an odd vocabulary in chunks, also the
errors of loss and gradients in fp32, bf16 and fp16.

A process of its own, since torch asks once, when it is imported, whether there is a device.
"""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def believe_in_the_device() -> None:
    """Compile and load the guard, before torch is imported."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.submodule_search_locations
    torch_folder = Path(spec.submodule_search_locations[0])
    with tempfile.TemporaryDirectory() as folder:
        library, libraries = Path(folder) / "device_guard.so", str(torch_folder / "lib")
        source = str(Path(__file__).with_name("device_guard.cpp"))
        options = ["-std=c++20", "-shared", "-fPIC", f"-I{torch_folder / 'include'}", source, "-o", str(library)]
        options += [f"-L{libraries}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{libraries}"]
        subprocess.run(["g++", *options], check=True)
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)


def main(names: list[str]) -> None:
    """Print the counts."""
    believe_in_the_device()
    from tests.counting.jobs import counts_of, loss_counts

    gc.freeze()  # the jobs look for tensors among all objects, and none is among those of the libraries
    found: dict[str, Any] = {name: loss_counts() if name == "loss" else counts_of(name) for name in names}
    json.dump(found, sys.stdout, indent=1)


if __name__ == "__main__":
    main(sys.argv[1:])
