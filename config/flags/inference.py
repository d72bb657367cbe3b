"""Flags of `inference.py` alone; those that it shares with `train.py` stand in data.py. No torch import."""

from __future__ import annotations

import dataclasses

from config.flags.data import BASE_MODEL, GPUS_HELP, PRECISION_HELP, PRECISIONS, USER_CODE, DataFlags, LengthFlags
from config.parser import flag, free

LABEL_DECODINGS = ("generate", "constrained", "score")
LABEL_PRIORS = ("none", "contextual", "domain")
ENGINES = ("torch", "ctranslate2")
COMPUTE_TYPES = ("float32", "int8", "float16", "bfloat16")

ROWS_ON_GPUS, TOKENS_ON_GPUS = 512, 2**15  # of a batch; the same on all, so that one can go on for another
ON_GPUS = (
    f"; on GPUs {ROWS_ON_GPUS} of up to {TOKENS_ON_GPUS} tokens together, if neither this nor -max_tokens is given"
)

# What `needs` and `excludes` of several flags share.
CHOSEN = "labels are chosen by the model's own scores"
SCORED = {"label_decoding=score": "it looks at every label and searches nothing"}
RULES = {
    "label_decoding=constrained|score": CHOSEN,
    "engine=ctranslate2 beam_size": "its scores would be others than those of -engine torch; give -beam_size 1",
}
SAMPLING = {"do_sample": "it is about drawing tokens"}
PROBABILITIES = {"label_decoding=score": "it is about label probabilities"}
OUTPUT_FILES = ("save_output", "save_label", "save_report")
SCORING, WRITTEN = "files are scored, and nothing is predicted", ("save_output", "save_label", "keep_fields")
NO_FILES = {"test_data=-": "predictions go to standard output, a line each; give a file of rows"}
HELD_OUT = {"calibrate": "it is a promise that labelled rows must show"}
ONE_BY_ONE = {"label_prior=domain": "it looks at the input as a whole, and what labelled rows show no longer holds"}
ALL_ROWS = {"test_data=-": "a prior and a calibration need all rows, and a line holds no probabilities"}


@dataclasses.dataclass(frozen=True)
class InferenceModelFlags:
    """Model and task"""

    model: tuple[str, ...] = free(
        (),
        "A .ckpt file, a run's folder (its best/), a from_pretrained folder or a hub name; several decode together (an"
        " ensemble).",
        required=True,
        unless=("score_only",),
        metavar="MODEL",
        path="read",
    )
    adapter: tuple[str, ...] = free(
        (),
        "Adapter to predict with, on -model as its base model: a run's folder, its best/ or last/. Several are"
        " predicted one after the other, the base is loaded once, and {adapter} in a -save_ name becomes the name of"
        " the run.",
        metavar="FOLDER",
        excludes={
            "score_only": SCORING,
            "test_data=-": "a line has one prediction; give a file of rows",
        },
        path="read",
    )
    all_checkpoints: bool = free(
        False,
        "Score every checkpoint of the run that -model names, and say which is best: by the first of -metrics, else by"
        " the task's first metric. -save_output gets the predictions of the best.",
        excludes={
            "score_only": SCORING,
            "adapter": "give the run of the adapter as -model",
            "openai_batch": "requests have no references",
            "engine=ctranslate2": "it would convert every checkpoint; find the best first",
            **NO_FILES,
        },
    )
    base_model: str = free("", BASE_MODEL, path="read")
    tokenizer: str = free("", "Tokenizer folder or hub name, or 'bytes'; empty = the model's own.", path="read")
    task: str = free(
        "", "Name of a built-in task, or a YAML task file; empty = the checkpoint's, else seq2seq.", path="read"
    )
    user_code: tuple[str, ...] = free((), USER_CODE, metavar="FILE.py", path="read")


@dataclasses.dataclass(frozen=True)
class ScoringFlags:
    """Scoring without a model"""

    score_only: bool = free(
        False,
        "Score a file of predictions by the metrics of -task; nothing is predicted.",
        excludes=dict.fromkeys(("model", "train_data", "valid_data", "test_data", *WRITTEN), SCORING),
    )
    predictions: tuple[str, ...] = free(
        (),
        "Predictions, a row each: .jsonl or .tsv as -save_output writes them, or plain lines. A second file is compared"
        " with the first, see -confidence.",
        metavar="FILE",
        needs={"score_only": "it is scored without a model"},
        path="read",
    )
    references: tuple[str, ...] = free(
        (),
        "References of the same rows: data like -test_data, read by the task, or plain lines as -save_label writes"
        " them.",
        metavar="PATH[:N]",
        needs={"score_only": "predicted rows have their own"},
        path="read",
    )


