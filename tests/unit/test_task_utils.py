"""Label maps, templates, tasks and task files."""

from __future__ import annotations

import json
import pickle
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.templates import Variable
from metrics.registry import LABELS, METRICS, TEXTS, Metric, default_metrics
from postprocessors import kinds
from postprocessors.base import FREE_TEXT, FreeText
from postprocessors.kinds import KINDS
from postprocessors.labels import LabelMap
from task_utils import Task, Template, get_task, task_names, written_labels
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Grades(FreeText):
    """A kind of output with a field of each sort."""

    low: float = 0.0
    high: float | None = None
    places: int = 1
    names: tuple[str, ...] = ()
    strict: bool = False

    kind = "grades"

    def __post_init__(self) -> None:
        if self.places < 0:
            raise UserError(f"places {self.places} is below 0")


@pytest.fixture
def grades(monkeypatch):
    monkeypatch.setitem(KINDS, "grades", Grades)
    monkeypatch.setitem(METRICS, "grade", Metric("grade", "grades", "a figure of grades"))


SENTIMENT = LabelMap((("0", "부정"), ("1", "긍정")))


def problems(call, *arguments) -> tuple[str, ...]:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    return caught.value.problems


# --- label maps


def test_flag_value_is_read_in_order_with_blanks_stripped():
    label_map = LabelMap.parse(" 1 = 긍정 , 0=부정")
    assert label_map.entries == (("1", "긍정"), ("0", "부정"))
    assert (label_map.ids, label_map.texts) == (("1", "0"), ("긍정", "부정"))


def test_flag_value_keeps_an_equals_sign_in_the_text():
    assert LabelMap.parse("a=x=y").entries == (("a", "x=y"),)


@pytest.mark.parametrize(
    "name, content, entries",
    [
        ("m.json", '{"0": "부정", "1": "긍정"}', (("0", "부정"), ("1", "긍정"))),
        ("m.json", '["부정", "긍정, 아주"]', (("0", "부정"), ("1", "긍정, 아주"))),
        ("m.json", '{"1.0": 1.50}', (("1.0", "1.50"),)),
        ("m.yaml", "0: no\n1: yes\n", (("0", "no"), ("1", "yes"))),
        ("m.yml", "\ufeff- null\r\n- 01\r\n", (("0", "null"), ("1", "01"))),
    ],
)
def test_label_map_files_keep_every_scalar_as_it_is_written(tmp_path, name, content, entries):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8", newline="")
    assert LabelMap.parse(str(path)).entries == entries


