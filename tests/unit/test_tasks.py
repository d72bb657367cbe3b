"""Every registered task: round trips through its columns, templates, labels and primitives."""

from __future__ import annotations

import json

import pytest

from metrics.score import score
from postprocessors.labels import LabelMap
from task_utils import Template, get_task, task_names


def test_built_in_tasks():
    assert {"seq2seq", "jsonlines", "hfdataset", "nsmc-naive", "nsmc-prompted"} <= set(task_names())


@pytest.mark.parametrize("name", task_names())
def test_round_trip(name):
    task = get_task(name)
    assert task.name == name
    assert task.description
    assert type(task).from_dict(json.loads(json.dumps(task.to_dict()))) == task

    row = {str(task.source_column): "재미있다!", str(task.target_column): "어떤 값", "source": "재미있다!"}
    assert "재미있다!" in Template(task.input_template).render(row)
    template = Template(task.target_template, "-target_template")
    labels = task.postprocessor
    if task.label_map is None:
        assert template.render({"target": "값"}) == "값"
        return
    written = []
    for label_id in task.label_map.ids:  # a value of the data -> what the model writes -> the value again
        text = task.label_map.lookup(label_id)
        assert text is not None
        output = template.render({"target": text})
        assert isinstance(labels, LabelMap)
        assert labels.id(output) == label_id
        assert labels.nearest(output) == output
        written.append(output)
    assert set(score(written, written, labels, names=task.metrics).metrics.items()) == {(m, 1.0) for m in task.metrics}


@pytest.mark.parametrize(
    "name, source, target, given, expected",
    [
        ("seq2seq", 1, 2, "안녕", "안녕"),
        ("jsonlines", "text", "label", "안녕", "안녕"),
        ("hfdataset", "text", "label", "안녕", "안녕"),
        ("nsmc-naive", "document", "label", "굿 ㅋㅋ", "굿 ㅋㅋ"),
        ("nsmc-prompted", "document", "label", "굿 ㅋㅋ", "nsmc sentiment classification: 굿 ㅋㅋ"),
    ],
)
def test_columns_and_model_input(name, source, target, given, expected):
    task = get_task(name)
    assert (task.source_column, task.target_column) == (source, target)
    assert Template(task.input_template).render({"source": given}) == expected


@pytest.mark.parametrize("name", ["nsmc-naive", "nsmc-prompted"])
def test_nsmc_polarity_and_validation_share(name):
    task = get_task(name)
    assert task.label_map is not None
    assert task.label_map.entries == (("0", "negative"), ("1", "positive"))
    assert (task.valid_proportion, task.hub_dataset) == (0.02, "e9t/nsmc")
