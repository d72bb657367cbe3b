"""Flags of `select_rows.py`; those of the devices are of inference.py. No torch import."""

from __future__ import annotations

import dataclasses

from config.flags.data import USER_CODE
from config.flags.inference import ON_GPUS, InferenceDeviceFlags
from config.parser import free

STRATEGIES = (
    *("margin", "entropy", "rare-class", "threshold", "label-errors"),
    *("rare-pieces", "outliers", "diversity", "random"),
)
DRAWING = {"strategy=random|outliers|diversity": "no other one draws anything"}


@dataclasses.dataclass(frozen=True)
class SelectFlags:
    """Choice of rows"""

    model: str = free(
        "",
        "The model that the rows are to teach: a .ckpt file, a run's folder (its best/), a from_pretrained folder or a"
        " hub name.",
        required=True,
        metavar="MODEL",
        path="read",
    )
    task: str = free("", "Task of -model: a name, or a YAML file; empty = the checkpoint's.", path="read")
    data: tuple[str, ...] = free(
        (),
        "Rows to choose from, in any format that -test_data of inference.py takes; may repeat.",
        required=True,
        metavar="PATH[:N]",
        path="read",
    )
    n: int = free(500, "Rows to choose.", minimum=1)
    strategy: str = free("margin", "How the rows are chosen; docs/labelling.md describes each.", choices=STRATEGIES)
    proportional_to: str = free(
        "",
        "Column of the input whose values share -n in proportion to their rows, e.g. a product category; empty = none."
        " For .tsv, .csv, .jsonl and .json files.",
        metavar="COLUMN",
        excludes={"strategy=diversity": "its rows are chosen together, one for each cluster"},
    )
    train_data: tuple[str, ...] = free(
        (),
        "Rows that -model was trained on, whose tokens -strategy rare-pieces counts; may repeat.",
        metavar="PATH[:N]",
        needs={"strategy=rare-pieces": "no other one counts tokens"},
        path="read",
    )
    thresholds: str = free(
        "",
        "Labelled rows on which the threshold of every label is fitted for -strategy threshold; empty = 0.5 for all.",
        metavar="PATH[:N]",
        needs={"strategy=threshold": "no other one has thresholds"},
        path="read",
    )
    seed: int = free(123456, "Seed of -strategy random, outliers and diversity.", minimum=0, needs=DRAWING)
    source_column: str = free("", "Column of the source: a name, or a number from 1; empty = the task's.")
    target_column: str = free(
        "", "Column of the label, which may be missing: a name, or a number from 1; empty = the task's."
    )
    save_output: str = free(
        "",
        "File of the chosen rows, best first, a JSON object each.",
        required=True,
        metavar="FILE.jsonl",
        path="written",
    )
    overwrite: bool = free(False, "Replace an output that exists, and throw away finished parts of another command.")
    batch_size: int = free(128, f"Rows in a batch on each device{ON_GPUS}.", minimum=1, maximum=10**7)
    max_tokens: int = free(0, "Source tokens in a batch on each device, padding included; 0 = no limit.", minimum=0)
    user_code: tuple[str, ...] = free((), USER_CODE, metavar="FILE.py", path="read")


@dataclasses.dataclass(frozen=True)
class SelectConfig:
    """Everything that a choice of rows is made of."""

    select: SelectFlags = SelectFlags()
    device: InferenceDeviceFlags = dataclasses.field(default_factory=InferenceDeviceFlags)
