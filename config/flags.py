"""Every flag of the commands, declared once; frozen dataclasses, one a group. No torch import."""

from __future__ import annotations

import dataclasses

from config.parser import flag

OPTIMIZERS = ("adam", "adafactor")
SCHEDULES = ("cosanneal", "linear", "cyclic", "constant", "inverse_sqrt")
STRATEGIES = ("auto", "ddp")
ADAM_RATE = 1e-4  # the learning rate of adam unless told otherwise
PRECISIONS = ("32", "16", "bf16", "fp16")
LABEL_DECODINGS = ("generate", "constrained", "score")
LABEL_PRIORS = ("none", "contextual", "domain")
FREEZABLE = ("embedding", "encoder", "decoder")
STANDARD_INPUT = "-"
ENGINES = ("torch", "ctranslate2")
EXPORT_FORMATS = ("safetensors", "ctranslate2")
COMPUTE_TYPES = ("float32", "int8", "float16", "bfloat16")
CTRANSLATE2_VERSION = "4.8.5"
CTRANSLATE2_INSTALL = f"install it: pip install ctranslate2=={CTRANSLATE2_VERSION}"


@dataclasses.dataclass(frozen=True)
class DataFlags:
    """Data"""

    train_data: tuple[str, ...] = flag(
        (),
        "Training rows: a .tsv/.txt/.csv/.jsonl/.json/.parquet file, a save_to_disk folder or a hub name"
        " (name[:config[:split]]); may repeat, rows are joined. A suffix :N takes every N-th row.",
        metavar="PATH[:N]",
    )
    valid_data: tuple[str, ...] = flag((), "Validation rows, like -train_data.", metavar="PATH[:N]")
    test_data: tuple[str, ...] = flag(
        (),
        "Test rows, like -train_data; the target column may be missing. For inference.py '-' is standard input,"
        " predicted line by line.",
        metavar="PATH[:N]",
    )
    valid_data_proportions: float = flag(
        0.0,
        "Share of the training rows set apart for validation, the same rows for every seed; 0 = none.",
        minimum=0.0,
        maximum=0.9,
    )
    test_data_proportions: float = flag(
        0.0,
        "Share of the training rows set apart for testing, disjoint from the validation rows; 0 = none.",
        minimum=0.0,
        maximum=0.9,
    )
    source_column: str = flag("", "Column of the source text: a name, or a number counted from 1; empty = the task's.")
    target_column: str = flag("", "Column of the target text: a name, or a number counted from 1; empty = the task's.")
    header: str = flag(
        "auto",
        "Whether the first line of a TSV or CSV file names the columns; auto looks for the names that are needed.",
        choices=("auto", "true", "false"),
    )
    tsv_escapes: bool = flag(
        True, r"Read \n \t \r \\ \uHHHH in TSV cells, and write predictions so; false = plain text."
    )
    strict_data: bool = flag(False, "Stop at the first malformed row instead of skipping and counting it.")
    label_map: str = flag(
        "",
        'Label texts of the target values: "0=negative,1=positive", or a JSON/YAML file; empty = the task\'s.',
        metavar="MAP",
    )
    label_separator: str = flag(
        "",
        "What stands between the labels of a row that may have several, e.g. ', '; empty = the task's, else one label.",
    )
    input_template: str = flag("", "Jinja template of the source, e.g. 'review: {{ document }}'; empty = the task's.")
    target_template: str = flag("", "Jinja template of the target, e.g. '{{ target }}'; empty = the task's.")
    source_language: str = flag("", "Language code of the source for mBART-like tokenizers, e.g. ko_KR; empty = none.")
    target_language: str = flag("", "Language code of the target for mBART-like tokenizers, e.g. en_XX; empty = none.")
    cache_dir: str = flag("", "Folder of the encoded data; empty = <save_path>/cache (inference: a temporary folder).")


@dataclasses.dataclass(frozen=True)
class LengthFlags:
    """Lengths"""

    max_seq_length: int = flag(
        0, "Longest source in tokens, special tokens included; 0 = the task's, else the model's own limit.", minimum=0
    )
    max_target_length: int = flag(
        0, "Longest target in tokens, special tokens included; 0 = the task's, else the model's own limit.", minimum=0
    )
    do_truncate: bool = flag(
        True, "Cut longer rows; false = discard them from training and validation (never from testing)."
    )


