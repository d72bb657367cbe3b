"""A search over flags: its space, its trials with a trainer that takes no time, and what it comes to."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from config.flags.tune import SearchFlags
from reports.charts import Curves
from reports.search import search_charts
from tests.documents import ROOT
from tests.html_pages import Page
from training.hyperparameter_search.outcome import best_of, refit_flags, save_outcome, summary_lines
from training.hyperparameter_search.processes import last_words, share_of_gpus
from training.hyperparameter_search.search import Search
from training.hyperparameter_search.space import check_space, draw, read_space
from training.hyperparameter_search.study import Study
from training.hyperparameter_search.trials import Locks, Trial, keep_settings, read_trial, validated_figures
from utils.errors import RunError, UserError

pytest.importorskip("optuna")

SPACE = "learning_rate: {min: 1e-4, max: 1e-2, log: true}\nbatch_size: [8, 16]\n"
EPOCHS = 4


class Killed(BaseException):
    """SIGKILL to the search: nothing is tidied up."""


class Trainings:
    """train.py that takes no time: one validation each time that the search looks, kept in the run's folder."""

    def __init__(self, loss: Callable[[Mapping[str, str], int], float], exits: Sequence[int] = ()) -> None:
        self.loss = loss
        self.exits = list(exits)  # of the first processes, without any validation
        self.began: list[tuple[str, int]] = []  # trial, validations before
        self.validated: list[tuple[str, int]] = []
        self.stopped: list[str] = []

    def start(self, tokens: Sequence[str], log: Path, place: int) -> Training:
        assert place in range(3)
        flags = dict(token.removeprefix("-").split("=", 1) for token in tokens)
        assert flags["resume_checkpoint"] == "auto"
        folder = Path(flags["save_path"])
        folder.mkdir(parents=True, exist_ok=True)
        done = len(validated_figures(folder, "val_loss", False))
        self.began.append((folder.name, done))
        if self.exits:
            log.write_text("epoch 1\nerror: NaN in step 3\n", encoding="utf-8")
            return Training(self, flags, folder, code=self.exits.pop(0))
        return Training(self, flags, folder)


class Training:
    """One of its processes."""

    def __init__(self, trainings: Trainings, flags: Mapping[str, str], folder: Path, code: int | None = None) -> None:
        self.trainings, self.flags, self.folder, self.code = trainings, flags, folder, code

    def poll(self) -> int | None:
        if self.code is not None:
            return self.code
        path = self.folder / "metrics.jsonl"
        done = len(path.read_text(encoding="utf-8").splitlines()) if path.exists() else 0
        if done == EPOCHS:
            return 0
        loss = self.trainings.loss(self.flags, done + 1)
        self.trainings.validated.append((self.folder.name, done + 1))
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": done, "phase": "valid", "val_loss": loss}) + "\n")
        return None

    def send_signal(self, sig: int, /) -> None:
        assert sig == signal.SIGTERM
        self.trainings.stopped.append(self.folder.name)
        self.code = 143

    def wait(self) -> int:
        return self.code or 0


def falling(flags: Mapping[str, str], validation: int) -> float:
    """A loss that falls, and is lower for a higher rate."""
    return 1 / validation - float(flags["learning_rate"])


def space_file(folder: Path, text: str = SPACE) -> str:
    folder.mkdir(exist_ok=True)
    path = folder / "space.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def search_of(
    folder: Path, trainings: Trainings, wait: Callable[[], None] = lambda: None, jobs: int = 1, **flags: object
) -> Search:
    space = read_space(space_file(folder))
    study = Study(space, ["-max_epoch=4"], SearchFlags(**{"trials": 6, **flags}), False, seed=1)  # type: ignore[arg-type]
    return Search(folder / "search", study, "val_loss", jobs, trainings.start, wait)


# ---- trials


