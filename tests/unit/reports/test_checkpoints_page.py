"""The table, the sentences and the curves of checkpoints say which is best, and how sure that is."""

from __future__ import annotations

from typing import Any

from metrics.report import report_dict
from metrics.score import score
from reports.charts import Line
from reports.checkpoints import checkpoint_charts, checkpoint_lines
from reports.outputs import Look
from reports.prediction import prediction_page, score_charts

FLATTERED = "the best was chosen on these rows, which flatters its figures: publish those of other rows"


def confidence(difference: float, low: float, high: float) -> dict[str, Any]:
    """As `Confidence.to_dict` gives it of the next checkpoint against the best."""
    return {
        "level": 0.95,
        "draws": 1000,
        "intervals": {"accuracy": [0.7, 0.9]},
        "differences": {"accuracy": {"difference": difference, "interval": [low, high], "p_value": 0.1}},
    }


def found_of(**metrics: float) -> dict[str, Any]:
    """Three checkpoints that were scored, the third the best one."""
    figures = ((600, None, 0.5, [None, None]), (800, 0.75, 0.5, [0.7, 0.8]), (1200, 0.8, 0.25, [0.75, 0.85]))
    return {
        "metric": "accuracy",
        "higher_is_better": True,
        "best": 1200,
        "scored": [
            {
                "step": step,
                "path": f"run/{step}.ckpt",
                "metrics": {"micro_f1": micro, "accuracy": accuracy, **metrics},
                "confidence": {"level": 0.95, "draws": 1000, "intervals": {"accuracy": interval}},
            }
            for step, accuracy, micro, interval in figures
        ],
        "next": {"step": 800, "rows": 2000, "rows_that_differ": 150},
    }


def test_the_table_begins_with_the_metric_that_decides_and_the_sentences_say_what_the_rows_show() -> None:
    assert checkpoint_lines(found_of()) == [
        "checkpoints, all on the same rows",
        "         step   accuracy       from         to  micro_f1",
        "          600  undefined  undefined  undefined    0.5000",
        "          800     0.7500     0.7000     0.8000    0.5000",
        "  best  1,200     0.8000     0.7500     0.8500    0.2500",
        "",
        "best by accuracy: step 1,200 (0.8000), run/1200.ckpt",
        "next is step 800 (0.7500), which predicts 150 of 2,000 rows differently",
        "-confidence 0.95 says whether that is more than chance",
        FLATTERED,
    ]


def test_a_difference_is_told_from_chance_whichever_way_is_better() -> None:
    found = found_of()
    told = {}
    for name, higher, (low, high) in (
        ("a", True, (-0.08, -0.02)),
        ("b", True, (-0.1, 0.01)),
        ("c", False, (0.02, 0.08)),
    ):
        found["higher_is_better"] = higher
        found["next"]["confidence"] = confidence(-0.05 if higher else 0.05, low, high)
        told[name] = checkpoint_lines(found)[-2]
    surely = "the best gains 0.0500, at 95 % from 0.0200 to 0.0800 (paired bootstrap): more than chance"
    unsure = "the best gains 0.0500, at 95 % from -0.0100 to 0.1000 (paired bootstrap): these rows do not tell the two"
    assert told == {"a": surely, "b": f"{unsure} apart", "c": surely}
    found["next"]["confidence"] = {"level": 0.95, "draws": 1000, "intervals": {}}  # of a metric of probabilities
    assert checkpoint_lines(found)[-2] == "-confidence: accuracy has no interval"
    found["scored"][1]["metrics"]["accuracy"] = 0.8
    assert checkpoint_lines(found)[-2:] == ["of equal figures the earliest counts as best", FLATTERED]


def test_a_terminal_shows_what_it_has_room_for_and_a_single_checkpoint_is_compared_with_none() -> None:
    names = dict.fromkeys(("accuracy_corrected", "macro_f1", "weighted_f1", "subset_accuracy", "samples_f1"), 0.5)
    found = found_of(**names)
    lines = checkpoint_lines(found)
    assert lines[1].split() == ["step", "accuracy", "from", "to", "micro_f1", "accuracy_corrected"]
    assert max(map(len, lines[:5])) <= 80
    assert lines[5] == "  and 4 more metrics, see -save_report"
    del found["next"]
    assert checkpoint_lines(found)[7:] == ["best by accuracy: step 1,200 (0.8000), run/1200.ckpt"]


def test_the_page_has_a_curve_of_each_metric_with_the_chosen_step() -> None:
    report = {"checkpoints": found_of()}
    accuracy, micro = checkpoint_charts(report)
    assert accuracy.lines[0] == Line("accuracy", ((800, 0.75), (1200, 0.8)), dots=True)
    assert [line.points for line in accuracy.lines[1:3]] == [((800, 0.7), (1200, 0.75)), ((800, 0.8), (1200, 0.85))]
    assert micro.lines[1] == Line("chosen, step 1,200:", ((1200, 0.25),))
    scored = {**report_dict(score(["a"], ["a"]), {}), **report}
    content = prediction_page(scored, Look(), "Report of predictions")
    assert content.count("<svg") == 2
    assert "<td>best</td><td>1,200</td><td>0.8000</td>" in content
    assert [chart.name for chart in score_charts(scored, Look())] == ["checkpoints_accuracy", "checkpoints_micro_f1"]
    assert "Checkpoints" not in prediction_page(report_dict(score(["a"], ["a"]), {}), Look(), "Report of predictions")
