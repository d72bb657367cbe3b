"""Tasks are mixed by flags or by a file; every mistake is told at once, with file, key and choices."""

from __future__ import annotations

from pathlib import Path

import pytest

from config.flags.data import DataFlags, TrainTaskFlags
from config.flags.train import TrainConfig
from config.parser import parse_flags
from datamodules.mixture import Mixture, mixture_of
from training.checks import check_train
from utils.errors import UserError


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder; the files of the tasks lie in one below it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tasks").mkdir()
    for name, files in (("a", "train_data: a.tsv\nvalid_data: [a.tsv, 'a.tsv:2']\n"), ("b", "")):
        (tmp_path / "tasks" / f"{name}.tsv").write_text("x\ty\n" * 3)
        (tmp_path / "tasks" / f"{name}.yaml").write_text(f"input_template: '{name} {{{{ source }}}}'\n{files}")
    return tmp_path


def mixed(*values: str) -> Mixture:
    return mixture_of(TrainTaskFlags(train_task=values), DataFlags(valid_data_proportions=0.5))


def problems_of(*values: str) -> list[str]:
    with pytest.raises(UserError) as refused:
        mixed(*values)
    return list(refused.value.problems)


def test_files_are_found_beside_the_file_that_names_them(place: Path) -> None:
    (place / "tasks" / "mix.yaml").write_text(
        "tasks:\n- a.yaml\n- {task: b.yaml, name: c, train_data: ['b.tsv:3', klue/klue:nli], test_data: ../t.tsv}\n"
    )
    (place / "t.tsv").write_text("x\ty\n")
    first, second = mixed("tasks/mix.yaml").members
    assert (first.task.name, first.data.train_data) == ("a", ("tasks/a.tsv",))
    assert first.data.valid_data == ("tasks/a.tsv", "tasks/a.tsv:2")
    assert first.data.valid_data_proportions == 0.0  # for tasks that name no file
    assert (second.task.name, second.task.input_template) == ("c", "b {{ source }}")
    assert second.data.train_data == ("tasks/b.tsv:3", "klue/klue:nli")
    assert (second.data.test_data, second.data.valid_data_proportions) == (("tasks/../t.tsv",), 0.5)


@pytest.mark.usefixtures("place")
def test_one_task_takes_the_files_of_its_own_file_unless_some_are_given() -> None:
    (alone,) = mixture_of(TrainTaskFlags(task="tasks/a.yaml"), DataFlags()).members
    assert (alone.data.train_data, len(alone.data.valid_data)) == (("tasks/a.tsv",), 2)
    given = DataFlags(train_data=("tasks/b.tsv",))
    assert mixture_of(TrainTaskFlags(task="tasks/a.yaml"), given).members[0].data == given
    assert mixed("tasks/a.yaml:0.3").is_drawn is False


@pytest.mark.parametrize(
    ("values", "rates"),
    [
        (("tasks/a.yaml", "klue-ynat"), ()),
        (("tasks/a.yaml:1", "klue-ynat:3"), (0.25, 0.75)),
        (("tasks/a.yaml:1e308", "klue-ynat:1e308"), (0.5, 0.5)),
        (("tasks/a.yaml:0.3", "klue-ynat", "klue-sts"), (0.3, 0.35, 0.35)),
    ],
)
@pytest.mark.usefixtures("place")
def test_rates_are_shares_of_one(values: tuple[str, ...], rates: tuple[float, ...]) -> None:
    assert mixed(*values).rates([5, 5, 90][: len(values)]) == pytest.approx(rates)


def test_a_temperature_makes_rates_of_sizes(place: Path) -> None:
    path = place / "mix.yaml"
    of_sizes = (("1", (0.1, 0.9)), ("2", (0.25, 0.75)), ("1e9", (0.5, 0.5)), ("1e-9", (0, 1)), ("1e-320", (0, 1)))
    for temperature, rates in of_sizes:
        path.write_text(f"tasks: [tasks/a.yaml, klue-ynat]\ntemperature: {temperature}\n")
        assert mixed(str(path)).rates([10, 90]) == pytest.approx(rates)


