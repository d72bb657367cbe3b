"""Writes a run as a folder that others load."""

from __future__ import annotations

import itertools
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from checkpoints.model_paths import EXPORTS, model_path
from checkpoints.run_folder import CHECKPOINT_FOLDER, holds_run
from config.checks import NO_UTF8_NAME
from config.flags.export import SENTENCE_TRANSFORMERS as FORMAT
from config.flags.export import ExportFlags
from utils.console import tell
from utils.errors import UserError, raise_if_any
from utils.escapes import is_unicode
from utils.json_files import read_json
from utils.libraries import require_package

if TYPE_CHECKING:
    from checkpoints.model_source import InferenceModel
    from deploy.proof import ProofRows

MARK = "export.json"  # says that a folder is an export, of what, and which files are its own
EXPORTED = re.compile(  # what an export writes: state, model, tokenizer, or what CTranslate2 makes of them
    r"(export|training_state|config|modules|sentence_bert_config|config_sentence_transformers|generation_config|model\.safetensors\.index|shared_vocabulary|tokenizer|"
    r"tokenizer_config|special_tokens_map|added_tokens|(target_)?vocab(-src|-tgt)?|normalizer|entity_vocab|emoji)\.json|"
    r"model(-\d{5}-of-\d{5})?\.safetensors|model\.bin|chat_template\.jinja|(vocab|merges|dict)\.txt|bpe\.codes|"
    r"(spiece|spm|spm_char|sentencepiece|sentencepiece\.bpe|tokenizer)\.model|(source|target)\.spm|"
    r"(encoder|prefill|decode)\.onnx(\.data)?|adapter_config\.json|adapter_model\.safetensors|prophetnet\.tokenizer|end_token\.txt|"
    r"modeling_switch_t5\.py|"
    r"README\.md|1_Pooling/config\.json"
)
SUFFIXES = {"safetensors": "_hfmodel", "ctranslate2": "_ctranslate2", "onnx": "_onnx", FORMAT: "_sentence_transformers"}


def run(flags: ExportFlags) -> int:
    target = target_folder(flags)
    check_target(target, flags)
    destination = None
    if flags.push_to_hub:
        from deploy.hub import repository

        destination = repository(flags.push_to_hub, flags.public)
    from checkpoints.model_source import InferenceModel
    from utils.libraries import quiet_libraries

    quiet_libraries()
    names = source_names(flags)
    raise_if_any(
        f"-save_path {target}: would replace {name}, which is exported; choose another folder"
        for name in names
        if _same_or_inside(Path(name), target)
    )
    flag = "-average" if flags.average else "-model"
    sources = [InferenceModel(name, flag=flag, base=flags.base_model) for name in names]
    if flags.format == "ctranslate2":
        require_package("ctranslate2", "-format ctranslate2")
    if flags.format == "onnx":
        from generation.engines.onnx import check_onnx

        check_onnx(sources[0].config_and_tokenizer()[0].model_type, "-format onnx")
    if flags.format == FORMAT:
        from deploy.sentence_transformers import check_readable

        model_config, tokenizer = sources[0].config_and_tokenizer()
        check_readable(model_config.model_type, tokenizer, sources[0].saved_state(), f"{flag} {names[0]}")
    check_merging(flags, sources)
    tell(f"-model {names[0]}" if len(names) == 1 else f"mean of {len(names)} checkpoints: {', '.join(names)}")
    tell(*(line for source in sources for line in source.notes()))
    with tempfile.TemporaryDirectory() as temporary:
        rows = None
        if flags.valid_data:
            from deploy.proof import proof_rows

            rows = proof_rows(flags, names[0], Path(temporary))
        write(flags, names, target, rows, destination.name if destination else target.name)
    tell(f"exported: {target}")
    if destination:
        destination.push(target, sorted(_own_files(target)))
    return 0