def test_every_trial_runs_once_to_its_end(tmp_path: Path) -> None:
    trainings = Trainings(falling)
    search = search_of(tmp_path, trainings, prune="none")
    search.search()
    names = [f"{number:04}" for number in range(6)]
    assert trainings.began == [(name, 0) for name in names]
    assert trainings.validated == [(name, epoch) for name in names for epoch in range(1, EPOCHS + 1)]
    assert [trial.state for trial in search.trials()] == ["complete"] * 6
    assert len({trial.flags["learning_rate"] for trial in search.trials()}) == 6
    for trial in search.trials():
        assert trial.figure == falling(trial.flags, EPOCHS)


def test_a_search_that_is_killed_loses_no_trial_and_repeats_none(tmp_path: Path) -> None:
    plain = search_of(tmp_path / "plain", Trainings(falling))
    plain.search()
    trainings, kills = Trainings(falling), 0
    while True:
        looks = [0]

        def wait(looks: list[int] = looks) -> None:
            looks[0] += 1
            if looks[0] == 3:
                raise Killed

        search = search_of(tmp_path, trainings, wait)
        search._stop_all = lambda: None  # type: ignore[method-assign]
        try:
            search.search()
            break
        except Killed:
            kills += 1
            for name in [*search.locks.held]:  # as the kernel does
                search.locks.give_back(name)
    assert kills >= 5
    assert len(trainings.validated) == len({*trainings.validated})
    assert [trial.flags for trial in search.trials()] == [trial.flags for trial in plain.trials()]
    assert [trial.figures for trial in search.trials()] == [trial.figures for trial in plain.trials()]
    assert [trial.state for trial in search.trials()] == [trial.state for trial in plain.trials()]


def test_asha_stops_all_but_the_best_third_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainings = Trainings(falling)
    search = search_of(tmp_path, trainings)
    search.search()
    pruned = [trial for trial in search.trials() if trial.state == "pruned"]
    assert pruned
    assert trainings.stopped == [trial.name[-4:] for trial in pruned]
    assert {trial.reason for trial in pruned} <= {"stopped after 1 validation", "stopped after 3 validations"}
    assert f"{pruned[0].name}: pruned, val_loss {pruned[0].figure:.6g}: stopped after" in capsys.readouterr().out
    best = best_of(search.trials(), higher_is_better=False)
    assert best is not None
    assert best.flags["learning_rate"] == max((trial.flags["learning_rate"] for trial in search.trials()), key=float)


def test_the_median_stops_the_worse_half_after_five(tmp_path: Path) -> None:
    search = search_of(tmp_path, Trainings(falling), prune="median", trials=8)
    search.search()
    states = [trial.state for trial in search.trials()]
    assert states[:5] == ["complete"] * 5
    assert "pruned" in states[5:]


def test_two_searches_share_a_folder(tmp_path: Path) -> None:
    trainings = Trainings(falling)
    locks = Locks(tmp_path / "search")
    assert locks.take("trials/0000")
    assert not locks.take("trials/0000")
    search = search_of(tmp_path, trainings, jobs=2)
    search.locks = locks  # 0000 is somebody's; a lock of POSIX would not hold within one process
    claimed = []
    for trial in search._claims(["trials/0000", "trials/0001"], search._new_trial):
        claimed.append(trial.name)
    assert claimed == ["trials/0001"]


def test_jobs_run_side_by_side(tmp_path: Path) -> None:
    trainings = Trainings(falling)
    search_of(tmp_path, trainings, jobs=3, prune="none").search()
    assert trainings.validated[:4] == [("0000", 1), ("0001", 1), ("0002", 1), ("0000", 2)]
    assert share_of_gpus(5, ["0", "GPU-ab", "4"]) == {"CUDA_VISIBLE_DEVICES": "4"}
    assert share_of_gpus(5, []) == {}


def test_a_trial_that_a_signal_ended_goes_on_and_one_that_failed_does_not(tmp_path: Path) -> None:
    trainings = Trainings(falling, exits=[-9, 143, 1])
    search = search_of(tmp_path, trainings, prune="none", trials=2)
    search.search()
    assert trainings.began == [("0000", 0), ("0000", 0), ("0000", 0), ("0001", 0)]
    assert [(trial.state, trial.reason) for trial in search.trials()] == [("failed", "NaN in step 3"), ("complete", "")]