@dataclasses.dataclass(frozen=True)
class TrainTaskFlags:
    """Task"""

    task: str = flag("seq2seq", "Name of a built-in task, or a YAML task file.")


@dataclasses.dataclass(frozen=True)
class TrainModelFlags:
    """Model"""

    init_model: str = flag("", "Pretrained model to start from: a folder or a hub name; or give -config_path.")
    config_path: str = flag(
        "", "Train from scratch: a model config (JSON) or the name of a preset in configs/, e.g. bart-mini."
    )
    tokenizer: str = flag("", "Tokenizer folder or hub name, or 'bytes' (ByT5's); empty = that of the model or preset.")
    tuning_method: str = flag("finetune", "How the weights are tuned.", choices=("finetune",))
    freeze: tuple[str, ...] = flag((), "Part that is not trained: embedding, encoder or decoder.", metavar="PART")
    gradient_checkpointing: bool = flag(
        False, "Recompute activations in the backward pass: less memory, about a third slower."
    )


@dataclasses.dataclass(frozen=True)
class BatchFlags:
    """Batches"""

    batch_size: int = flag(48, "Rows in a batch on each device.", minimum=1, maximum=10**7)
    max_tokens: int = flag(
        0, "Padded source and target tokens in a batch on each device, in place of -batch_size; 0 = off.", minimum=0
    )
    grad_acc: int = flag(1, "Batches whose gradients are summed for one optimizer step.", minimum=1, maximum=10**5)
    num_workers: int = flag(0, "Processes that load batches, for each device; 0 = the training process.", minimum=0)


@dataclasses.dataclass(frozen=True)
class OptimFlags:
    """Optimization"""

    max_epoch: int = flag(4, "Epochs to train.", minimum=1, maximum=10**6)
    optim: str = flag("adam", "Optimizer; adam is AdamW.", choices=OPTIMIZERS, aliases=("optimizer",))
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

    save_path: str = flag("", "Folder of this run: checkpoints, logs, config.json.", required=True, metavar="FOLDER")
    overwrite: bool = flag(False, "Delete the run that -save_path already holds.")
    resume_checkpoint: str = flag(
        "",
        "Continue a run: 'last' (-save_path's newest checkpoint), 'best', 'auto' (the newest if there is one, else a"
        " fresh start), a .ckpt file, or a run's folder; empty = start afresh.",
    )
    resume_force: bool = flag(False, "Resume although data or flags differ from the saved run; says what is not exact.")
    seed: int = flag(
        123456, "Seed of weights, dropout and row order; below 0 = drawn at random and printed.", maximum=2**31 - 1
    )
    save_every: int = flag(0, "Optimizer steps between step checkpoints; 0 = off.", minimum=0)
    save_every_hour: float = flag(1.0, "Hours between timed checkpoints; 0 = off.", minimum=0.0)
    save_last_k: int = flag(2, "Step and timed checkpoints that are kept, of each kind.", minimum=1)
    valid_check_interval: float = flag(
        1.0, "Share of an epoch between validations, rounded to optimizer steps.", minimum=1e-6, maximum=1.0
    )
    valid_generate_rows: int = flag(
        200, "Validation rows predicted by real generation for exact match and the task's metrics; 0 = none.", minimum=0
    )
    monitor: str = flag(
        "val_loss",
        "What 'best' means: val_loss, token_accuracy, or a metric of the generated rows, e.g. exact_match.",
    )
    early_stopping_patience: int = flag(0, "Validations without a better score before stopping; 0 = off.", minimum=0)
    max_steps: int = flag(
        0,
        "Optimizer steps of the whole run after which it is saved and stops; 0 = off. No schedule follows it.",
        minimum=0,
    )
    max_hours: float = flag(0.0, "Hours after which this process saves and stops; 0 = off.", minimum=0.0)
    requeue: bool = flag(
        False,
        "SLURM: on SIGUSR1 or after -max_hours, save, stop and requeue the job; goes with -resume_checkpoint auto.",
    )
    log_every: int = flag(20, "Optimizer steps between log entries and printed lines.", minimum=1)