@dataclasses.dataclass(frozen=True)
class OutputFlags:
    """Output"""

    metrics: str = free(
        "",
        "Metrics besides those of the task, names joined by commas; empty = none.",
        metavar="NAMES",
        excludes=NO_FILES,
    )
    confidence: float = free(
        0.0,
        "Level of the bootstrap intervals of the metrics, e.g. 0.95, and of the paired comparison of two -predictions;"
        " 0 = off.",
        minimum=0.0,
        maximum=0.9999,
        excludes=NO_FILES,
    )
    group_by: tuple[str, ...] = free(
        (),
        "Column of the input for whose values the metrics are given one by one as well, e.g. a language pair; may"
        " repeat. For .tsv, .csv, .jsonl and .json files.",
        metavar="COLUMN",
        excludes=NO_FILES,
    )
    save_output: str = free(
        "",
        "File of predictions in input order: a line a row, or .jsonl / .tsv with source, reference and score;"
        " empty = none.",
        metavar="FILE",
        excludes=NO_FILES,
        path="written",
    )
    openai_batch: bool = free(
        False,
        "Read -test_data as a batch file of OpenAI's API (.jsonl, a request a line; the last user turn is the source),"
        " and write -save_output as its output file.",
        needs={"test_data": "its rows are requests"},
        excludes={
            "score_only": SCORING,
            **dict.fromkeys(("source_column", "target_column", "header"), "a request has no columns"),
            **dict.fromkeys(("num_return", "keep_fields", "highlight", "label_sets"), "an answer has no place for it"),
            **dict.fromkeys(("group_by", "save_label"), "requests have no references"),
        },
    )
    save_label: str = free(
        "",
        "File of references, one line a row in input order; empty = none.",
        metavar="FILE",
        excludes=NO_FILES,
        path="written",
    )
    save_report: str = free(
        "",
        "File of metrics, per-class figures and settings: .json, or .html for a page with charts and the worst rows;"
        " empty = none.",
        metavar="FILE",
        excludes=NO_FILES,
        path="written",
    )
    report_images: bool = free(
        False,
        "Draw the charts of a -save_report REPORT.html as PNGs too, into REPORT_images/ beside it; needs matplotlib.",
        needs={"save_report": "the charts are those of its page"},
    )
    overwrite: bool = free(False, "Replace output files that exist, and throw away finished parts of another command.")
    keep_fields: bool = free(
        False, "Copy each row of a .tsv, .csv, .jsonl or .json input to the output, as input.", excludes=NO_FILES
    )
    label_correction: str = free(
        "nearest", "What becomes of a predicted text that is no label.", choices=("nearest", "none")
    )
    label_max_distance: int = free(
        -1, "Largest edit distance (characters) at which a text is corrected to a label; -1 = no limit.", minimum=-1
    )