def test_a_trial_whose_process_dies_again_and_again_is_given_up(tmp_path: Path) -> None:
    search = search_of(tmp_path, Trainings(falling, exits=[-9] * 3), trials=1)
    search.search()
    assert [trial.reason for trial in search.trials()] == [
        "SIGKILL ended it, 3 times without a validation in between (out of memory, perhaps)"
    ]


def test_a_search_in_which_nothing_works_ends(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="the first 3 trials failed, the last with: NaN in step 3; what they printed"):
        search_of(tmp_path, Trainings(falling, exits=[1] * 9)).search()


def test_a_full_disk_ends_the_search_and_not_the_trial(tmp_path: Path) -> None:
    trainings = Trainings(falling, exits=[1])
    search = search_of(tmp_path, trainings, trials=1)
    (tmp_path / "search" / "trials").mkdir(parents=True)
    begin = trainings.start

    def start(tokens: Sequence[str], log: Path, place: int) -> Training:
        process = begin(tokens, log, place)
        log.write_text("error: x could not be written: the disk is full, or a quota (0 bytes are free)\n")
        return process

    search.start = start
    with pytest.raises(RunError, match=r"trials/0000: .*the disk is full.*; the same command goes on from here"):
        search.search()
    search.locks.give_back("trials/0000")
    again = search_of(tmp_path, Trainings(falling), trials=1)
    again.search()
    assert [trial.state for trial in again.trials()] == ["complete"]


def test_figures_are_of_whole_lines_and_the_best_so_far(tmp_path: Path) -> None:
    lines = ['{"phase": "valid", "f1": 2}', '{"phase": "train", "f1": 9}', '{"phase": "valid", "f1": NaN}', "torn {"]
    lines += ['{"phase": "valid", "f1": 1}', '{"phase": "valid", "f1": 3}', '{"phase": "valid", "f1"']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert validated_figures(tmp_path, "f1", higher_is_better=True) == (2, 2, 3)
    assert validated_figures(tmp_path, "f1", higher_is_better=False) == (2, 1, 1)
    assert last_words(tmp_path / "none.log") == "it told nothing"


def test_a_damaged_trial_is_named(tmp_path: Path) -> None:
    (tmp_path / "trials").mkdir()
    (tmp_path / "trials" / "0000.json").write_text('{"figures": 3}', encoding="utf-8")
    with pytest.raises(UserError, match=r"0000\.json is damaged"):
        read_trial(tmp_path, "trials/0000")


# ---- the space


def test_all_problems_of_a_space_are_told_with_their_lines(tmp_path: Path) -> None:
    text = """\
learning_rte: [1]
batch_size: {min: -3, max: 8}
lr_scheduler: [lineer, constant]

max_epoch: 3
weight_decay: {min: 0.5, max: 0.2, stp: 1}
save_path: [a, b]
label_smoothing: {min: 0, max: 0.1, log: true}
grad_clip: {min: 2, max: 1}
max_steps: {min: 1, max: 6, step: 2}
optim: {min: 1, max: 2}
"""
    path = space_file(tmp_path, text)
    with pytest.raises(UserError) as raised:
        read_space(path)
    told = [problem.removeprefix(f"{path}:") for problem in raised.value.problems]
    assert told[0] == "1: unknown flag 'learning_rte' (did you mean learning_rate?)"
    assert told[1] == "2: -batch_size -3: at least 0 expected"
    assert told[2].startswith("3: -lr_scheduler lineer: one of cosanneal, ")
    assert told[3].startswith("5: max_epoch: a list of values, or {min, max} of a number, is expected")
    assert told[4:] == [
        "6: weight_decay: unknown key 'stp' (did you mean step?); known: min, max, log, step",
        "7: -save_path cannot be searched; give it on the command line",
        "8: label_smoothing: log needs a min above 0",
        "9: grad_clip: min 2 is not below max 1",
        "10: max_steps: max - min is no multiple of step 2",
        "11: optim: is no number; give a list of its values",
    ]


