"""Flags of `train.py` of the model and how it is tuned. No torch import."""

from __future__ import annotations

import dataclasses

from config.flags.data import NOT_TRIED
from config.flags.run import SHARDED
from config.parser import flag, free

FREEZABLE = ("embedding", "encoder", "decoder")
OF_A_MODEL = {"init_model": "its layers are taken"}
FULL = "finetune"  # the method without an adapter
WHOLE = "fp32"  # what the layers of a base model are loaded in without -load_in
LORA = "lora|dora|rslora|pissa|adalora"
OF_LAYERS = f"{LORA}|ia3"
PROMPTS = "prompt|ptuning"
ADAPTERS = f"{OF_LAYERS}|{PROMPTS}"
OF_LORA = {f"tuning_method={LORA}": "it is about the matrices of a LoRA"}
OF_ADAPTERS = {f"tuning_method={OF_LAYERS}": "it is about adapters of layers"}
OF_PROMPTS = {f"tuning_method={PROMPTS}": "it is about the virtual tokens of these"}


@dataclasses.dataclass(frozen=True)
class TrainModelFlags:
    """Model"""

    init_model: str = flag(
        "",
        "Pretrained model to start from: a folder or a hub name; or give -config_path.",
        resume="if given",
        path="read",
    )
    config_path: str = flag(
        "",
        "Train from scratch: a model config (JSON) or the name of a preset in configs/, e.g. bart-mini.",
        resume="if given",
        excludes={"init_model": "give pretrained weights or a config"},
        path="read",
    )
    encoder_layers: int = flag(
        0,
        "Layers of the encoder of -init_model to start from, evenly spaced from the first to the last; 0 = all.",
        minimum=0,
        resume="if given",
        needs=OF_A_MODEL,
    )
    decoder_layers: int = flag(
        0,
        "Layers of the decoder of -init_model to start from, evenly spaced from the first to the last; 0 = all.",
        minimum=0,
        resume="if given",
        needs=OF_A_MODEL,
    )
    tokenizer: str = flag(
        "",
        "Tokenizer folder or hub name, or 'bytes' (ByT5's); empty = that of the model or preset.",
        resume="if given",
        path="read",
    )
    tuning_method: str = flag(
        FULL,
        "How the weights are tuned: finetune trains all of them, the others an adapter (by peft) on a frozen model, and"
        " checkpoints, best/ and last/ hold the adapter only.",
        choices=(FULL, *ADAPTERS.split("|")),
        resume="never",
        excludes={
            "config_path": "an adapter is for a pretrained model; give -init_model",
            "encoder_layers": "an adapter is for a whole pretrained model",
            "decoder_layers": "an adapter is for a whole pretrained model",
            "compile": NOT_TRIED,
            "teacher": NOT_TRIED,
            SHARDED: NOT_TRIED,
            "freeze": "an adapter freezes the model itself; -target_modules says which layers it goes to",
        },
    )
    lora_r: int = flag(
        8,
        "Rank of a LoRA's matrices; adalora begins with 1.5 times as much, and leaves this on average.",
        minimum=1,
        maximum=4096,
        resume="never",
        needs=OF_LORA,
    )
    lora_alpha: int = flag(
        16,
        "A LoRA's update is multiplied by this over -lora_r (rslora: over its square root; adalora: over the rank that"
        " it begins with).",
        minimum=1,
        maximum=10**9,
        resume="never",
        needs=OF_LORA,
    )
    lora_dropout: float = flag(
        0.0, "Dropout of a LoRA's inputs; 0 = off.", minimum=0.0, maximum=0.9, resume="never", needs=OF_LORA
    )
    num_virtual_tokens: int = flag(
        20,
        "Trained vectors in front of every source, which is so many tokens longer for the model.",
        minimum=1,
        maximum=4096,
        resume="never",
        needs=OF_PROMPTS,
    )
    target_modules: tuple[str, ...] = flag(
        (),
        "Linear layers that the adapter goes to, by the end of their names (q, SelfAttention.v, fc1), or all-linear;"
        " empty = queries and values (ia3: keys, values and the second feed-forward layer).",
        metavar="NAME",
        resume="never",
        needs=OF_ADAPTERS,
    )
    modules_to_save: tuple[str, ...] = flag(
        (),
        "Module that is trained in full beside the adapter, by the end of its name, e.g. lm_head.",
        metavar="NAME",
        resume="never",
        needs=OF_ADAPTERS,
    )
    load_in: str = flag(
        WHOLE,
        "How the frozen linear layers are kept while an adapter is trained: fp32, 8bit or 4bit (both by bitsandbytes);"
        " the adapter, embeddings and output layer stay in fp32.",
        choices=(WHOLE, "8bit", "4bit"),
        needs={
            "tuning_method=lora|rslora|adalora|ia3": "weights of 8 or 4 bits cannot be trained, an adapter on them can"
        },
    )
    freeze: tuple[str, ...] = flag(
        (),
        "Part that is not trained: embedding, encoder, decoder, layers:A-B (of both, from 0), or a regular expression"
        " that is searched in the names of parameters.",
        metavar="embedding|encoder|decoder|layers:A-B|REGEX",
        resume="optimizer",
        excludes={
            "strategy=deepspeed_3|deepspeed_3_full": "DeepSpeed takes a layer apart in the middle of its backward pass"
            " where nothing below it is trained; give -strategy fsdp or deepspeed_2"
        },
    )
    gradient_checkpointing: bool = free(
        False, "Recompute activations in the backward pass: less memory, about a third slower."
    )

    @property
    def virtual_tokens(self) -> int:
        """Virtual tokens in front of every source; 0 = none."""
        return self.num_virtual_tokens if self.tuning_method in PROMPTS.split("|") else 0