@pytest.mark.usefixtures("place")
def test_every_mistake_of_a_mixture_is_told_at_once() -> None:
    Path("mix.yaml").write_text(
        "tasks:\n- {task: tasks/a.yaml, rat: 1}\n- {task: klue-nl}\n- {train_data: x}\n"
        "- {task: tasks/a.yaml, rate: -1}\n- {task: mix.yaml}\n- {task: none.yaml}\n"
        "- {task: tasks/b.yaml, train_data: {a: b}, name: []}\ntemprature: 2\n"
    )
    start = "-train_task mix.yaml"
    keys = "task, name, rate, train_data, valid_data, test_data"
    found = problems_of("mix.yaml")
    assert found[2].startswith(f"{start}: task 2: klue-nl: no such task (did you mean klue-nli?); known: hfdataset, ")
    assert [*found[:2], *found[3:]] == [
        f"{start}: unknown key 'temprature' (did you mean temperature?); known: tasks, temperature",
        f"{start}: task 1: unknown key 'rat' (did you mean rate?); known: {keys}",
        f"{start}: task 3: key 'task' is missing; it names a built-in task or a file that describes one",
        f"{start}: task 4: rate -1: a number above 0 expected",
        f"{start}: task 5: mix.yaml is a mixture, and mixtures hold tasks; name its tasks here",
        f"{start}: task 6: none.yaml: cannot be read (No such file or directory)",
        f"{start}: task 7: train_data must be a path or a list of paths, not {{'a': 'b'}}",
        f"{start}: task 7: name must be plain text, not []",
    ]


@pytest.mark.usefixtures("place")
def test_what_does_not_go_together_is_told() -> None:
    Path("mix.yaml").write_text(
        "tasks: [{task: tasks/a.yaml, rate: 2}, tasks/a.yaml, {task: tasks/b.yaml, train_data: no.tsv}, klue-nli]\n"
        "temperature: 0\n"
    )
    assert problems_of("mix.yaml") == [
        "-train_task mix.yaml: temperature 0: a number above 0 expected",
        "-train_task mix.yaml: temperature 0 and rates exclude each other; give one of them",
        "-train_task: 2 tasks are named a; give each a name of its own (key name of its file, or of its entry in a"
        " mixture)",
        "-train_task b: -train_data: no.tsv: no such file",
        "-train_task klue-nli: no training rows; name their files by train_data in its file, or in its entry of a"
        " mixture file",
        "-train_task: the rates given are 2 together and leave nothing for a, b, klue-nli; give every task one",
    ]
    mixes = "mixes tasks itself; give it alone and without a rate, or name its tasks"
    assert problems_of("mix.yaml:0.5") == [f"-train_task mix.yaml:0.5: {mixes}"]
    assert problems_of("tasks/a.yaml", "mix.yaml") == [f"-train_task mix.yaml: {mixes}"]
    assert problems_of("tasks/a.yaml:") == ["-train_task tasks/a.yaml:: rate : a number above 0 expected"]
    assert problems_of("tasks/a.yaml:nan") == ["-train_task tasks/a.yaml:nan: rate nan: a number above 0 expected"]
    for content in ("tasks: []", "tasks: {a: b}"):
        Path("mix.yaml").write_text(content)
        assert problems_of("mix.yaml")[0].startswith("-train_task mix.yaml: tasks must be a list of tasks, each with")
    with pytest.raises(UserError, match=r"^-task mix.yaml: mixes several tasks; give it as -train_task mix.yaml$"):
        mixture_of(TrainTaskFlags(task="mix.yaml"), DataFlags())


def command_problems(*flags: str) -> list[str]:
    argv = ["-train_task", "tasks/a.yaml:0.5", "-train_task", "klue-ynat", "-config_path", "bart-mini"]
    argv += ["-valid_data_proportions", "0.1", "-save_path", "run", *flags]
    config, given, problems = parse_flags(TrainConfig, argv)
    check_train(config, given, problems)
    return problems


def test_flags_of_one_task_and_figures_of_no_task_are_refused(place: Path) -> None:
    (place / "tasks" / "c.yaml").write_text("train_data: a.tsv\n")
    assert command_problems("-monitor", "a/bleu") == command_problems("-monitor", "macro_f1") == []
    (rated,) = command_problems("-max_tokens", "100")
    assert rated == (
        "-max_tokens 100: not with rates of -train_task: each epoch draws rows of other lengths, and must have as many"
        " steps as the others; give -batch_size, or mix without rates and temperature"
    )
    (unknown,) = command_problems("-monitor", "klue-ynat/acuracy")
    assert unknown.startswith("-monitor klue-ynat/acuracy: one of val_loss, token_accuracy, exact_match, ")
    assert unknown.endswith(" (did you mean klue-ynat/accuracy?)")
    argv = ["-train_task", "tasks/c.yaml", "-valid_data_proportions", "0", "-monitor", "c/val_loss"]
    assert command_problems(*argv) == [
        "-monitor c/val_loss: c has no validation rows; name their file by valid_data in its file, or give"
        " -valid_data_proportions"
    ]
    words = "-train_task tasks/a.yaml:0.5 -train_task klue-ynat: not with"
    reason = "each task has its own, in its file or in one that mixes tasks"
    for flags in (["-train_data", "tasks/a.tsv"], ["-task", "klue-nli"], ["-input_template", "{{ x }}"]):
        (problem,) = command_problems(*flags)
        assert problem.startswith(f"{words} {flags[0]} ")
        assert problem.endswith(reason)