def test_train_checks_each_value_beside_the_fixed_flags(tmp_path: Path) -> None:
    (tmp_path / "rows.tsv").write_text("source\ttarget\na\tb\n", encoding="utf-8")
    path = space_file(tmp_path, "tuning_method: [finetune, lora]\nlora_r: [4, 8]\noptim_cosanneal_min_lr: [1e-7, 1]\n")
    fixed = ["-train_data", str(tmp_path / "rows.tsv"), "-config_path", "bart-mini", f"-save_path={tmp_path / 's'}"]
    problems: list[str] = []
    check_space(read_space(path), fixed, problems)
    assert problems[0].startswith(f"{path}:1: -tuning_method lora: not with -config_path bart-mini: ")
    assert problems[1] == f"{path}:3: -optim_cosanneal_min_lr 1.0 is above adam's rate 0.0001; give -learning_rate"
    assert len(problems) == 2


@pytest.mark.parametrize(("method", "names"), [("lora", ["tuning_method", "lora_r"]), ("finetune", ["tuning_method"])])
def test_a_flag_without_effect_is_left_out(tmp_path: Path, method: str, names: list[str]) -> None:
    import optuna

    space = read_space(space_file(tmp_path, f"lora_r: [4, 8]\ntuning_method: [{method}]\n"))
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1)).ask()
    assert [*draw(space, [], trial)] == names


def test_another_search_in_the_folder_is_refused(tmp_path: Path) -> None:
    space = read_space(space_file(tmp_path))
    keep_settings(tmp_path / "s", space, {"max_epoch": 3})
    keep_settings(tmp_path / "s", space, {"max_epoch": 3})
    with pytest.raises(
        UserError, match=r"holds a search with other settings: batch_size \(space\), max_epoch \(flags\)"
    ):
        keep_settings(tmp_path / "s", space[:1], {"max_epoch": 4})


STARTER = """
import sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from training.hyperparameter_search import processes
processes.TRAIN = Path({folder!r}, "sleeper.py")
print(processes.start_training([], Path({folder!r}, "log"), {{}}).pid, flush=True)
time.sleep(90)
"""


