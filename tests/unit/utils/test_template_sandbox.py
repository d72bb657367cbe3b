"""Templates are bounded in time and memory, whoever wrote them; what they are used for still works."""

from __future__ import annotations

import pytest

from config.templates import MOST_TEMPLATE, Template
from utils.errors import UserError

ROW = {"source": "ab cd", "target": "1"}


@pytest.mark.parametrize(
    "template, text",
    [
        ("{{ source.strip() | upper }}", "AB CD"),
        ("{{ source[:2] ~ target }}{{ source[-1] }}", "ab1d"),
        ("{{ source | replace(' ', '_') | truncate(3, true, '', 0) }}", "ab_"),
        ("{{ source.replace('b', 'x') + '.' }}", "ax cd."),
        ("{{ {'0': 'no', '1': 'yes'}[target] }}", "yes"),
        ("{{ ' '.join(source.split()[1:]) }}{{ source.split() | join('-') }}", "cdab-cd"),
        ("{% for word in source.split() if word != 'ab' %}{{ loop.index }}{{ word }}{% endfor %}", "1cd"),
        ("{% set words = source.split(' ') %}{{ words[1] }}, {{ words | length - 1 }}", "cd, 1"),
        ("{{ 'long' if source | length > 3 and target not in ['0', '2'] else 'short' }}", "long"),
        ("{% for word in source.split() %}{{ word[0:1] ~ word.upper() | length }}{% else %}-{% endfor %}", "a2c2"),
        ("{{ source.replace('a', '<b>') | striptags }}{{ target | int + 1 }}", "b cd2"),
        ("{{ source.split() | string }}{{ 7 // 2 }}", "['ab', 'cd']3"),
    ],
)
def test_what_templates_are_for(template: str, text: str) -> None:
    assert Template(template).render(ROW) == text


@pytest.mark.parametrize(
    "template, reason",
    [
        ("{{ 9**9999999999 }}", "Pow is not for templates"),
        ("{{ source * 999999999999 }}", "Mul is not for templates"),
        ("{{ '%999999999999d' % 1 }}", "Mod is not for templates"),
        ("{{ '%999999999999d' | format(1) }}", "filter 'format' is not for templates"),
        ("{{ 1.5 | round(999999999) }}", "filter 'round' is not for templates"),
        ("{{ source.center(999999999999) }}", "only these methods of text may be called"),
        ("{{ source['center'](999999999999) }}", "only these methods of text may be called"),
        ("{% for a in source %}{% for b in source %}{% endfor %}{% endfor %}", "a loop may hold no other loop"),
        ("{% for a in [source] recursive %}{{ loop([source]) }}{% endfor %}", "a loop may hold no other loop"),
        ("{{ source.__class__.__mro__ }}", "is not for templates"),
        ("{{ source.lower }}", "'lower' is a method; write lower(), or ['lower'] for a key of the row"),
        ("{% if source.strip().isdigit %}{{ source }}{% endif %}", "'isdigit' is a method; write isdigit()"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "Macro is not for templates"),
        ("{% set a = 1 %}" * 11, "at most 10 names may be set"),
        ("{{ " + "(" * 5000 + "source" + ")" * 5000 + " }}", "nested too deep"),
        ("{{ source" + " + source" * 1500 + " }}", "nested too deep"),
        ("x" * (MOST_TEMPLATE + 1), "16,385 characters; a template may have 16,384"),
    ],
)
def test_what_may_not_end_is_refused_when_it_is_read(template: str, reason: str) -> None:
    with pytest.raises(UserError) as caught:
        Template(template)
    (problem,) = caught.value.problems
    assert problem.startswith("-input_template")
    assert reason in problem
    assert len(problem) < 500


@pytest.mark.parametrize(
    "template",
    [
        "{{ source" + " | replace('a', 'aaaaaaaa')" * 20 + " }}",
        "{{ source" + ".replace('a', 'aaaaaaaa')" * 20 + " }}",
        "{% set a = source + source %}" + "{% set a = a.replace('a', a) %}" * 8 + "{{ a }}",
        "{{ source | replace('', source | list | join(source)) | replace('a', source) | list | join(source) }}",
        "{% set a = source" + " | replace('a', 'aaaa')" * 6 + " %}{{ a ~ a ~ a ~ a }}{{ a + a + a + a }}",
        "{% set a = source" + " | replace('a', 'aaaa')" * 6 + " %}{{ a }}{{ a }}{{ a }}{{ a }}",
        "{% for letter in source %}{{ source" + " | replace('a', 'aaaa')" * 6 + " }}{% endfor %}",
        "{{ source" + " | list | string" * 12 + " }}",
    ],
)
def test_no_step_makes_a_text_beyond_the_bound(monkeypatch: pytest.MonkeyPatch, template: str) -> None:
    monkeypatch.setattr("utils.template_sandbox.MOST_CHARACTERS", 10_000)
    with pytest.raises(ValueError, match="makes more than 10,000 characters"):
        Template(template).render({"source": "a" * 20})


@pytest.mark.parametrize(
    "template",
    [
        "{% for c in source %}{% set x = source.split('a') | length %}{% endfor %}",
        "{% for c in source if source.count('a') %}{% endfor %}",
        "{% for c in source %}{% if source in source %}{% endif %}{% endfor %}",
        "{% for c in source %}{% set x = source[1:] %}{% endfor %}",
        "{% for c in source %}{% set x = 'a'" + ".replace('a', 'aaaaaaaa')" * 6 + " %}{% endfor %}",
        "{% for c in source %}{% set x = 'a'" + " | replace('a', 'aaaaaaaa')" * 6 + " %}{% endfor %}",
        "{% for c in source %}{% if a.b.strip() %}{% endif %}{% endfor %}",
        "{% for word in source.split() %}{% if word ~ source == source %}{% endif %}{% endfor %}",
    ],
)
def test_the_loops_of_a_row_are_bounded(template: str) -> None:
    with pytest.raises(ValueError, match=r"its loops handle more than 67,108,864 characters of the row"):
        Template(template).render({"source": "abcdefghi " * 10_000, "a.b": " " * 10_000})


def test_a_loop_over_the_words_of_a_long_text_ends_as_ever() -> None:
    words = ["word", *["abcdefghi"] * 20_000]
    template = Template("{% for word in source.split() %}{{ word | upper }} {% endfor %}")
    assert template.render({"source": " ".join(words)}) == " ".join(words).upper() + " "


def test_tags_beyond_the_bound_are_refused() -> None:
    with pytest.raises(ValueError, match="striptags: too many tags"):
        Template("{{ source | striptags }}").render({"source": "<>" * 100_000})
