"""Flags of `serve.py`; those of decoding, labels and devices are of inference.py. No torch import."""

from __future__ import annotations

import dataclasses

from config.flags.data import BASE_MODEL, USER_CODE, DataFlags, LengthFlags
from config.flags.inference import (
    DecodeFlags,
    InferenceConfig,
    InferenceDeviceFlags,
    InferenceModelFlags,
    LabelFlags,
    OutputFlags,
)
from config.parser import free

TOKEN_VARIABLE = "SERVE_TOKEN"
ANSWERS = OutputFlags(save_output="predictions.jsonl")  # an answer holds what a row of such a file would


@dataclasses.dataclass(frozen=True)
class ServeFlags:
    """Server"""

    model: tuple[str, ...] = free(
        (),
        "A .ckpt file, a run's folder (its best/), a from_pretrained folder or a hub name; several answer side by"
        " side.",
        required=True,
        metavar="MODEL",
        path="read",
    )
    base_model: str = free("", BASE_MODEL, path="read")
    tokenizer: str = free("", "Tokenizer folder or hub name, or 'bytes'; empty = the model's own.", path="read")
    task: str = free(
        "", "Name of a built-in task, or a YAML task file; empty = the checkpoint's, else seq2seq.", path="read"
    )
    user_code: tuple[str, ...] = free((), USER_CODE, metavar="FILE.py", path="read")
    max_seq_length: int = free(
        0, "Longest source in tokens, special tokens included; 0 = that of the training, else the model's.", minimum=0
    )
    doc_stride: int = free(
        0,
        "Overlap in tokens of the windows into which the passage of a source longer than -max_seq_length is split, for"
        " tasks with a passage such as squad; 0 = the source is cut. If it is not given, that of the training holds.",
        minimum=0,
    )
    host: str = free("127.0.0.1", "Address to listen at; 0.0.0.0 = all of this machine's, for whoever reaches it.")
    port: int = free(8000, "Port to listen at.", minimum=1, maximum=65535)
    allowed_host: tuple[str, ...] = free(
        (),
        "Name under which clients reach the server, besides localhost and addresses; may repeat. Requests to other"
        " names are refused.",
        metavar="NAME",
    )
    token_file: str = free(
        "",
        f"File that holds the token that requests must bear; empty = the environment variable {TOKEN_VARIABLE}, else"
        " none.",
        metavar="FILE",
        path="read",
    )
    max_rows: int = free(1000, "Rows that one request may have.", minimum=1, maximum=100_000)
    max_source: int = free(
        4096,
        "Tokens that a source may have, after a cut at -max_seq_length or at the model's own limit, or in all its"
        " windows together; 0 = no limit.",
        minimum=0,
    )
    max_body: int = free(4 << 20, "Bytes that the body of a request may have.", minimum=1 << 10, maximum=1 << 28)
    max_queue: int = free(4000, "Rows that may wait; a request that finds more is refused with 503.", minimum=1)
    batch_wait: float = free(
        2.0,
        "Milliseconds that a batch waits for as many requests as the one before it had; 0 = it is what waits when the"
        " one before it is done.",
        minimum=0.0,
        maximum=10_000.0,
        metavar="X",
    )
    timeout: float = free(
        60.0, "Seconds within which a request is answered, else refused with 504.", minimum=0.1, metavar="X"
    )


@dataclasses.dataclass(frozen=True)
class ServeConfig:
    """Everything that a server is made of."""

    serve: ServeFlags = ServeFlags()
    decode: DecodeFlags = dataclasses.field(default_factory=DecodeFlags)
    label: LabelFlags = dataclasses.field(default_factory=LabelFlags)
    device: InferenceDeviceFlags = dataclasses.field(default_factory=InferenceDeviceFlags)

    def of_model(self, name: str) -> InferenceConfig:
        """The prediction that each request to one of the models is."""
        flags = self.serve
        model = InferenceModelFlags(
            model=(name,),
            base_model=flags.base_model,
            tokenizer=flags.tokenizer,
            task=flags.task,
            user_code=flags.user_code,
        )
        length = LengthFlags(max_seq_length=flags.max_seq_length, doc_stride=flags.doc_stride)
        return InferenceConfig(
            model, DataFlags(), length, ANSWERS, decode=self.decode, label=self.label, device=self.device
        )
