"""Flags of `export.py`. No torch import."""

from __future__ import annotations

import dataclasses
import re

from config.flags.data import BASE_MODEL
from config.flags.inference import COMPUTE_TYPES
from config.parser import free

SENTENCE_TRANSFORMERS = "sentence-transformers"
EXPORT_FORMATS = ("safetensors", "ctranslate2", "onnx", SENTENCE_TRANSFORMERS)
WITHOUT_ROWS = {"valid_data": "no rows are decoded"}
LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")  # an identifier of the hub
WITHOUT_PUSH = {"push_to_hub": "nothing is pushed"}


@dataclasses.dataclass(frozen=True)
class ExportFlags:
    """Export"""

    model: tuple[str, ...] = free(
        (),
        "A .ckpt file, a run's folder (its best/), or a from_pretrained folder; may repeat: the mean of all is"
        " exported.",
        metavar="PATH",
        path="read",
    )
    average: str = free(
        "",
        "Export the mean of checkpoints: last:N (the newest N of the run of -model), best:N (the best N by the"
        " monitored score), or files and folders joined by commas; empty = no mean.",
        metavar="last:N|best:N|FILES",
        path="listed",
    )
    merge: bool = free(
        False, "Write an adapter merged into its base model, as a full model; without it the adapter alone is written."
    )
    base_model: str = free("", BASE_MODEL, path="read")
    save_path: str = free(
        "",
        "Folder that is made; empty = <folder of the run>_hfmodel, _ctranslate2, _onnx or _sentence_transformers, by"
        " -format.",
        metavar="FOLDER",
        path="written",
    )
    format: str = free(
        "safetensors",
        "What is written: a from_pretrained folder, a model for CTranslate2, graphs for ONNX Runtime"
        " (docs/architectures.md: which models), or a from_pretrained folder that sentence-transformers opens for"
        " vectors.",
        choices=EXPORT_FORMATS,
    )
    compute_type: str = free("float32", "How CTranslate2 holds the weights.", choices=COMPUTE_TYPES)
    valid_data: tuple[str, ...] = free(
        (),
        "File with rows that the model and its export both decode, on the CPU: texts, metrics, speed and size are"
        " compared, and an export that is not rounded (-compute_type) and decodes otherwise is refused; may repeat;"
        " empty = none.",
        metavar="FILE",
        excludes={f"format={SENTENCE_TRANSFORMERS}": "it gives vectors, and decodes nothing"},
        path="read",
    )
    rows: int = free(
        200, "Rows of -valid_data that are decoded, evenly spaced; 0 = all.", minimum=0, needs=WITHOUT_ROWS
    )
    task: str = free(
        "", "Task of -valid_data; empty = the checkpoint's.", metavar="NAME", needs=WITHOUT_ROWS, path="read"
    )
    model_card: bool = free(
        False, "Write README.md, a model card of the hub: task, labels, data, scores, flags of the training, use."
    )
    license: str = free(
        "", "Licence in the model card, as the hub names it, e.g. apache-2.0; empty = none.", metavar="ID"
    )
    push_to_hub: str = free(
        "",
        "Push the folder, with a model card, to this repository of the hub, made as a private one where it is not"
        " there; NAME alone is one of yours; empty = nothing leaves the machine.",
        metavar="[OWNER/]NAME",
    )
    public: bool = free(False, "Let everybody see the repository of -push_to_hub.", needs=WITHOUT_PUSH)
    overwrite: bool = free(False, "Replace what an earlier export left in -save_path; nothing else is ever replaced.")


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """Everything that an export is made of."""

    export: ExportFlags = ExportFlags()
