"""Flags of `train.py`, and those that `inference.py` has too; frozen dataclasses, one a group. No torch import."""

from __future__ import annotations

import dataclasses

from config.parser import flag, free

PRECISIONS = ("auto", "32", "tf32", "16", "bf16", "fp16")
PRECISION_HELP = (
    "Arithmetic: auto = bf16 on GPUs that have it, else 32; 32, tf32 (32 with the products of GPUs in TF32), 16 (= bf16"
    " where the device has it), bf16, fp16 (not T5)."
)
GPUS_HELP = (
    "GPUs to use, counted after all other checks; -1 = all visible, else the CPU; 0 = the CPU, one process unless"
    " -cpu_processes says more."
)
BASE_MODEL = (
    "Base model of a -model that is an adapter: a folder or a hub name; empty = where the training had it, or what was"
    " downloaded by that name."
)
STANDARD_INPUT = "-"

# What `excludes` of several flags share.
ONE_OF_THEM = "give one of them"
NOT_TRIED = "the two were not tried together"
OF_ONE_TASK = ("task", "train_data", "valid_data", "test_data", "source_column", "target_column", "label_map")
OF_ITS_TEXTS = ("label_separator", "input_template", "target_template")
LINES = {"test_data=-": "a line is a source and nothing else, and is cut where it is too long; give a file of rows"}


@dataclasses.dataclass(frozen=True)
class DataFlags:
    """Data"""

    train_data: tuple[str, ...] = free(
        (),
        "Training rows: a .tsv/.txt/.csv/.jsonl/.json/.parquet file, a save_to_disk folder or a hub name"
        " (name[:config[:split]]); may repeat, rows are joined. A suffix :N takes every N-th row.",
        metavar="PATH[:N]",
        path="read",
    )
    valid_data: tuple[str, ...] = free((), "Validation rows, like -train_data.", metavar="PATH[:N]", path="read")
    test_data: tuple[str, ...] = free(
        (),
        "Test rows, like -train_data; the target column may be missing. For inference.py '-' is standard input,"
        " predicted line by line.",
        metavar="PATH[:N]",
        path="read",
    )
    valid_data_proportions: float = free(
        0.0,
        "Share of the training rows set apart for validation, the same rows for every seed; 0 = none.",
        minimum=0.0,
        maximum=0.9,
        excludes={"valid_data": ONE_OF_THEM, **LINES},
    )
    test_data_proportions: float = free(
        0.0,
        "Share of the training rows set apart for testing, disjoint from the validation rows; 0 = none.",
        minimum=0.0,
        maximum=0.9,
        excludes={"test_data": ONE_OF_THEM},
    )
    source_column: str = free(
        "", "Column of the source text: a name, or a number counted from 1; empty = the task's.", excludes=LINES
    )
    target_column: str = free(
        "", "Column of the target text: a name, or a number counted from 1; empty = the task's.", excludes=LINES
    )
    header: str = free(
        "auto",
        "Whether the first line of a TSV or CSV file names the columns; auto looks for the names that are needed.",
        choices=("auto", "true", "false"),
        excludes=LINES,
    )
    tsv_escapes: bool = free(
        True, r"Read \n \t \r \\ \uHHHH in TSV cells, and write predictions so; false = plain text.", trained=True
    )
    strict_data: bool = free(
        False, "Stop at the first malformed row instead of skipping and counting it.", excludes=LINES
    )
    label_map: str = free(
        "",
        'Label texts of the target values: "0=negative,1=positive", or a JSON/YAML file; empty = the task\'s.',
        metavar="MAP",
        path="read",
    )
    label_separator: str = free(
        "",
        "What stands between the labels of a row that may have several, e.g. ', '; empty = the task's, else one label.",
    )
    input_template: str = free("", "Jinja template of the source, e.g. 'review: {{ document }}'; empty = the task's.")
    target_template: str = free("", "Jinja template of the target, e.g. '{{ target }}'; empty = the task's.")
    source_language: str = flag(
        "",
        "Language code of the source, e.g. ko_KR, or a template of it over columns, e.g. '{{ src }}'; for tokenizers"
        " with language tokens and for other templates; empty = the task's, else none.",
        resume="kept",
    )
    target_language: str = flag(
        "",
        "Language code of the target, like -source_language, e.g. en_XX; empty = the task's, else none.",
        resume="kept",
    )
    cache_dir: str = free(
        "",
        "Folder of the encoded data; empty = <save_path>/cache (inference: a temporary folder).",
        excludes=LINES,
        path="written",
    )


@dataclasses.dataclass(frozen=True)
class LengthFlags:
    """Lengths"""

    max_seq_length: int = free(
        0,
        "Longest source in tokens, special tokens included; 0 = the task's, else the model's own limit.",
        minimum=0,
        resume="fixed",
        trained=True,
    )
    doc_stride: int = free(
        0,
        "Overlap in tokens of the windows into which the passage of a source longer than -max_seq_length is split, for"
        " tasks with a passage such as squad; 0 = the source is cut.",
        minimum=0,
        excludes=LINES,
        resume="fixed",
        trained=True,
    )
    max_target_length: int = free(
        0,
        "Longest target in tokens, special tokens included; 0 = the task's, else the model's own limit.",
        minimum=0,
        excludes=LINES,
        resume="fixed",
    )
    do_truncate: bool = free(
        True,
        "Cut longer rows; false = discard them from training and validation (never from testing).",
        excludes=LINES,
        resume="fixed",
    )


USER_CODE = (
    "Python file of your own, imported first; it may register metrics, kinds of output, layouts of files and"
    " architectures, and runs with your rights; may repeat."
)


@dataclasses.dataclass(frozen=True)
class TrainTaskFlags:
    """Task"""

    task: str = free("seq2seq", "Name of a built-in task, or a YAML task file.", path="read")
    train_task: tuple[str, ...] = free(
        (),
        "Train on several tasks: each a task file that names the files of its rows, or a built-in task, with its share"
        " of an epoch's rows, e.g. 0.3 (with none given every row comes once); may repeat. Or one YAML file that mixes"
        " tasks.",
        metavar="TASK[:RATE]",
        excludes=dict.fromkeys(
            (*OF_ONE_TASK, *OF_ITS_TEXTS), "each task has its own, in its file or in one that mixes tasks"
        ),
        path="read",
    )
    list_tasks: bool = free(False, "Show the built-in tasks, and do nothing else.", resume="once")
    show_examples: int = free(
        0,
        "Show this many training rows as the model sees them, with their tokens counted, and do nothing else: nothing"
        " is trained or written; 0 = off.",
        minimum=0,
        resume="once",
    )
    user_code: tuple[str, ...] = free((), USER_CODE, metavar="FILE.py", resume="process", path="read")
    train_rows: int = free(
        0, "Train on this many of the training rows, the same ones for every seed; 0 = all.", minimum=0
    )
    balance_labels: bool = free(
        False, "Take as many of the -train_rows of each label.", needs={"train_rows": "it says how many rows there are"}
    )
    class_weights: str = flag(
        "",
        "Weight of a label's rows in the loss: 'balanced' (rare labels weigh more), or a YAML/JSON file of"
        " label: weight; empty = all 1.",
        metavar="balanced|FILE",
        resume="free",  # the weights themselves are compared
        path="read",
    )
