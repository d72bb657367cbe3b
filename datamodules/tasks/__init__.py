"""The built-in tasks: every file in this folder registers its own; a new file is enough. Imports task_utils."""

from __future__ import annotations

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
