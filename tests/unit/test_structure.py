"""Dependencies run one way: scripts -> datamodules, models -> task_utils, metrics."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.cli.command import ROOT, environment

LOADED = """
import importlib, pathlib, sys
for path in sorted(pathlib.Path(sys.argv[1]).rglob("*.py")):
    importlib.import_module(".".join(path.with_suffix("").parts).removesuffix(".__init__"))
print(*sorted(name for name in sys.modules if name.split(".")[0] == sys.argv[2]))
"""


@pytest.mark.parametrize(("package", "other"), [("models", "datamodules"), ("datamodules", "models")])
def test_datamodules_and_models_do_not_import_each_other(package: str, other: str) -> None:
    command = [sys.executable, "-c", LOADED, package, other]
    env = environment(PYTHONPATH=str(ROOT))
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