@dataclasses.dataclass(frozen=True)
class DecodeFlags:
    """Decoding"""

    batch_size: int = flag(128, f"Rows in a batch on each device{ON_GPUS}.", minimum=1, maximum=10**7)
    max_tokens: int = flag(
        0,
        "Source tokens in a batch on each device, padding included: batches of long rows hold fewer than -batch_size;"
        " 0 = no limit.",
        minimum=0,
    )
    beam_size: int = flag(1, "Beams; 1 = greedy.", minimum=1, maximum=1024, excludes=SCORED)
    length_penalty: float = flag(
        1.0,
        "Exponent of the length by which a beam's log-probability is divided; 0 = off.",
        minimum=-10.0,
        maximum=10.0,
        metavar="X",
        excludes=SCORED,
    )
    early_stopping: bool = flag(
        False,
        "End a row's beam search as soon as -beam_size outputs have ended.",
        needs={"beam_size": "greedy search has no beams that end"},
        excludes=SCORED,
    )
    max_predict_length: int = flag(
        0, "Longest prediction in tokens; 0 = 512, or with labels 8 more than the longest label.", minimum=0
    )
    min_predict_length: int = flag(
        0, "Shortest prediction in tokens, the end token counted; 0 = off.", minimum=0, excludes=RULES
    )
    no_repeat_ngram_size: int = flag(
        0, "No n-gram of this many tokens occurs twice; 0 = off.", minimum=0, excludes=RULES
    )
    repetition_penalty: float = flag(
        1.0,
        "Scores of tokens that were written are divided (or, below 0, multiplied) by it; 1 = off.",
        minimum=1e-6,
        excludes=RULES,
    )
    num_return: int = flag(
        1,
        "Outputs of a row, best first: at most -beam_size, or that many samples.",
        minimum=1,
        maximum=1024,
        excludes=SCORED,
    )
    do_sample: bool = flag(
        False,
        "Draw the tokens at random; each row from -seed and its number, in any batch.",
        excludes={
            "beam_size": "draw, or search",
            "label_decoding=constrained|score": CHOSEN,
            "engine=ctranslate2": "only -engine torch draws with a seed for each row",
        },
    )
    temperature: float = flag(1.0, "Sampling: logits are divided by it; 1 = off.", minimum=1e-6, needs=SAMPLING)
    top_k: int = flag(0, "Sampling: only the K best tokens are drawn from; 0 = all.", minimum=0, needs=SAMPLING)
    top_p: float = flag(
        1.0, "Sampling: only the fewest tokens that hold this probability are drawn from; 1 = all.",
        minimum=1e-6, maximum=1.0, needs=SAMPLING)  # fmt: skip
    seed: int = flag(123456, "Seed of -do_sample; beam search draws nothing.", decides="do_sample")
    engine: str = flag(
        "torch", "What decodes: our own search, or CTranslate2 (a package of its own) on a conversion.", choices=ENGINES
    )
    compute_type: str = flag(
        "float32",
        "Arithmetic and weights of -engine ctranslate2.",
        choices=COMPUTE_TYPES,
        needs={"engine=ctranslate2": "-engine torch has -float_precision"},
    )

    compile: bool = flag(
        False,
        "Compile the decoder's layers with torch.compile, in a minute or more, for large inputs: CUDA graphs on a GPU."
        " Needs a C++ compiler, and Triton on a GPU; not measured on one, and no faster on a CPU.",
        excludes={**SCORED, "engine=ctranslate2": "it compiles the search of -engine torch"},
    )

    @classmethod
    def likeliest(cls, count: int) -> DecodeFlags:
        """A search for that many outputs by their probability, whatever their length."""
        return cls(beam_size=count, num_return=count, length_penalty=0.0)

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
        "How a task with labels is predicted: generate any text; constrained = search among the labels only,"
        " and for answers among the parts of the passage only; score = the probability of every label.",
        choices=LABEL_DECODINGS,
        excludes={"engine=ctranslate2": "it has no search among labels"},
    )
    label_prior: str = flag(
        "none",
        "Score: what label probabilities are divided by: contextual = those of content-free inputs; domain = the mean"
        " of up to 1,000 rows of the input; none = nothing.",
        choices=LABEL_PRIORS,
        needs=PROBABILITIES,
        excludes=ALL_ROWS,
    )
    calibrate: str = flag(
        "",
        "Score: labelled rows, like -valid_data, on which the temperature of the label probabilities is fitted;"
        " empty = -label_temperature.",
        metavar="PATH[:N]",
        needs=PROBABILITIES,
        excludes={"label_temperature": "one fits the temperature, the other gives it", **ALL_ROWS},
        decides=False,
        path="read",
    )
    label_sets: float = flag(
        0.0,
        "Score: probability with which the set of labels written for a row holds the right one, e.g. 0.9; fitted on"
        " half of the rows of -calibrate. 0 = off.",
        minimum=0.0,
        maximum=0.9999,
        metavar="X",
        needs=HELD_OUT,
        excludes=ONE_BY_ONE,
        decides=False,
    )
    abstain: float = flag(
        0.0,
        "Score: largest share of wrong ones among the rows that are answered, e.g. 0.05; the others get an empty"
        " prediction. Fitted on half of the rows of -calibrate. 0 = off.",
        minimum=0.0,
        maximum=0.9999,
        metavar="X",
        needs=HELD_OUT,
        excludes=ONE_BY_ONE,
        decides=False,
    )
    thresholds: str = flag(
        "",
        "Score, where rows may have several labels: labelled rows, like -valid_data, on which the threshold of every"
        " label is fitted that gives the best F1; empty = 0.5 for all.",
        metavar="PATH[:N]",
        needs=PROBABILITIES,
        excludes={"test_data=-": "thresholds are fitted before the rows of a file; a line is judged by 0.5"},
        decides=False,
        path="read",
    )
    label_temperature: float = flag(
        1.0,
        "Score: temperature of the label probabilities, from 0.01 to 100; above 1 they are less sure, 1 = off.",
        minimum=0.01,
        maximum=100.0,
        metavar="X",
        needs=PROBABILITIES,
        excludes=ALL_ROWS,
    )
    highlight: bool = flag(
        False,
        "Score: write for every row what the label's probability loses without each word of the source, and the word"
        " without which it loses most.",
        needs=PROBABILITIES,
        excludes=NO_FILES,
    )


@dataclasses.dataclass(frozen=True)
class InferenceDeviceFlags:
    """Devices"""

    gpus: int = free(-1, GPUS_HELP, minimum=-1)
    cpu_processes: int = free(0, "Processes that share the rows on the CPU; 0 = off.", minimum=0)
    float_precision: str = flag(
        "auto",
        PRECISION_HELP,
        choices=PRECISIONS,
        excludes={"engine=ctranslate2": "it has -compute_type"},
    )


@dataclasses.dataclass(frozen=True)
class InferenceConfig:
    """Everything that a prediction run is made of."""

    model: InferenceModelFlags = InferenceModelFlags()
    data: DataFlags = dataclasses.field(default_factory=DataFlags)
    length: LengthFlags = dataclasses.field(default_factory=LengthFlags)
    output: OutputFlags = OutputFlags()
    scoring: ScoringFlags = ScoringFlags()
    decode: DecodeFlags = DecodeFlags()
    label: LabelFlags = LabelFlags()
    device: InferenceDeviceFlags = InferenceDeviceFlags()
