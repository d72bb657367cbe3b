"""README.md of an export as a model card of the hub: what the model is, its data, scores and flags, how to use it.

No path of the machine stands in it: of every file and folder the name alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from checkpoints.model_folder import CODE_NAME
from checkpoints.run_folder import TEST_REPORT
from checkpoints.saved_run import trained_tasks
from config.flags.export import ExportFlags
from config.flags.train import TrainConfig
from config.parser import to_dict
from metrics.registry import PASSAGES
from models.adapters.folder import is_adapter_folder
from models.special_tokens import adds_no_end
from utils.errors import UserError
from utils.json_files import read_object

CARD = "README.md"
DATA = ("train_data", "valid_data", "test_data", "task", "train_task")  # told in a section of their own
SHARES = ("accuracy", "exact_match")  # of rows: their interval follows from the figure and the number of rows
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Card:
    """What a card is written from."""

    name: str  # of the hub, or of the folder
    state: Mapping[str, Any]  # training_state.json; empty for a model that we did not train
    report: Mapping[str, Any] = field(default_factory=dict)  # test_report.json of the weights; empty = none
    license: str = ""
    format: str = "safetensors"
    is_adapter: bool = False
    end_token: str = ""  # what a source has to end with, where the tokenizer does not add it
    code_name: str = ""  # of the file in the folder that tells transformers of the architecture, where it must

    def text(self) -> str:
        """The whole page: YAML of the hub, then Markdown."""
        sections = [
            f"# {self.name.split('/')[-1]}",
            *self._task(),
            *self._use(),
            *self._data(),
            *self._scores(),
            *self._flags(),
        ]
        header = yaml.safe_dump(self._metadata(), allow_unicode=True, sort_keys=False)
        return f"---\n{header}---\n\n" + "\n\n".join(sections) + "\n"

    def _metadata(self) -> dict[str, Any]:
        base = self._start()
        datasets = sorted({task["hub_dataset"] for task in self._tasks() if HUB_NAME.fullmatch(task["hub_dataset"])})
        library = {"safetensors": "peft" if self.is_adapter else "transformers"}.get(self.format, self.format)
        return {
            **({"license": self.license} if self.license else {}),
            "library_name": library,
            **({"base_model": base} if HUB_NAME.fullmatch(base) else {}),
            **({"datasets": datasets} if datasets else {}),
            "tags": ["seq2seq-finetuner"],
        }

    def _start(self) -> str:
        return shown_value("init_model", self._flags_of_training().get("init_model", ""))

    def _tasks(self) -> list[dict[str, Any]]:
        """The task of the model, or those of a mixture, with the keys that the card reads."""
        empty = dict.fromkeys(("description", "input_template", "target_template", "hub_dataset"), "")
        written = self.state.get("label_map") or {}  # of the only task
        return [{**empty, "label_map": {}, **task, "written": written} for task in trained_tasks(self.state)]

    def _task(self) -> list[str]:
        sections = []
        for task in self._tasks():
            lines = [f"- task: `{task['name']}`, {cell(task['description'])}"]
            for key, title in (("input_template", "source"), ("target_template", "target")):
                lines += [f"- {title}: `{cell(task[key])}`"] if task[key] else []
            sections += ["## Task", "\n".join(lines)]
            labels = task["written"] or task["label_map"] or {}
            sections += [table(("in the data", "label"), list(labels.items()))] if labels else []
        base = self._start()
        return [*([f"Fine-tuned from `{base}`."] if base else []), *sections]

    def _use(self) -> list[str]:
        if self.format != "safetensors":
            library = {"ctranslate2": "CTranslate2", "onnx": "ONNX Runtime"}.get(self.format, self.format)
            return ["## Use", f"The files are for {library}; `docs/export.md` of seq2seq-finetuner shows how."]
        if any(task.get("postprocessor") == {"kind": PASSAGES} for task in self._tasks()):
            command = f"python embed.py -model {self.name} -data rows.tsv -save_output vectors.npy"
            return ["## Use", "It gives vectors of texts. With seq2seq-finetuner:", f"```bash\n{command}\n```"]
        base = " -base_model BASE_MODEL" if self.is_adapter else ""
        command = f"python inference.py -model {self.name}{base} -test_data rows.tsv -save_output predictions.txt"
        sections = ["## Use", "With seq2seq-finetuner:", f"```bash\n{command}\n```"]
        if self.is_adapter:
            return [*sections, "The files are an adapter: it needs its base model and `peft`."]
        end = f"[text + {self.end_token!r} for text in texts]" if self.end_token else "texts"
        module = self.code_name.removesuffix(".py")
        known = f'import sys\n\nsys.path.insert(0, "{self.name}")  # a folder\nimport {module}\n' if module else ""
        code = f"""\
{known}from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{self.name}")
model = AutoModelForSeq2SeqLM.from_pretrained("{self.name}").eval()
texts = ["a text, written as the sources of the training were"]
inputs = tokenizer({end}, padding=True, return_tensors="pt", return_token_type_ids=False)
outputs = model.generate(**inputs, max_new_tokens={self._flags_of_training().get("max_target_length") or 128})
print(tokenizer.batch_decode(outputs, skip_special_tokens=True))"""
        return [*sections, "With `transformers` alone:", f"```python\n{code}\n```"]

    def _data(self) -> list[str]:
        flags = self._flags_of_training()
        rows = [(key, shown_value(key, flags[key])) for key in DATA[:3] if flags.get(key)]
        rows += [
            ("dataset of the hub", shown_value("", task["hub_dataset"]))
            for task in self._tasks()
            if task["hub_dataset"]
        ]
        return ["## Data", table(("part", "files"), rows)] if rows else []

    def _scores(self) -> list[str]:
        sections = []
        for name, report in self.report.get("tasks", {"": self.report} if self.report else {}).items():
            title = f"Test rows{f' of {name}' if name else ''}: {report['scored_rows']:,}, decoded greedily."
            rows = [
                (metric, figure(value), interval_text(metric, value, report["scored_rows"]))
                for metric, value in report["metrics"].items()
            ]
            sections += [title, table(("metric", "value", "95 % interval"), rows)]
        found = self.state.get("validation") or {}
        if found:
            title = f"Validation after {self.state['global_step']:,} steps (epoch {self.state['epoch']})."
            sections += [title, table(("metric", "value"), [(key, figure(value)) for key, value in found.items()])]
        return ["## Scores", *sections] if sections else []

    def _flags(self) -> list[str]:
        """The flags of the training that are not at their defaults."""
        defaults = to_dict(TrainConfig())
        rows = [
            (f"-{key}", shown_value(key, value))
            for key, value in self._flags_of_training().items()
            if key not in (*DATA, "save_path", "overwrite") and value != defaults.get(key)
        ]
        return ["## Flags of the training", table(("flag", "value"), rows)] if rows else []

    def _flags_of_training(self) -> Mapping[str, Any]:
        flags: Mapping[str, Any] = self.state.get("flags") or {}
        return flags


def shown_value(key: str, value: Any) -> str:
    """A flag's value, of a path its last part alone: where files lie is nobody's business."""
    if isinstance(value, list | tuple):
        return ", ".join(shown_value(key, part) for part in value)
    text = str(value)
    if not isinstance(value, str) or key.endswith(("template", "separator")):
        return text
    if key in DATA[:3] or text.startswith(("/", "~", "./", "../")) or Path(text).exists():
        return Path(text).name or text
    return re.sub(r"(?<![\w/])(?:~|\.{1,2})?/(?:[^\s,=/]+/)*(?=[^\s,=/])", "", text)


def interval_text(metric: str, share: float | None, rows: int) -> str:
    """Wilson's interval (1927) of a share of rows; empty for other metrics, which need the rows themselves."""
    if metric not in SHARES or share is None or not rows:
        return ""
    from scipy.stats import binomtest

    interval = binomtest(round(share * rows), rows).proportion_ci(0.95, method="wilson")
    return f"{interval.low:.4f} to {interval.high:.4f}"