@dataclasses.dataclass(frozen=True)
class TrainDeviceFlags:
    """Devices"""

    gpus: int = flag(-1, "GPUs to use; -1 = all that are visible, else the CPU; 0 = the CPU, one process.", minimum=-1)
    cpu_processes: int = flag(0, "Processes of data-parallel training on the CPU; 0 = off.", minimum=0)
    num_nodes: int = flag(1, "Machines of the cluster.", minimum=1)
    strategy: str = flag("auto", "How devices share the work; auto = ddp on several, plain on one.", choices=STRATEGIES)
    float_precision: str = flag(
        "32", "Arithmetic: 32, 16 (= bf16 where the device has it), bf16, fp16 (not T5).", choices=PRECISIONS
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


@dataclasses.dataclass(frozen=True)
class InferenceModelFlags:
    """Model and task"""

    model: tuple[str, ...] = flag(
        (),
        "A .ckpt file, a run's folder (its best/), a from_pretrained folder or a hub name; several decode together (an"
        " ensemble).",
        required=True,
        metavar="MODEL",
    )
    tokenizer: str = flag("", "Tokenizer folder or hub name, or 'bytes'; empty = the model's own.")
    task: str = flag("", "Name of a built-in task, or a YAML task file; empty = the checkpoint's, else seq2seq.")


@dataclasses.dataclass(frozen=True)
class OutputFlags:
    """Output"""

    save_output: str = flag(
        "",
        "File of predictions in input order: a line a row, or .jsonl / .tsv with source, reference and score;"
        " empty = none.",
        metavar="FILE",
    )
    save_label: str = flag("", "File of references, one line a row in input order; empty = none.", metavar="FILE")
    save_report: str = flag("", "JSON file of metrics, per-class figures and settings; empty = none.", metavar="FILE")
    overwrite: bool = flag(False, "Replace output files that exist, and throw away finished parts of another command.")
    keep_fields: bool = flag(False, "Copy each record of a JSON input to the .jsonl output, under the key input.")
    label_correction: str = flag(
        "nearest", "What becomes of a predicted text that is no label.", choices=("nearest", "none")
    )
    label_max_distance: int = flag(
        -1, "Largest edit distance (characters) at which a text is corrected to a label; -1 = no limit.", minimum=-1
    )


@dataclasses.dataclass(frozen=True)
class DecodeFlags:
    """Decoding"""

    batch_size: int = flag(128, "Rows in a batch on each device.", minimum=1, maximum=10**7)
    max_tokens: int = flag(
        0,
        "Source tokens in a batch on each device, padding included: batches of long rows hold fewer than -batch_size;"
        " 0 = no limit.",
        minimum=0,
    )
    beam_size: int = flag(1, "Beams; 1 = greedy.", minimum=1, maximum=1024)
    length_penalty: float = flag(
        1.0,
        "Exponent of the length by which a beam's log-probability is divided; 0 = off.",
        minimum=-10.0,
        maximum=10.0,
        metavar="X",
    )
    early_stopping: bool = flag(False, "End a row's beam search as soon as -beam_size outputs have ended.")
    max_predict_length: int = flag(512, "Longest prediction in tokens.", minimum=1)
    min_predict_length: int = flag(0, "Shortest prediction in tokens, the end token counted; 0 = off.", minimum=0)
    no_repeat_ngram_size: int = flag(0, "No n-gram of this many tokens occurs twice; 0 = off.", minimum=0)
    repetition_penalty: float = flag(
        1.0, "Scores of tokens that were written are divided (or, below 0, multiplied) by it; 1 = off.", minimum=1e-6
    )
    num_return: int = flag(
        1, "Outputs of a row, best first: at most -beam_size, or that many samples.", minimum=1, maximum=1024
    )
    do_sample: bool = flag(False, "Draw the tokens at random; each row from -seed and its number, in any batch.")
    temperature: float = flag(1.0, "Sampling: logits are divided by it; 1 = off.", minimum=1e-6)
    top_k: int = flag(0, "Sampling: only the K best tokens are drawn from; 0 = all.", minimum=0)
    top_p: float = flag(
        1.0, "Sampling: only the fewest tokens that hold this probability are drawn from; 1 = all.",
        minimum=1e-6, maximum=1.0,
    )  # fmt: skip
    seed: int = flag(123456, "Seed of -do_sample; beam search draws nothing.")
    engine: str = flag(
        "torch", "What decodes: our own search, or CTranslate2 (a package of its own) on a conversion.", choices=ENGINES
    )
    compute_type: str = flag("float32", "Arithmetic and weights of -engine ctranslate2.", choices=COMPUTE_TYPES)

    @property
    def width(self) -> int:
        """Outputs of a row that are under way together: its beams or its samples."""
        return self.num_return if self.do_sample else self.beam_size

    @property
    def has_rules(self) -> bool:
        """Whether the model's own scores are changed on the way."""
        return bool(self.no_repeat_ngram_size or self.min_predict_length) or self.repetition_penalty != 1.0


@dataclasses.dataclass(frozen=True)
class LabelFlags:
    """Labels"""

    label_decoding: str = flag(
        "generate",
        "How a task with labels is predicted: generate any text; constrained = search among the labels only;"
        " score = the probability of every label.",
        choices=LABEL_DECODINGS,
    )
    label_prior: str = flag(
        "none",
        "Score: what label probabilities are divided by: contextual = those of content-free inputs; domain = the mean"
        " of up to 1,000 rows of the input; none = nothing.",
        choices=LABEL_PRIORS,
    )
    calibrate: str = flag(
        "",
        "Score: labelled rows, like -valid_data, on which the temperature of the label probabilities is fitted;"
        " empty = -label_temperature.",
        metavar="PATH[:N]",
    )
    label_temperature: float = flag(
        1.0,
        "Score: temperature of the label probabilities, from 0.01 to 100; above 1 they are less sure, 1 = off.",
        minimum=0.01,
        maximum=100.0,
        metavar="X",
    )


@dataclasses.dataclass(frozen=True)
class InferenceDeviceFlags:
    """Devices"""

    gpus: int = flag(-1, "GPUs to use; -1 = all that are visible, else the CPU; 0 = the CPU, one process.", minimum=-1)
    cpu_processes: int = flag(0, "Processes that share the rows on the CPU; 0 = off.", minimum=0)
    float_precision: str = flag(
        "32", "Arithmetic: 32, 16 (= bf16 where the device has it), bf16, fp16 (not T5).", choices=PRECISIONS
    )


@dataclasses.dataclass(frozen=True)
class InferenceConfig:
    """Everything that a prediction run is made of."""

    model: InferenceModelFlags = InferenceModelFlags()
    data: DataFlags = DataFlags()
    length: LengthFlags = LengthFlags()
    output: OutputFlags = OutputFlags()
    decode: DecodeFlags = DecodeFlags()
    label: LabelFlags = LabelFlags()
    device: InferenceDeviceFlags = InferenceDeviceFlags()


@dataclasses.dataclass(frozen=True)
class ExportFlags:
    """Export"""

    model: tuple[str, ...] = flag(
        (),
        "A .ckpt file, a run's folder (its best/), or a from_pretrained folder; may repeat: the mean of all is"
        " exported.",
        metavar="PATH",
    )
    average: str = flag(
        "",
        "Export the mean of checkpoints: last:N (the newest N of the run of -model), best:N (the best N by the"
        " monitored score), or files and folders joined by commas; empty = no mean.",
        metavar="last:N|best:N|FILES",
    )
    save_path: str = flag(
        "",
        "Folder that is made; empty = <folder of the run>_hfmodel, for ctranslate2 <folder of the run>_ctranslate2.",
        metavar="FOLDER",
    )
    format: str = flag(
        "safetensors",
        "What is written: a from_pretrained folder, or a model for CTranslate2 (T5, mT5, ByT5, UMT5, BART, mBART).",
        choices=EXPORT_FORMATS,
    )
    compute_type: str = flag("float32", "How CTranslate2 holds the weights.", choices=COMPUTE_TYPES)
    overwrite: bool = flag(False, "Replace what an earlier export left in -save_path; nothing else is ever replaced.")


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """Everything that an export is made of."""

    export: ExportFlags = ExportFlags()
