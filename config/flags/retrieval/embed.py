"""Flags of `embed.py`; those of the devices are of inference.py. No torch import."""

from __future__ import annotations

import dataclasses

from config.flags.data import USER_CODE
from config.flags.inference import ON_GPUS, InferenceDeviceFlags
from config.parser import free

FOUND = {"corpus": "it is about what is found there"}
VECTOR_FILES, FOUND_FILES = (".npy", ".parquet"), (".jsonl", ".trec")


@dataclasses.dataclass(frozen=True)
class EmbedFlags:
    """Texts and their vectors"""

    model: str = free(
        "",
        "The model that reads the texts: a .ckpt file, a run's folder (its best/), a from_pretrained folder or a hub"
        " name; of train.py -task retrieval or any other.",
        required=True,
        metavar="MODEL",
        path="read",
    )
    task: str = free(
        "", "Task whose columns and templates are taken: a name, or a YAML file; empty = the checkpoint's.", path="read"
    )
    data: tuple[str, ...] = free(
        (),
        "Texts, a row each, in any format that -test_data of inference.py takes; may repeat.",
        required=True,
        metavar="PATH[:N]",
        path="read",
    )
    encode_as: str = free(
        "auto",
        "What the texts are, where the task is one of passages such as retrieval: it decides their column, their"
        " template (the prefix) and their longest length; auto = query with -corpus, else passage.",
        choices=("auto", "query", "passage"),
    )
    source_column: str = free("", "Column of the text: a name, or a number from 1; empty = the task's.")
    input_template: str = free(
        "", "Jinja template of the text, e.g. 'query: {{ source }}'; empty = the task's.", metavar="TEMPLATE"
    )
    id_column: str = free(
        "", "Column of what names a row: a name, or a number from 1; empty = rows are numbered from 0."
    )
    max_seq_length: int = free(
        0, "Longest text in tokens, special tokens included; 0 = that of the training, else the model's own limit.",
        minimum=0, trained=True)  # fmt: skip
    pooling: str = free(
        "auto",
        "The vector of a text: mean = of the encoder's states; decoder = the decoder's state at its start token;"
        " auto = as in the training, else mean.",
        choices=("auto", "mean", "decoder"),
    )
    normalize: bool = free(True, "Give vectors length 1, so that their inner products are cosines.")
    dtype: str = free("float32", "Type of the numbers in the vectors.", choices=("float32", "float16"))
    save_output: str = free(
        "",
        "File of the vectors in input order, .npy or .parquet; with -corpus of what was found, .jsonl or .trec.",
        required=True,
        metavar="FILE",
        path="written",
    )
    overwrite: bool = free(False, "Replace outputs that exist, and throw away finished parts of another command.")
    batch_size: int = free(128, f"Rows in a batch on each device{ON_GPUS}.", minimum=1, maximum=10**7)
    max_tokens: int = free(0, "Tokens in a batch on each device, padding included; 0 = no limit.", minimum=0)
    cache_dir: str = free("", "Folder of the encoded texts; empty = a temporary one.", path="written")
    user_code: tuple[str, ...] = free((), USER_CODE, metavar="FILE.py", path="read")


@dataclasses.dataclass(frozen=True)
class PassageSearchFlags:
    """Search among vectors"""

    corpus: str = free(
        "",
        "File of vectors of passages, which embed.py wrote: -data are then queries, and the passages nearest to each"
        " are found; empty = none.",
        metavar="FILE.npy|FILE.parquet",
        path="read",
    )
    top_k: int = free(100, "Passages that are found for a query.", minimum=1, maximum=10_000, needs=FOUND)
    qrels: str = free(
        "",
        "Which passages are relevant to which query, by their ids, a line each: 'query 0 passage grade' as TREC has it,"
        " or 'query passage grade' with a header as BEIR has it.",
        metavar="FILE",
        needs=FOUND,
        excludes={"relevant_column": "one of them says what is relevant"},
        path="read",
    )
    relevant_column: str = free(
        "",
        "Column of -data with the id of a relevant passage; rows of one query (by -id_column, else by its text) are"
        " taken together.",
        metavar="COLUMN",
        needs=FOUND,
    )
    save_report: str = free(
        "", "JSON file of the figures; empty = none.", metavar="FILE.json", needs=FOUND, path="written"
    )


@dataclasses.dataclass(frozen=True)
class EmbedConfig:
    """Everything that vectors are made of."""

    embed: EmbedFlags = EmbedFlags()
    search: PassageSearchFlags = PassageSearchFlags()
    device: InferenceDeviceFlags = dataclasses.field(default_factory=InferenceDeviceFlags)
