"""Flags of `train.py`, and those that `inference.py` has too; frozen dataclasses, one a group. No torch import."""

from __future__ import annotations

import dataclasses

from config.parser import flag, free

OPTIMIZERS = ("adam", "adafactor")
SCHEDULES = ("cosanneal", "linear", "cyclic", "constant", "inverse_sqrt")
STRATEGIES = ("auto", "ddp")
ATTENTIONS = ("plain", "fused")
ADAM_RATE = 1e-4  # the learning rate of adam unless told otherwise
PRECISIONS = ("auto", "32", "tf32", "16", "bf16", "fp16")
PRECISION_HELP = (
    "Arithmetic: auto = bf16 on GPUs that have it, else 32; 32, tf32 (32 with the products of GPUs in TF32), 16 (= bf16"
    " where the device has it), bf16, fp16 (not T5)."
)
FREEZABLE = ("embedding", "encoder", "decoder")
STANDARD_INPUT = "-"

# What `excludes` of several flags share.
ONE_OF_THEM = "give one of them"
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
    )
    valid_data: tuple[str, ...] = free((), "Validation rows, like -train_data.", metavar="PATH[:N]")
    test_data: tuple[str, ...] = free(
        (),
        "Test rows, like -train_data; the target column may be missing. For inference.py '-' is standard input,"
        " predicted line by line.",
        metavar="PATH[:N]",
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
        "", "Folder of the encoded data; empty = <save_path>/cache (inference: a temporary folder).", excludes=LINES
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

    task: str = free("seq2seq", "Name of a built-in task, or a YAML task file.")
    train_task: tuple[str, ...] = free(
        (),
        "Train on several tasks: each a task file that names the files of its rows, or a built-in task, with its share"
        " of an epoch's rows, e.g. 0.3 (with none given every row comes once); may repeat. Or one YAML file that mixes"
        " tasks.",
        metavar="TASK[:RATE]",
        excludes=dict.fromkeys(
            (*OF_ONE_TASK, *OF_ITS_TEXTS), "each task has its own, in its file or in one that mixes tasks"
        ),
    )
    list_tasks: bool = free(False, "Show the built-in tasks, and do nothing else.", resume="once")
    show_examples: int = free(
        0,
        "Show this many training rows as the model sees them, with their tokens counted, and do nothing else: nothing"
        " is trained or written; 0 = off.",
        minimum=0,
        resume="once",
    )
    user_code: tuple[str, ...] = free((), USER_CODE, metavar="FILE.py", resume="process")
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
    )


@dataclasses.dataclass(frozen=True)
class TrainModelFlags:
    """Model"""

    init_model: str = flag(
        "", "Pretrained model to start from: a folder or a hub name; or give -config_path.", resume="if given"
    )
    config_path: str = flag(
        "",
        "Train from scratch: a model config (JSON) or the name of a preset in configs/, e.g. bart-mini.",
        resume="if given",
        excludes={"init_model": "give pretrained weights or a config"},
    )
    tokenizer: str = flag(
        "", "Tokenizer folder or hub name, or 'bytes' (ByT5's); empty = that of the model or preset.", resume="if given"
    )
    tuning_method: str = flag("finetune", "How the weights are tuned.", choices=("finetune",))
    freeze: tuple[str, ...] = flag(
        (),
        "Part that is not trained: embedding, encoder or decoder.",
        metavar="PART",
        resume="optimizer",
        choices=FREEZABLE,
    )
    gradient_checkpointing: bool = free(
        False, "Recompute activations in the backward pass: less memory, about a third slower."
    )


@dataclasses.dataclass(frozen=True)
class BatchFlags:
    """Batches"""

    batch_size: int = flag(48, "Rows in a batch on each device.", minimum=1, maximum=10**7, resume="batches")
    max_tokens: int = flag(
        0,
        "Padded source and target tokens in a batch on each device, in place of -batch_size; 0 = off.",
        minimum=0,
        resume="batches",
    )
    grad_acc: int = flag(
        1, "Batches whose gradients are summed for one optimizer step.", minimum=1, maximum=10**5, resume="batches"
    )
    num_workers: int = free(0, "Processes that load batches, for each device; 0 = the training process.", minimum=0)