@pytest.mark.parametrize(
    "value, message",
    [
        ("", "entry 1 ('') is not ID=TEXT"),
        ("0=부정,긍정", "entry 2 ('긍정') is not ID=TEXT"),
        ("0=부정,0=긍정", "id '0' occurs more than once"),
        ("0=부정,1=부정", "text '부정' occurs more than once"),
        ("0=,1=긍정", "empty text in entry 1"),
        ("=부정", "empty id in entry 1"),
        ("missing.json", "-label_map missing.json: cannot be read (No such file or directory)"),
    ],
)
def test_wrong_label_map_flags_are_named(value, message):
    (problem,) = problems(LabelMap.parse, value)
    assert problem.startswith("-label_map")
    assert message in problem


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("m.json", b'{"0": "a", "0": "b"}', "key '0' occurs more than once"),
        ("m.json", b'{"0": ["a"]}', "the text of label '0' must be plain text, not ['a']"),
        ("m.json", b'{"0": true}', "must be plain text, not True"),
        ("m.json", b'{"0": ', "Expecting value"),
        ("m.json", b"[]", "no entry"),
        ("m.json", b'"0=a"', "expected a mapping from id to text, or a list of texts"),
        ("m.json", b"[" * 100_000, "m.json:1: nested too deep"),
        ("m.yaml", b"0: a\n0: b\n", "key '0' occurs more than once"),
        ("m.yaml", b"0: a\n1: [", "m.yaml:2"),
        ("m.yaml", b"", "expected a mapping"),
        ("m.yaml", b"0: \xb0\xa1", "not UTF-8 at byte 3"),
    ],
)
def test_wrong_label_map_files_are_named(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    (problem,) = problems(LabelMap.parse, str(path))
    assert str(path) in problem
    assert message in problem


def test_lookup_takes_an_id_first_then_a_text_and_ignores_blanks():
    assert [SENTIMENT.lookup(v) for v in ("0", " 1 ", "긍정", "2", "")] == ["부정", "긍정", "긍정", None, None]
    swapped = LabelMap((("a", "b"), ("b", "a")))
    assert (swapped.lookup("a"), swapped.lookup("b")) == ("b", "a")


def test_nearest_by_edit_distance_with_ties_to_the_first_declared():
    label_map = LabelMap((("0", "negative"), ("1", "positive"), ("2", "positives")))
    assert label_map.nearest("positives") == "positives"
    assert label_map.nearest("positiv") == "positive"
    assert label_map.nearest("postve") == "positive"
    assert SENTIMENT.nearest("중립") == "부정"  # both are two edits away
    assert SENTIMENT.nearest("") == "부정"
    assert [SENTIMENT.nearest("긍젱", limit) for limit in (0, 1, None)] == [None, "긍정", "긍정"]


def test_correct_keeps_order_and_repetitions():
    assert SENTIMENT.correct(["긍젱", "부정", "긍젱", "전혀다름"], 1) == ["긍정", "부정", "긍정", None]
    assert SENTIMENT.correct([]) == []


NO_WIDTH = set("\u00ad\u200b\u200c\u200d\u2060\ufeff")
texts = st.text(min_size=1, max_size=8).filter(
    lambda text: text == text.strip() == unicodedata.normalize("NFC", text) and not NO_WIDTH & set(text)
)


@given(st.dictionaries(texts, texts, min_size=1, max_size=5))
def test_label_map_round_trips_through_json_and_pickle(entries):
    if len(set(entries.values())) < len(entries):
        return
    label_map = LabelMap(tuple(entries.items()))
    assert LabelMap.from_dict(json.loads(json.dumps(label_map.to_dict()))) == label_map
    assert pickle.loads(pickle.dumps(label_map)) == label_map
    for label_id in label_map.ids:
        text = dict(label_map.entries)[label_id]
        assert (label_map.lookup(label_id), label_map.nearest(text)) == (text, text)


# --- templates


def test_bare_variables_take_the_fast_path():
    template = Template("문장: {{ source }}\n{{document}}\n")
    assert template.parts == ("문장: ", Variable("source"), "\n", Variable("document"), "\n")
    assert template.variables == {"source", "document"}
    assert template.render({"source": "{{ x }}", "document": "<b>"}) == "문장: {{ x }}\n<b>\n"


@pytest.mark.parametrize(
    "source, variables, rendered",
    [
        ("{{ source | upper }}", {"source"}, "AB"),
        ("{% if label == '1' %}{{ source }}{% endif %}", {"source", "label"}, "ab"),
        ("{% for c in source %}{{ loop.index }}{{ c }}{% endfor %}", {"source"}, "1a2b"),
        ("{{ source ~ label }}", {"source", "label"}, "ab1"),
    ],
)
def test_other_templates_are_rendered_by_jinja(source, variables, rendered):
    template = Template(source)
    assert template.parts is None
    assert template.variables == variables
    assert template.render({"source": "ab", "label": "1"}) == rendered


@pytest.mark.parametrize(
    "source, variables, rendered",
    [
        ("{{ a.b }}: {{ a['b-c'] }}/{{ a.b.d }}", {"a.b", "a.b-c", "a.b.d"}, "1: 2/3"),
        ("{{ a.b.strip() | upper }}{% if a['b-c'] == '2' %}!{% endif %}", {"a.b", "a.b-c"}, "1!"),
        ("{{ a ~ a.b }}", {"a", "a.b"}, "x1"),
        (
            "{% set s = a.b %}{{ s[0] }}{% for c in a.b.d %}{{ loop.index }}{{ a.b }}{% endfor %}",
            {"a.b", "a.b.d"},
            "111",
        ),
    ],
)
def test_dotted_names_are_columns(source, variables, rendered):
    template = pickle.loads(pickle.dumps(Template(source)))
    assert (template.parts is not None) == ("strip" not in source and "~" not in source and "set" not in source)
    assert template.variables == variables
    assert template.render({"a": "x", "a.b": "1", "a.b-c": "2", "a.b.d": "3"}) == rendered
    with pytest.raises(ValueError, match=r"^'a\.b' is undefined$"):
        template.render({"a": "x", "a.b-c": "2", "a.b.d": "3"})


def test_a_column_may_bear_the_name_of_a_jinja_global():
    assert Template("{{ range }}").variables == {"range"}
    assert Template("{{ range }}").render({"range": "5 km"}) == "5 km"


@given(
    st.lists(st.one_of(st.text(alphabet="a가 \n\t\"'<&", max_size=5), st.sampled_from(["{{ source }}", "{{ b }}"]))),
    st.text(max_size=10),
)
def test_fast_path_equals_jinja(pieces, value):
    row = {"source": value, "b": "{{ source }}"}
    fast, slow = Template("".join(pieces)), Template("".join(pieces) + "{{ '' }}")
    assert (fast.parts is not None, slow.parts) == (True, None)
    assert fast.render(row) == slow.render(row)


@pytest.mark.parametrize("source", ["{{ missing }}", "{{ missing | upper }}"])
def test_a_missing_variable_is_an_error(source):
    with pytest.raises(ValueError, match=r"^'missing' is undefined$"):
        Template(source).render({"source": "a"})


@pytest.mark.parametrize("source", ["{{ 1 // 0 }}", "{{ source + 1 }}"])
def test_failing_expressions_are_value_errors(source):
    with pytest.raises(ValueError, match=r"zero|concatenate"):
        Template(source).render({"source": "a"})


def test_syntax_error_names_flag_line_and_reason():
    (problem,) = problems(Template, "ok\n{{ source }", "-target_template")
    assert problem == "-target_template, line 2 ('{{ source }'): unexpected '}'"


def test_templates_can_be_pickled():
    template = pickle.loads(pickle.dumps(Template("a {{ b }}", "-target_template")))
    assert (template.source, template.name, template.render({"b": "c"})) == ("a {{ b }}", "-target_template", "a c")


def test_labels_are_rendered_by_the_target_template():
    assert Task("t", "", target_template="{{ target }}{{ other }}").postprocessor is FREE_TEXT
    assert written_labels(SENTIMENT, Template("{{ target }}")) == SENTIMENT
    labels = written_labels(SENTIMENT, Template("감정: {{ target }}"))
    assert labels.entries == (("0", "감정: 부정"), ("1", "감정: 긍정"))
    assert Task("t", "", target_template="감정: {{ target }}", label_map=SENTIMENT).postprocessor == labels


def test_labels_refuse_other_variables_and_labels_that_coincide():
    (problem,) = problems(written_labels, SENTIMENT, Template("{{ target }} {{ title }}", "-target_template"))
    assert problem == (
        "-target_template '{{ target }} {{ title }}': with a label map only {{ target }} may be used, not title"
    )
    (problem,) = problems(written_labels, SENTIMENT, Template("label", "-target_template"))
    assert "text 'label' occurs more than once" in problem
    (problem,) = problems(written_labels, SENTIMENT, Template("{{ target + 1 }}", "-target_template"))
    assert problem.startswith("-target_template '{{ target + 1 }}': can only concatenate str")


# --- tasks


def test_unknown_task_gets_the_list_and_the_closest_name():
    (problem,) = problems(get_task, "nsmc-promted")
    assert problem.startswith("-task nsmc-promted: no such task (did you mean nsmc-prompted?); known: ")
    assert ", ".join(task_names()) in problem


def test_with_label_map_gives_a_text_task_the_label_metrics():
    assert get_task("seq2seq").metrics == default_metrics(TEXTS)
    task = get_task("seq2seq").with_label_map(SENTIMENT)
    assert (task.label_map, task.metrics) == (SENTIMENT, default_metrics(LABELS))


def test_a_built_in_task_is_a_file_as_users_write_it(tmp_path):
    copy = tmp_path / "nsmc-prompted.yaml"
    copy.write_bytes((ROOT / "datamodules/tasks/nsmc-prompted.yaml").read_bytes())
    assert get_task(str(copy)) == get_task("nsmc-prompted")


def write_task(folder: Path, text: str) -> str:
    path = folder / "reviews.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_task_file(tmp_path):
    path = write_task(
        tmp_path,
        "description: 영화 평\nsource_column: 2\ntarget_column: label\ninput_template: '평: {{ source }}'\n"
        "label_map: {0: 부정, 1: 긍정}\nmax_seq_length: 128\nvalid_proportion: 0.1\n",
    )
    assert get_task(path) == Task(
        name="reviews",
        description="영화 평",
        source_column=2,
        target_column="label",
        input_template="평: {{ source }}",
        label_map=SENTIMENT,
        metrics=default_metrics(LABELS),
        max_seq_length=128,
        valid_proportion=0.1,
    )


def test_a_kind_of_output_of_the_user(tmp_path, monkeypatch):
    @dataclass(frozen=True)
    class Stars(FreeText):
        most: int = 5
        kind = "stars"

    monkeypatch.setattr(kinds, "KINDS", dict(KINDS))
    kinds.register(Stars)
    kinds.register(Stars)  # as a process does that imports the file again
    task = get_task(write_task(tmp_path, "postprocessor: {kind: stars, most: 3}\n"))
    assert (task.kind, task.output, task.metrics) == ("stars", Stars(3), default_metrics(TEXTS))
    for kind, problem in (
        (dataclass(frozen=True)(type("Other", (FreeText,), {"kind": "stars"})), "'stars' is there already"),
        (dataclass(frozen=True)(type("Other", (FreeText,), {"kind": "labels"})), "'labels' is there already"),
        (type("Loose", (FreeText,), {"kind": "loose"}), "Loose is no frozen dataclass"),
    ):
        with pytest.raises(ValueError, match=problem):
            kinds.register(kind)


@pytest.mark.usefixtures("grades")
def test_a_task_file_names_a_kind_of_output_a_layout_and_references(tmp_path):
    path = write_task(
        tmp_path,
        "layout: squad\nreferences: '{{ answers }}'\n"
        "postprocessor: {kind: grades, low: 1, high: 5, places: 2, names: [a, b], strict: true}\n",
    )
    task = get_task(path)
    output = Grades(1.0, 5.0, 2, ("a", "b"), True)
    assert task == Task("reviews", "", layout="squad", references="{{ answers }}", output=output, metrics=("grade",))
    assert (task.postprocessor, task.kind) == (output, "grades")
    assert "grade" in task.monitors
    assert Task.from_dict(json.loads(json.dumps(task.to_dict()))) == task
    assert get_task(write_task(tmp_path, "postprocessor: grades\n")).output == Grades()
    labels = task.with_label_map(SENTIMENT)
    assert (labels.postprocessor, labels.metrics) == (SENTIMENT, default_metrics(LABELS))


def test_keys_that_are_not_set_do_not_stand_in_a_checkpoint():
    keys = ["name", "description", "source_column", "target_column", "input_template", "target_template", "label_map"]
    keys += ["metrics", "max_seq_length", "max_target_length", "hub_dataset", "valid_proportion"]
    assert list(get_task("seq2seq").to_dict()) == keys


@pytest.mark.usefixtures("grades")
@pytest.mark.parametrize(
    "text, message",
    [
        ("postprocessor: grade\n", "postprocessor: unknown kind 'grade' (did you mean grades?); known: "),
        ("postprocessor: [a]\n", "postprocessor: unknown kind ['a']; known: "),
        ("postprocessor: {low: 1}\n", "postprocessor: unknown kind ''; known: "),
        (
            "postprocessor: {kind: grades, lo: 1}\n",
            "unknown field 'lo' of grades (did you mean low?); known: low, high, places, names, strict",
        ),
        (
            "postprocessor: {kind: numbers, texts: [a]}\n",
            "unknown field 'texts' of numbers; known: lowest, highest, decimals",
        ),
        ("postprocessor: {kind: grades, high: five}\n", "postprocessor: high must be a number, not 'five'"),
        ("postprocessor: {kind: grades, places: 1.5}\n", "postprocessor: places must be a whole number, not '1.5'"),
        ("postprocessor: {kind: grades, names: a}\n", "postprocessor: names must be a list of texts, not 'a'"),
        ("postprocessor: {kind: grades, strict: yes}\n", "postprocessor: strict must be true or false, not 'yes'"),
        ("postprocessor: {kind: grades, places: -1}\n", "postprocessor: places -1 is below 0"),
        ("postprocessor: grades\nlabel_map: [a, b]\n", "postprocessor does not go with a label_map"),
        ("references: '{{ a }}'\nlabel_map: [a, b]\n", "references does not go with a label_map"),
        ("references: '{{ a '\n", "references, line 1 ('{{ a'): "),
        ("metrics: [grade]\n", "metric 'grade' needs postprocessor: grades; of texts there are: exact_match"),
        (
            "postprocessor: grades\nmetrics: [accuracy]\n",
            "metric 'accuracy' needs a label_map; of grades there are: grade, exact_match",
        ),
    ],
)
def test_wrong_outputs_of_a_task_file(tmp_path, text, message):
    (problem,) = problems(get_task, write_task(tmp_path, text))
    assert message in problem


def test_every_mistake_in_a_task_file_is_told_at_once(tmp_path):
    path = write_task(
        tmp_path,
        "lable_map: {0: a}\nmax_seq_length: many\nlabel_map: {0: a, 1: a}\nmetrics: accuracy\n"
        "source_column: 0\ninput_template: '{{ a'\nreferences: '{{ b'\n",
    )
    found = problems(get_task, path)
    assert all(problem.startswith(f"-task {path}: ") for problem in found)
    assert len(found) == 7
    assert "unknown key 'lable_map' (did you mean label_map?); known: name, description, source_column" in found[0]
    assert "label_map: label map: text 'a' occurs more than once" in found[1]
    assert "metrics must be a list of names, not 'accuracy'" in found[2]
    assert "max_seq_length must be a whole number of tokens, not 'many'" in found[3]
    assert "source_column 0 is no column" in found[4]
    assert "input_template, line 1 ('{{ a')" in found[5]
    assert "references, line 1 ('{{ b')" in found[6]


@pytest.mark.parametrize(
    "text, message",
    [
        ("source_column: 0\n", "source_column 0 is no column; give a name, or a number from 1"),
        ("source_column: ''\n", "source_column '' is no column"),
        ("label_map: 3\n", "expected a mapping from id to text, or a list of texts, not '3'"),
        ("label_map: {0: {a: b}}\n", "the text of label '0' must be plain text"),
        ("metrics: [zzz]\n", "unknown metric 'zzz'; known: exact_match"),
        ("metrics: [accuracy]\n", "metric 'accuracy' needs a label_map"),
        ("layout: conl\n", "unknown layout 'conl' (did you mean conll?); known: conll, squad"),
        ("placeholders: NS\n", "placeholders must be a list of texts, not 'NS'"),
        ("max_target_length: -1\n", "max_target_length -1 is below 0"),
        ("valid_proportion: 1.5\n", "valid_proportion 1.5 is not in [0, 1)"),
        ("input_template: '{{ source '\n", "input_template, line 1 ('{{ source'): "),
        ("label_map: [a, b]\ntarget_template: '{{ document }}'\n", "only {{ target }} may be used, not document"),
        ("description: [a]\n", "description must be plain text or a number, not ['a']"),
        ("- a\n", "expected a mapping with keys such as name"),
        ("name: a\nname: b\n", "key 'name' occurs more than once"),
        ("name: a: b\n", "reviews.yaml:1: mapping values are not allowed here"),
    ],
)
def test_wrong_task_files(tmp_path, text, message):
    path = write_task(tmp_path, text)
    (problem,) = problems(get_task, path)
    assert problem.startswith(f"-task {path}")
    assert message in problem


def test_missing_task_file():
    assert problems(get_task, "no/such.yaml") == ("-task no/such.yaml: cannot be read (No such file or directory)",)
