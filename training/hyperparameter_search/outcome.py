"""What a search came to: the trials, the best one, and its gain beside the noise of seeds."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from reports.images import save_images
from reports.page import images_folder, save_page
from reports.search import search_charts, search_page
from training.hyperparameter_search.space import as_tokens
from training.hyperparameter_search.trials import COMPLETE, FAILED, PRUNED, Trial
from utils.files import write_json
from utils.tables import counted

REPORT = "search_report.json"
PAGE = "search_report.html"
CLEAR = 2.0  # standard errors, from which on a gain is called more than noise


def best_of(trials: Sequence[Trial], higher_is_better: bool) -> Trial | None:
    """The best of those that ran to their end; the first of equals."""
    complete = [trial for trial in trials if trial.state == COMPLETE and trial.figure is not None]
    sign = -1 if higher_is_better else 1
    return min(complete, key=lambda trial: sign * (trial.figure or 0.0), default=None)


def refit_flags(best: Trial, seed: int, count: int) -> dict[str, Mapping[str, str]]:
    """The flags of the refits by the name of their run: without the search's (`start`) and with the best ones.

    Their seeds are the `count` after `seed`, which the trials had: the best of many is the luckiest, too.
    """
    number = best.name.rpartition("/")[2]
    runs: dict[str, Mapping[str, str]] = {}
    for one in range(seed + 1, seed + count + 1):
        runs[f"refits/start-seed{one}"] = {"seed": str(one)}
        runs[f"refits/best{number}-seed{one}"] = {**best.flags, "seed": str(one)}
    return runs


@dataclasses.dataclass(frozen=True)
class Spread:
    """The figures of one set of flags over seeds."""

    figures: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.figures)

    @property
    def deviation(self) -> float:
        """The standard deviation between seeds; 0 for a single one."""
        return statistics.stdev(self.figures) if len(self.figures) > 1 else 0.0


def spread_of(refits: Sequence[Trial], kind: str) -> Spread:
    """Of the refits whose run's name begins with `kind`."""
    own = [trial.figure for trial in refits if trial.name.startswith(f"refits/{kind}")]
    return Spread(tuple(figure for figure in own if figure is not None))


def gain_of(start: Spread, best: Spread, higher_is_better: bool) -> dict[str, float]:
    """How much better the mean of `best` is, above 0 = better, and the standard error of that; empty without both."""
    if not start.figures or not best.figures:
        return {}
    gain = best.mean - start.mean if higher_is_better else start.mean - best.mean
    error = math.hypot(*(spread.deviation / math.sqrt(len(spread.figures)) for spread in (start, best)))
    return {"gain": gain, "standard_error": error}


def summary_lines(trials: Sequence[Trial], monitor: str, higher_is_better: bool) -> list[str]:
    """What the trials came to."""
    states = [trial.state for trial in trials]
    counts = (
        f"{counted(len(trials), 'trial')}, {states.count(PRUNED)} of them stopped early, {states.count(FAILED)} failed"
    )
    best = best_of(trials, higher_is_better)
    if best is None:
        return [counts, "no trial ran to its end"]
    return [counts, f"best: {best.name}, {monitor} {best.figure:.6g}: {' '.join(as_tokens(best.flags))}"]


def gain_table(start: Spread, tuned: Spread, monitor: str, higher_is_better: bool) -> list[tuple[str, ...]]:
    """The refits by seeds, as the cells of a table, headers first; empty without both kinds."""
    gain = gain_of(start, tuned, higher_is_better)
    if not gain:
        return []
    spreads = [("without the search", start), ("best of the search", tuned)]
    rows = [(name, f"{one.mean:.6g}", f"{one.deviation:.3g}", str(len(one.figures))) for name, one in spreads]
    return [(monitor, "mean", "deviation", "seeds"), *rows, ("gain", f"{gain['gain']:.6g}", "", "")]


def verdict_of(start: Spread, tuned: Spread, higher_is_better: bool) -> str:
    """Whether the gain is more than the noise of seeds; empty where one seed tells none."""
    if min(len(start.figures), len(tuned.figures)) < 2:
        return ""
    gain = gain_of(start, tuned, higher_is_better)
    clear = gain["gain"] > CLEAR * gain["standard_error"]
    return (
        f"its standard error is {gain['standard_error']:.3g}: the gain is"
        f" {'more than' if clear else 'within'} what other seeds alone would change"
    )


def save_outcome(
    folder: Path,
    trials: Sequence[Trial],
    refits: Sequence[Trial],
    monitor: str,
    higher_is_better: bool,
    importance: Mapping[str, float] = MappingProxyType({}),
    images: bool = False,
) -> list[str]:
    """Write the report of the search, as JSON and as a page; returns what to tell of it.

    Args:
        importance: how much each flag decides, as shares of 1.
        images: the charts of the page become PNGs too.

    Raises:
        RunError: the disk refuses.
    """
    best = best_of(trials, higher_is_better)
    start, tuned = spread_of(refits, "start"), spread_of(refits, "best")
    report: dict[str, Any] = {
        "monitor": monitor,
        "higher_is_better": higher_is_better,
        "best": best and best.name,
        "flags": best and dict(best.flags),
        "without_search": list(start.figures),
        "with_best": list(tuned.figures),
        **gain_of(start, tuned, higher_is_better),
        "importance": dict(importance),
        "trials": [dataclasses.asdict(trial) for trial in trials],
    }
    lines = summary_lines(trials, monitor, higher_is_better)
    gain = gain_table(start, tuned, monitor, higher_is_better)
    verdict = verdict_of(start, tuned, higher_is_better)
    write_json(folder / REPORT, report)
    save_page(folder / PAGE, search_page(report, lines, gain, verdict), overwrite=True)
    drawn = save_images(images_folder(folder / PAGE), search_charts(report), overwrite=True) if images else []
    rows = [f"  {name:<24}{mean:>12}{deviation:>12}{seeds:>8}".rstrip() for name, mean, deviation, seeds in gain]
    return [*lines, *([""] if gain else []), *rows, *([f"  {verdict}"] if verdict else []), *drawn]