def target_folder(flags: ExportFlags) -> Path:
    """-save_path, else the name beside the run's folder that goes with the format."""
    if flags.save_path.strip():
        path = Path(flags.save_path)
        return path if path.name not in ("", "..") else Path(os.path.abspath(path))
    run = run_of(flags.model[0]) if flags.model else None
    if run is None:
        missing = [name for name in flags.model if not os.path.lexists(name)]
        raise_if_any(f"-model {name}: no such file or folder; a model of the hub needs -save_path" for name in missing)
        raise UserError("-save_path is required: -model is no folder of a run, nor a checkpoint in one")
    run = run.absolute()
    return run.with_name(run.name + SUFFIXES[flags.format])


def run_of(name: str) -> Path | None:
    """The run's folder that `name` is, or that holds it as a checkpoint, best/ or last/; None when there is none."""
    path = Path(os.path.abspath(name))
    if path.is_dir():
        choices = [path, path.parent] if path.name in EXPORTS else [path]
        return next((folder for folder in choices if (folder / CHECKPOINT_FOLDER).is_dir()), None)
    run = path.parent.parent
    return run if path.parent.name == CHECKPOINT_FOLDER and holds_run(run) else None


def within_run(name: str) -> str:
    """`RUN/best`, `RUN/saved_checkpoints/x.ckpt`, or the last part of another path: not where it lies on a machine."""
    run = run_of(name)
    if run:
        return str(Path(run.name) / Path(os.path.abspath(name)).relative_to(run))
    return Path(os.path.abspath(name)).name if os.path.exists(name) else name


def source_names(flags: ExportFlags) -> list[str]:
    """The checkpoints whose mean is exported; one = that itself. A run's folder stands for its best/, else last/."""
    from checkpoints.averaging import chosen_checkpoints

    if flags.average:
        if len(flags.model) > 1:
            raise UserError("-average and several -model exclude each other; give one run with -average")
        names = chosen_checkpoints(flags.average, run_of(flags.model[0]) if flags.model else None)
        if flags.model and not flags.average.startswith(("last:", "best:")):
            raise UserError(f"-average {flags.average}: names the files; leave -model out")
    else:
        names = list(flags.model)
    place = f"-average {flags.average}" if flags.average else "-model"
    names = [model_path("-average" if flags.average else "-model", name) for name in names]
    raise_if_any(
        f"{place}: {name} and {other} are the same checkpoint; each is named once"
        for name, other in itertools.combinations(names, 2)
        if os.path.exists(name) and os.path.exists(other) and os.path.samefile(name, other)
    )
    return names


def check_target(target: Path, flags: ExportFlags) -> None:
    """Refuse a target that cannot be made, or that holds anything but an earlier export.

    Raises:
        UserError: says what is there, and the way out.
    """
    place = f"-save_path {target}"
    if not is_unicode(str(target)):
        raise UserError(f"{place}: {NO_UTF8_NAME}")
    if not target.exists() and not target.is_symlink():
        parent = next(path for path in target.absolute().parents if path.exists())
        if not parent.is_dir():
            raise UserError(f"{place}: {parent} is no folder")
        if not os.access(parent, os.W_OK):
            raise UserError(f"{place}: no permission to write in {parent}")
        return
    if target.is_symlink() or not target.is_dir():
        raise UserError(f"{place}: exists and is {'a link' if target.is_symlink() else 'no folder'}; choose another")
    try:
        own = _own_files(target)
        foreign = _foreign_names(target, own)
    except OSError as error:
        raise UserError(f"{place}: cannot be read ({error.strerror}); choose another folder") from error
    if foreign:
        raise UserError(f"{place}: holds what no export wrote ({', '.join(foreign)}); choose another folder")
    if own and not flags.overwrite:
        raise UserError(f"{place}: holds an export already; -overwrite replaces it, or choose another folder")


def _foreign_names(target: Path, own: set[str]) -> list[str]:
    """The first files and folders in `target` that its export did not write."""
    with os.scandir(target) as entries:
        there = {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}
    found = [
        f"{name}/" if is_folder else name
        for name, is_folder in sorted(there.items())
        if (name not in own if not is_folder else not _is_own_folder(target / name, own))
    ]
    return found[:3]


def _is_own_folder(folder: Path, own: set[str]) -> bool:
    """Whether an export made the folder and all that is in it."""
    there = {f"{folder.name}/{name}" for name in os.listdir(folder)}
    return bool(there) and not folder.is_symlink() and there <= own