def test_a_training_dies_with_the_search_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "sleeper.py").write_text("import time\ntime.sleep(90)\n")
    code = STARTER.format(root=str(ROOT), folder=str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as search:
        assert search.stdout is not None
        training = os.pidfd_open(int(search.stdout.readline()))
        assert select.select([training], [], [], 0) == ([], [], [])
        search.kill()
        ended, _, _ = select.select([training], [], [], 60)
    os.close(training)
    assert ended == [training]


# ---- the end


def test_the_gain_stands_beside_the_noise_of_seeds(tmp_path: Path) -> None:
    best = Trial("trials/0007", {"batch_size": "8"}, "complete", (0.5, 0.25))
    flags = refit_flags(best, seed=10, count=2)
    assert flags == {
        "refits/start-seed11": {"seed": "11"},
        "refits/best0007-seed11": {"batch_size": "8", "seed": "11"},
        "refits/start-seed12": {"seed": "12"},
        "refits/best0007-seed12": {"batch_size": "8", "seed": "12"},
    }
    figures = (0.75, 0.25, 0.5, 0.375)
    refits = [
        Trial(name, own, "complete", (figure,)) for (name, own), figure in zip(flags.items(), figures, strict=True)
    ]
    failed = Trial("trials/0008", {}, "failed")
    lines = save_outcome(tmp_path, [best, failed], refits, "val_loss", higher_is_better=False)
    assert lines[:2] == [
        "2 trials, 0 of them stopped early, 1 failed",
        "best: trials/0007, val_loss 0.25: -batch_size=8",
    ]
    assert [line.split() for line in lines[4:7]] == [
        ["without", "the", "search", "0.625", "0.177", "2"],
        ["best", "of", "the", "search", "0.3125", "0.0884", "2"],
        ["gain", "0.3125"],
    ]
    assert lines[7].endswith("standard error is 0.14: the gain is more than what other seeds alone would change")
    text = Page((tmp_path / "search_report.html").read_text(encoding="utf-8")).text
    assert "without the search0.6250.1772\nbest of the search0.31250.08842\ngain0.3125\n" in text
    assert lines[7].strip()[1:] in text
    told = ["1 trial, 0 of them stopped early, 1 failed", "no trial ran to its end"]
    assert summary_lines([failed], "val_loss", higher_is_better=False) == told


def test_the_report_has_every_trial_the_best_first(tmp_path: Path) -> None:
    trials = [
        Trial("trials/0000", {"batch_size": "8"}, "failed", reason="<b>NaN</b>"),
        Trial("trials/0001", {"batch_size": "8"}, "pruned", (0.5,)),
        Trial("trials/0002", {"batch_size": "16"}, "complete", (0.5, 0.25)),
    ]
    lines = save_outcome(tmp_path, trials, [], "val_loss", higher_is_better=False)
    report = json.loads((tmp_path / "search_report.json").read_text(encoding="utf-8"))
    assert (report["best"], report["flags"], len(report["trials"])) == ("trials/0002", {"batch_size": "16"}, 3)
    page = (tmp_path / "search_report.html").read_text(encoding="utf-8")
    rows = page[page.index("<tbody>") :]
    places = [rows.index(name) for name in ("trials/0002", "trials/0001", "trials/0000")]
    assert places == sorted(places)
    assert "&lt;b&gt;NaN" in rows
    assert lines[0] in page
    assert page.count("<polyline") == 1
    assert [name for name, _ in search_charts(report)] == ["search", "trials", "flag_batch_size"]
    assert not (tmp_path / "search_report_images").exists()


def test_the_report_draws_what_the_values_of_each_flag_gave(tmp_path: Path) -> None:
    flags = [
        {"learning_rate": "1e-5", "optim": "lion", "batch_size": "8"},
        {"learning_rate": "1e-3", "optim": "adam", "batch_size": "16"},
        {"learning_rate": "1e-4", "optim": "adam"},
    ]
    ends = [("complete", 0.5), ("complete", 0.25), ("pruned", 0.125)]
    trials = [
        Trial(f"trials/{number:04}", own, state, (figure,))
        for number, (own, (state, figure)) in enumerate(zip(flags, ends, strict=True))
    ]
    save_outcome(tmp_path, trials, [], "val_loss", False, {"optim": 0.25, "learning_rate": 0.75})
    report = json.loads((tmp_path / "search_report.json").read_text(encoding="utf-8"))
    charts = dict(search_charts(report))
    points = {
        name: [line.points for line in chart.lines] for name, chart in charts.items() if isinstance(chart, Curves)
    }
    assert points["search"] == [((0, 0.5), (1, 0.25)), ((2, 0.125),), ((0, 0.5), (1, 0.25))]
    assert points["flag_learning_rate"] == [((1e-5, 0.5), (1e-3, 0.25)), ((1e-4, 0.125),)]
    assert points["flag_optim"] == [((0, 0.5), (1, 0.25)), ((1, 0.125),)]
    assert points["flag_batch_size"] == [((8, 0.5), (16, 0.25)), ()]
    rate, optim = charts["flag_learning_rate"], charts["flag_optim"]
    assert isinstance(rate, Curves)
    assert isinstance(optim, Curves)
    assert (rate.logarithmic_x, optim.words) == (True, ("lion", "adam"))
    text = Page((tmp_path / "search_report.html").read_text(encoding="utf-8")).text
    for part in ("val_loss by -optim", "adam: 0.25", "-learning_rate75%", "-optim25%"):
        assert part in text


def test_the_importance_of_flags_is_told_of_enough_trials(tmp_path: Path) -> None:
    study = Study(read_space(space_file(tmp_path)), [], SearchFlags(), higher_is_better=True, seed=0)
    trials = [
        Trial(f"trials/{one:04}", {"learning_rate": f"{one}e-4", "batch_size": "8"}, "complete", (one / 20,))
        for one in range(1, 21)
    ]
    found = study.importance(trials)
    assert {name: round(share, 1) for name, share in found.items()} == {"learning_rate": 1.0, "batch_size": 0.0}
    assert study.importance(trials[:9]) == {}