@dataclasses.dataclass(frozen=True)
class OptimFlags:
    """Optimization"""

    max_epoch: int = flag(
        4,
        "Epochs to train.",
        minimum=1,
        maximum=10**6,
        resume="free",
        change="the learning rate follows the longer or shorter course from here",
    )
    optim: str = flag(
        "adam", "Optimizer; adam is AdamW.", choices=OPTIMIZERS, aliases=("optimizer",), resume="optimizer"
    )
    learning_rate: float | None = flag(
        None, "Highest learning rate; automatic = 1e-4 for adam, adafactor's own relative step.", minimum=0.0
    )
    lr_scheduler: str = flag("cosanneal", "Course of the learning rate.", choices=SCHEDULES)
    warmup_steps: float = flag(
        0.0, "Optimizer steps of linear warm-up; below 1, a share of all steps; 0 = none.", minimum=0.0
    )
    optim_cosanneal_gamma: float = flag(
        0.75, "Factor on the peak rate from one cycle to the next (cosanneal, cyclic).", minimum=0.0, maximum=1.0
    )
    optim_cosanneal_restarts: int = flag(4, "Cycles in the whole run (cosanneal, cyclic).", minimum=1)
    optim_cosanneal_min_lr: float = flag(1e-7, "Lowest rate of a cycle (cosanneal, cyclic).", minimum=0.0)
    weight_decay: float = flag(0.0, "Decoupled weight decay; biases and norms are left out; 0 = off.", minimum=0.0)
    grad_clip: float = flag(
        1.0, "Largest gradient norm; adafactor clips by itself and ignores it; 0 = off.", minimum=0.0
    )
    label_smoothing: float = flag(0.0, "Share of the target probability spread evenly.", minimum=0.0, maximum=0.9)


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Run, validation and checkpoints"""

    save_path: str = free(
        "",
        "Folder of this run: checkpoints, logs, config.json.",
        required=True,
        unless=("list_tasks", "show_examples"),
        metavar="FOLDER",
    )
    overwrite: bool = flag(
        False,
        "Delete the run that -save_path already holds.",
        resume="once",
        excludes={"resume_checkpoint": "delete the run, or continue it"},
    )
    resume_checkpoint: str = flag(
        "",
        "Continue a run: 'last' (-save_path's newest checkpoint), 'best', 'auto' (the newest if there is one, else a"
        " fresh start), a .ckpt file, or a run's folder; empty = start afresh.",
        resume="once",
    )
    resume_force: bool = flag(
        False,
        "Resume although data or flags differ from the saved run; says what is not exact.",
        resume="once",
        needs={"resume_checkpoint": "name a checkpoint, or leave it out"},
    )
    seed: int = flag(
        123456,
        "Seed of weights, dropout and row order; below 0 = drawn at random and printed.",
        maximum=2**31 - 1,
        resume="batches",
    )
    save_every: int = free(0, "Optimizer steps between step checkpoints; 0 = off.", minimum=0)
    save_every_hour: float = free(1.0, "Hours between timed checkpoints; 0 = off.", minimum=0.0)
    save_last_k: int = free(2, "Step and timed checkpoints that are kept, of each kind.", minimum=1)
    valid_check_interval: float = free(
        1.0,
        "Share of an epoch between validations, rounded to optimizer steps.",
        minimum=1e-6,
        maximum=1.0,
        change="validations come at other steps",
    )
    valid_generate_rows: int = flag(
        200,
        "Validation rows predicted by real generation for exact match and the task's metrics; 0 = none.",
        minimum=0,
        resume="generated rows",
        change="scores of generated rows are of other rows",
    )
    monitor: str = flag(
        "val_loss",
        "What 'best' means: val_loss, token_accuracy, or a metric of the generated rows, e.g. exact_match.",
        resume="measure",
    )
    early_stopping_patience: int = free(0, "Validations without a better score before stopping; 0 = off.", minimum=0)
    max_steps: int = free(
        0,
        "Optimizer steps of the whole run after which it is saved and stops; 0 = off. No schedule follows it.",
        minimum=0,
    )
    max_hours: float = free(
        0.0, "Hours after which this process saves and stops; 0 = off.", minimum=0.0, resume="process"
    )
    requeue: bool = flag(
        False,
        "SLURM: on SIGUSR1 or after -max_hours, save, stop and requeue the job; goes with -resume_checkpoint auto.",
        resume="once",
        needs={"resume_checkpoint=auto": "the job runs this same command again"},
    )
    log_every: int = free(20, "Optimizer steps between log entries and printed lines.", minimum=1)
    profile: int = free(
        0,
        "Optimizer steps, after the first five, that are traced into <save_path>/profile/; where their time went is"
        " printed; 0 = off.",
        minimum=0,
        maximum=100,
        resume="process",
    )


@dataclasses.dataclass(frozen=True)
class TrainDeviceFlags:
    """Devices"""

    gpus: int = free(
        -1,
        "GPUs to use, counted after all other checks; -1 = all visible, else the CPU; 0 = the CPU, one process.",
        minimum=-1,
    )
    cpu_processes: int = free(0, "Processes of data-parallel training on the CPU; 0 = off.", minimum=0)
    num_nodes: int = free(1, "Machines of the cluster.", minimum=1)
    strategy: str = free("auto", "How devices share the work; auto = ddp on several, plain on one.", choices=STRATEGIES)
    float_precision: str = flag(
        "auto",
        PRECISION_HELP,
        choices=PRECISIONS,
        resume="arithmetic",  # what it comes to on the device is compared as well
    )
    attention: str = free(
        "plain",
        "Attention in training: plain = PyTorch's; fused = one Triton kernel, on NVIDIA GPUs only: none has run it yet,"
        " and its speed was not measured.",
        choices=ATTENTIONS,
        change="dropout in the attention draws other numbers from here",
    )
    deterministic: bool = free(
        False,
        "Add in the same order in every run, so that one on the same GPUs, resumed or not, ends with the same bits;"
        " what it costs was not measured. The CPU does so anyway.",
    )
    compile: bool = flag(
        False,
        "Compile the layers with torch.compile for the training steps, in minutes; lengths are padded to multiples of"
        " 64. Needs a C++ compiler, and Triton on a GPU; not measured on one.",
        excludes={"attention=fused": "its kernel does not go through torch.compile"},
    )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Everything that a training run is made of."""

    task: TrainTaskFlags = TrainTaskFlags()
    data: DataFlags = DataFlags()
    length: LengthFlags = LengthFlags()
    model: TrainModelFlags = TrainModelFlags()
    batch: BatchFlags = BatchFlags()
    optim: OptimFlags = OptimFlags()
    run: RunFlags = RunFlags()
    device: TrainDeviceFlags = TrainDeviceFlags()