def _own_files(target: Path) -> set[str]:
    """The files that the export in `target` wrote; none when there is no export.

    Its `export.json` is believed no more than that: a name that no export writes is not taken from it.
    """
    try:
        content = read_json(target / MARK)
        return {MARK, *filter(EXPORTED.fullmatch, map(str, content["files"]))}
    except (OSError, ValueError, TypeError, KeyError):
        return set()


def _same_or_inside(path: Path, folder: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def write(
    flags: ExportFlags, names: Sequence[str], target: Path, rows: ProofRows | None = None, title: str = ""
) -> None:
    """Load the model of `names` (their mean) and write it to `target`.

    Args:
        rows: that it and the export both decode.
        title: what the model card calls the model.

    Raises:
        UserError: a checkpoint cannot be read or converted, the mean cannot be taken, or the export decodes otherwise.
        RunError: the disk refused; what was there before is untouched.
    """
    from checkpoints.averaging import averaged
    from checkpoints.model_folder import model_bytes
    from checkpoints.model_source import InferenceModel
    from checkpoints.saved_run import DIGEST_KEY
    from generation.decoder import generation_config
    from utils.files import clean_folder_leftovers, write_folder, write_json

    flag = "-average" if flags.average else "-model"
    single = InferenceModel(names[0], flag=flag, base=flags.base_model)
    state = saved_state(names, flag)
    if single.is_adapter and not flags.merge:
        model, tokenizer = single.load(), single.config_and_tokenizer()[1]
    else:
        model, tokenizer = single() if len(names) == 1 else averaged(names, flag)
        state.pop(DIGEST_KEY, None)
    if state or len(names) > 1:  # ours: any other model keeps its own settings
        model.generation_config = generation_config(model, tokenizer)

    def fill(folder: Path) -> None:
        _fill_model(folder, model, tokenizer, state, flags)
        if flags.model_card or flags.push_to_hub:
            from deploy.model_card import write_card

            write_card(folder, title, state, names, flags, tokenizer)
        files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        content: dict[str, Any] = {
            **(read_json(folder / MARK) if flags.format == "onnx" else {}),  # the exporter's, by the same name
            "model": [within_run(name) for name in names],
            "format": flags.format,
            "average": flags.average,
            "files": files,
        }
        if flags.format == "ctranslate2":
            content["compute_type"] = flags.compute_type
        if rows is not None:
            from deploy.proof import prove

            content["proof"] = prove(rows, flags, folder, model, tokenizer)
        write_json(folder / MARK, content)

    clean_folder_leftovers(target)
    write_folder(target, fill, needed=model_bytes(model))


def _fill_model(folder: Path, model: Any, tokenizer: Any, state: dict[str, Any], flags: ExportFlags) -> None:
    """Write the files of the format into `folder`."""
    from checkpoints.model_folder import fill_folder

    if flags.format == "ctranslate2":
        fill_ctranslate2(folder, model, tokenizer, state, flags.compute_type)
    elif flags.format == "onnx":
        fill_onnx(folder, model, tokenizer, state)
    else:
        fill_folder(folder, model, tokenizer, state)
    if flags.format == FORMAT:
        from deploy.sentence_transformers import fill_sentence_transformers

        fill_sentence_transformers(folder, model.config.d_model, state)


def check_merging(flags: ExportFlags, sources: Sequence[InferenceModel]) -> None:
    """Refuse -merge or -base_model for a full model, and adapters where a full model is needed.

    Raises:
        UserError: says which, and the way out.
    """
    adapters = [source.name for source in sources if source.is_adapter]
    if (flags.merge or flags.base_model) and not adapters:
        given = "-merge" if flags.merge else f"-base_model {flags.base_model}"
        raise UserError(f"{given}: is for an adapter, and {sources[0].name} is a full model")
    virtual = next((source.name for source in sources if source.virtual_tokens), "")
    if virtual and flags.merge:
        raise UserError(f"-merge: {virtual} has virtual tokens in front of its sources, which no weights can stand for")
    if len(sources) > 1 and adapters:
        raise UserError(
            f"{adapters[0]}: an adapter, and the mean of adapters is none; write each as a full model with -merge, and"
            " take the mean of those"
        )
    if adapters and flags.format != "safetensors" and not flags.merge:
        raise UserError(f"-format {flags.format}: holds full models, and {adapters[0]} is an adapter; give -merge")
    if adapters and flags.valid_data and not flags.merge:
        raise UserError(
            f"-valid_data: decodes full models, and {adapters[0]} is an adapter; give -merge, or leave it out"
        )


def saved_state(names: Sequence[str], flag: str) -> dict[str, Any]:
    """training_state.json of the export; empty for a model that we did not train.

    For a mean it is that of the first, without scores, with `average_of`.
    """
    from checkpoints.model_folder import exported_at, training_state
    from checkpoints.model_source import InferenceModel
    from checkpoints.saved_run import read_run

    model = InferenceModel(names[0], flag=flag)
    if model.is_checkpoint:
        run = read_run(Path(names[0]), flag)
        state = training_state(exported_at(run), run.model.state)
    else:
        state = model.saved_state()
    if state and len(names) > 1:
        state |= {
            "best_score": None,
            "best_step": 0,
            "validation": {},
            "average_of": [within_run(name) for name in names],
        }
    return state


def fill_ctranslate2(folder: Path, model: Any, tokenizer: Any, state: dict[str, Any], compute_type: str) -> None:
    """Write the converted model with tokenizer, generation config and state, and compare some texts with our engine."""
    import numpy as np

    from config.flags.inference import DecodeFlags
    from generation.decoder import Decoder, generation_config
    from generation.engines.conversion import save_converted
    from generation.engines.ctranslate2 import PARITY_TEXTS, CTranslate2Engine, supported_compute_types
    from utils.files import STATE_NAME, write_json

    save_converted(folder, model, tokenizer, compute_type)
    tokenizer.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    if state:
        write_json(folder / STATE_NAME, state)
    if compute_type not in supported_compute_types("cpu"):
        tell(f"-compute_type {compute_type}: not on this processor, so that no text was compared; it is for a GPU")
        return
    flags = DecodeFlags(max_predict_length=32, compute_type=compute_type)
    engine = CTranslate2Engine(folder, tokenizer, flags, generation_config(model, tokenizer, flags))
    sources = [np.array(tokenizer(text).input_ids) for text in PARITY_TEXTS]
    tell(engine.check_parity(Decoder(model, tokenizer, flags), sources, "-format ctranslate2"))


def fill_onnx(folder: Path, model: Any, tokenizer: Any, state: dict[str, Any]) -> None:
    """Write the graphs with tokenizer, generation config and state, and compare some texts with our engine."""
    import numpy as np
    import torch

    from config.flags.inference import DecodeFlags
    from deploy.proof import refuse_other_outputs
    from generation.decoder import Decoder, generation_config
    from generation.engines.ctranslate2 import PARITY_TEXTS
    from generation.engines.onnx import OnnxEngine, save_onnx
    from generation.engines.pytorch import TorchPredictor
    from utils.files import STATE_NAME, write_json

    save_onnx(folder, model, tokenizer)
    tokenizer.save_pretrained(folder)
    if state:
        write_json(folder / STATE_NAME, state)
    flags = DecodeFlags(max_predict_length=32)
    rows = range(len(PARITY_TEXTS))
    sources = [np.array(tokenizer(text).input_ids) for text in PARITY_TEXTS]
    predictor = TorchPredictor(Decoder(model, tokenizer, flags), tokenizer, torch.device("cpu"), with_scores=True)
    exported = OnnxEngine(folder, tokenizer, generation_config(model, tokenizer, flags))
    ours, theirs = predictor(rows, sources), exported(rows, sources)
    refuse_other_outputs("onnx", rows, ours, theirs)
    same = sum(one.text == other.text for one, other in zip(ours, theirs, strict=True))
    tell(f"ONNX Runtime: {same} of the first {len(rows)} texts are those of -engine torch")
