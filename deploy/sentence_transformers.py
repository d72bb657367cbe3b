"""A model as a folder for `sentence-transformers`: what that library needs to give the vectors of `embed.py`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from checkpoints.saved_run import trained_tasks
from config.flags.export import SENTENCE_TRANSFORMERS as FORMAT
from config.templates import Template
from metrics.registry import PASSAGES
from models.architectures import opened_alone
from models.retrieval.pooling import MEAN
from models.special_tokens import adds_no_end
from task_utils import Task
from utils.errors import UserError
from utils.files import write_json

PACKAGE = "sentence_transformers.models"
MODULES = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
MODES = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")


def check_readable(model_type: str, tokenizer: Any, state: Mapping[str, Any], place: str) -> None:
    """Refuse a model whose vectors the library would not give.

    Raises:
        UserError: another architecture or pooling; a tokenizer that adds no end token; a template that is no prefix.
    """
    flag = f"-format {FORMAT}"
    if model_type not in (read := opened_alone()):
        raise UserError(f"{flag}: is for the encoders of {', '.join(read)}, and {place} is a {model_type} model")
    pooling = state.get("flags", {}).get("pooling", MEAN)
    if pooling != MEAN:
        raise UserError(f"{flag}: has means of states alone, and {place} was trained with -pooling {pooling}")
    if adds_no_end(tokenizer):
        raise UserError(f"{flag}: the tokenizer of {place} adds no end token, on which the model was trained")
    prompts_of(state)


def prompts_of(state: Mapping[str, Any]) -> dict[str, str]:
    """What stands before queries and documents; none for a model that was not trained on passages.

    Raises:
        UserError: a template that is no prefix.
    """
    tasks = [Task.from_dict(task) for task in trained_tasks(state)]
    if len(tasks) != 1 or tasks[0].kind != PASSAGES:
        return {}
    task = tasks[0]
    return {
        "query": _prefix(task.input_template, "source", "-input_template"),
        "document": _prefix(task.target_template, "target", "-target_template"),
    }


def _prefix(template: str, name: str, flag: str) -> str:
    parts = Template(template, flag).parts or ()
    literals = [part for part in parts[:-1] if isinstance(part, str)]
    if not parts or len(literals) != len(parts) - 1 or getattr(parts[-1], "name", "") != name:
        raise UserError(f"-format {FORMAT}: has prefixes for prompts, and {flag} {template!r} is none")
    return "".join(literals)


def fill_sentence_transformers(folder: Path, width: int, state: Mapping[str, Any]) -> None:
    """Write the files of the library into a `from_pretrained` folder.

    Args:
        width: of the vectors.
        state: of the training; the longest text is that of queries or passages, whichever is longer.
    """
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"{PACKAGE}.{kind}"}
        for number, (path, kind) in enumerate(MODULES)
    ]
    write_json(folder / "modules.json", modules)
    modes = {f"pooling_mode_{mode}": mode == "mean_tokens" for mode in MODES}
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": width, **modes, "include_prompt": True}
    write_json(folder / "1_Pooling" / "config.json", pooling)
    flags = state.get("flags", {})
    limits = [int(flags.get(name) or 0) for name in ("max_seq_length", "max_target_length")]
    longest = max(limits) if all(limits) else None
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": longest, "do_lower_case": False})
    prompts = {"prompts": prompts_of(state), "default_prompt_name": None, "similarity_fn_name": "cosine"}
    write_json(folder / "config_sentence_transformers.json", prompts)