def figure(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"


def cell(text: str) -> str:
    """`text` in one line that ends no cell of a table."""
    return re.sub(r"\s+", " ", str(text)).replace("|", "\\|")


def table(header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join(f"| {' | '.join(cell(part) for part in line)} |" for line in lines)


def read_scores(path: Path) -> dict[str, Any]:
    """The test_report.json of a run.

    Raises:
        UserError: it cannot be read, or lacks what a card is written from.
    """
    content = read_object(path, "-model_card")
    tasks = content.get("tasks", {"": content})
    if not isinstance(tasks, dict) or not all(map(is_report, tasks.values())):
        raise UserError(
            f"-model_card: {path} is incomplete: scored_rows, a whole number, and metrics, names with numbers, are"
            " expected (of each task); without this file the card has no scores of the test rows"
        )
    return content


def is_report(report: Any) -> bool:
    """Whether these are scores of the test rows of a task, as far as a card shows them."""
    if not isinstance(report, dict):
        return False
    rows, metrics = report.get("scored_rows"), report.get("metrics")
    figures = [*metrics.values()] if isinstance(metrics, dict) else [""]
    return isinstance(rows, int) and all(figure is None or isinstance(figure, int | float) for figure in figures)


def write_card(
    folder: Path, title: str, state: Mapping[str, Any], names: Sequence[str], flags: ExportFlags, tokenizer: Any
) -> None:
    """Write README.md into an export; `names` are what it was made of: the scores of a run's best/ are in the run.

    Raises:
        UserError: these scores are torn or incomplete.
    """
    best = Path(names[0]) if len(names) == 1 else None
    report = best.absolute().parent / TEST_REPORT if best and best.name == "best" else None
    card = Card(
        title,
        state,
        read_scores(report) if report and report.is_file() else {},
        flags.license,
        flags.format,
        is_adapter_folder(str(folder)),
        tokenizer.eos_token if adds_no_end(tokenizer) else "",
        CODE_NAME if (folder / CODE_NAME).is_file() else "",
    )
    (folder / CARD).write_text(card.text(), encoding="utf-8")
