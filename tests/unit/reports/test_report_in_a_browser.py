"""The page of a training in a real browser: nothing on the console, Hangul drawn, and no page wider than its window."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from metrics.report import report_dict
from metrics.score import score
from metrics.uncertainty.probabilities import with_probabilities
from postprocessors.labels import LabelMap
from reports.charts import Reliability, histogram
from reports.outputs import worst_rows
from reports.prediction import prediction_page
from reports.search import search_page
from reports.training import RunRecord, training_page
from tests.browser import CHROMIUM, Page, browser_page

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
LABELS = LabelMap.parse(",".join(f"{number}=아주_긴_이름의_라벨_번호_{number}" for number in range(20)))
LETTERS = """(() => { const pixels = letter => { const canvas = document.createElement("canvas");
  const drawn = canvas.getContext("2d"); drawn.font = "40px " + getComputedStyle(document.body).fontFamily;
  drawn.fillText(letter, 0, 60); return canvas.toDataURL(); };
  return new Set(["가", "힣", "글", " "].map(pixels)).size; })()"""


def pages() -> dict[str, str]:
    """A page of a prediction, one of a training with test rows and one of a search, everything on them."""
    names = LABELS.texts
    references = [names[row % 20] for row in range(200)]
    predictions = [names[row * row % 20] for row in range(200)]
    scores = score(references, predictions, LABELS)
    shares = [[0.05] * 19 + [0.05 + row / 1000] for row in range(200)]
    scores = with_probabilities(scores, references, shares)
    look = worst_rows(scores, references, predictions, [0.5] * 200, lambda _: "무슨말인지모를긴소스" * 40)
    lengths = histogram("source_lengths", "Sources", "tokens", {"sources": range(1, 400)}, 128)
    assert lengths is not None
    sure = Reliability("calibration", "Calibration", scores.reliability)
    look = replace(look, lengths=(lengths,), reliability=sure)
    settings = {"model": "runs/" + "long" * 60, "train_data": ["a" * 200]}
    report: dict[str, Any] = report_dict(scores, settings)
    report["groups"] = {f"group {number}": {"rows": 2, "metrics": scores.metrics} for number in range(3)}
    report["label_sets"] = {"coverage": 0.91, "level": 0.9, "mean_size": 1.4, "sizes": {"1": 120, "2": 80}}
    test = json.loads(json.dumps(report | {"outputs": look.to_dict()}))
    record = RunRecord({**settings, "resolved": {"lengths": [asdict(lengths)]}}, test=test)
    steps = range(10, 5000, 10)
    record.add({"step": at, "phase": "train", "loss": 1e4 / at, "learning_rate": 1e-4} for at in steps)
    record.add({"step": at, "phase": "valid", "val_loss": 2e4 / at, "accuracy": at / 5000} for at in steps[::50])
    trials = [
        {
            "name": f"trials/{number:04}",
            "flags": {"learning_rate": f"{number + 1}e-5", "optim": ("아주_긴_이름", "adam")[number % 2]},
            "state": ("complete", "pruned", "failed")[number % 3],
            "figures": [number / 50] * (number % 3 < 2),
            "reason": "긴_이유" * 20,
        }
        for number in range(40)
    ]
    search = {"monitor": "accuracy", "higher_is_better": True, "trials": trials, "importance": {"optim": 1.0}}
    gain = [("accuracy", "mean", "deviation", "seeds"), ("gain", "0.1", "", "")]
    return {
        "prediction": prediction_page(report, look, "예측"),
        "training": training_page(record),
        "search": search_page(search, ["40 trials " + "-flag=value" * 40], gain, "more than noise"),
    }


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser_page(tmp_path_factory.mktemp("profile")) as page:
        yield page


def test_pages_in_a_browser(tab: Page, tmp_path: Path) -> None:
    for name, content in pages().items():
        path = tmp_path / f"{name}.html"
        path.write_text(content, encoding="utf-8")
        for width in (400, 1400):
            for dark in (False, True):
                tab.open(path.as_uri(), width, dark)
                assert tab.value("document.documentElement.scrollWidth") <= width, (name, width)
                paper = tab.value("getComputedStyle(document.body).backgroundColor")
                assert paper == ("rgb(20, 23, 28)" if dark else "rgb(255, 255, 255)")
                assert tab.value("document.querySelectorAll('svg').length") >= 2
        assert tab.value(LETTERS) == 4
    assert tab.problems == []
    assert {address.rpartition("/")[2] for address in tab.requested} == {f"{name}.html" for name in pages()}
