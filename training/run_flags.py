"""The flags of a run that goes on in its own folder: those that are not given are taken from its config.json."""

from __future__ import annotations

from pathlib import Path

from checkpoints.run_folder import CONFIG_NAME, checkpoints_of, run_flags
from config.flags import TrainConfig
from config.parser import flag_specs, parse_flags, saved_tokens, shown, to_dict
from utils.errors import UserError
from utils.json_files import read_json


def parse_training_flags(argv: list[str]) -> tuple[TrainConfig, frozenset[str], list[str], list[str]]:
    """The flags of a `train.py` command line, and those of the run that it goes on with.

    Returns the config, the names of the flags that were given, lines to tell, and the problems found. Raises
    `UserError` when the run's config.json cannot be read, or is not of a run: its flags are not known then.
    """
    config, given, problems = parse_flags(TrainConfig, argv)
    folder, value = Path(config.run.save_path), config.run.resume_checkpoint
    path = folder / CONFIG_NAME
    if value not in ("last", "best", "auto") or not path.exists() or (value == "auto" and not checkpoints_of(folder)):
        return config, given, [], problems
    try:
        read_json(path)
        saved, reason = run_flags(folder), "does not hold the flags of a run"
    except (OSError, ValueError) as error:
        saved, reason = None, f"cannot be read ({error})"
    if saved is None:
        told = f"-save_path {folder}: {CONFIG_NAME} {reason}; delete it, and give every flag of the run"
        raise UserError(*problems, told)
    specs = flag_specs(TrainConfig)
    # The checkpoint itself has the model, and the tokenizer with its languages.
    taken = {spec.name for spec in specs if spec.resume not in ("once", "process", "if given")} - {*given, "save_path"}
    tokens, wrong = saved_tokens(TrainConfig, {name: saved[name] for name in taken if name in saved})
    config, _, problems = parse_flags(TrainConfig, [*tokens, *argv])
    values, defaults = to_dict(config), to_dict(TrainConfig())
    changed = [shown(name, value) for name, value in values.items() if name in taken and value != defaults[name]]
    lines = [f"flags of {path}: {' '.join(changed)}"] if changed else []
    unknown = sorted(saved.keys() - to_dict(config).keys() - {"resolved"})
    if unknown:
        lines.append(f"{path} has flags that this version does not know: {', '.join(unknown)}")
    return config, given, lines, [*problems, *(f"{path}: {problem}" for problem in wrong)]
