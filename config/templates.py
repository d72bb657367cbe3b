"""Templates: what users say of how a row is written as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from config.languages import language_name
from utils.errors import UserError
from utils.escapes import NO_UNICODE, is_unicode

MOST_TEMPLATE = 1 << 14  # characters of a template


@dataclass(frozen=True)
class Variable:
    """A bare `{{ name }}` of a template, dotted for a nested key."""

    name: str


class Template:
    """A sandboxed Jinja template over the columns of a row (plus `source` and `target`).

    `variables` are the names it reads, with dots for nested keys: `{{ a.b }}` and `{{ a['b'] }}` read `a.b`. `parts` is
    set when it holds only literal text and bare `{{ name }}`: joining these gives exactly what `render` gives. A
    missing variable is an error, and newlines at the end are kept. Raises `UserError` on a syntax error and on what
    `utils/template_sandbox.py` does not allow, with `name` (the flag), the line and the reason, and on half of a
    surrogate pair.
    """

    def __init__(self, source: str, name: str = "-input_template") -> None:
        from jinja2 import TemplateSyntaxError
        from jinja2.meta import find_undeclared_variables

        from utils.template_sandbox import compiled

        self.source = source
        self.name = name
        if len(source) > MOST_TEMPLATE:
            raise UserError(f"{name}: {len(source):,} characters; a template may have {MOST_TEMPLATE:,}")
        if not is_unicode(source):
            raise UserError(f"{name} {source!r} {NO_UNICODE}")
        try:
            self._template, tree, self._dotted = compiled(source, {language_name.__name__: language_name})
            used = find_undeclared_variables(tree)
            self.variables: frozenset[str] = frozenset(self._dotted.get(name, name) for name in used)
        except TemplateSyntaxError as error:
            lines = source.splitlines() or [""]
            line = lines[min(error.lineno, len(lines)) - 1]
            raise UserError(f"{name}, line {error.lineno} ({line.strip()[:100]!r}): {error.message}") from None
        except RecursionError:
            raise UserError(f"{name} {source[:100]!r}...: nested too deep") from None
        self.parts: tuple[str | Variable, ...] | None = _plain_parts(tree, self._dotted)

    def render(self, row: Mapping[str, str]) -> str:
        """The text for one row; `ValueError` with a short reason when it cannot be rendered."""
        if self.parts is not None:
            try:
                return "".join(part if isinstance(part, str) else row[part.name] for part in self.parts)
            except KeyError as error:
                raise ValueError(f"{error} is undefined") from None
        own = {name: row[path] for name, path in self._dotted.items() if path in row}
        try:
            return self._template.render({**row, **own})
        except Exception as error:
            reason = str(error) or type(error).__name__
            for name, path in self._dotted.items():
                reason = reason.replace(repr(name), repr(path))
            raise ValueError(reason) from error

    def __reduce__(self) -> tuple[type[Template], tuple[str, str]]:
        return Template, (self.source, self.name)

    def __repr__(self) -> str:
        return f"Template({self.source!r}, name={self.name!r})"


def _plain_parts(tree: Any, dotted: Mapping[str, str]) -> tuple[str | Variable, ...] | None:
    """Literal texts and bare variables of a parsed template, or None when it holds anything else."""
    from jinja2 import nodes

    parts: list[str | Variable] = []
    for output in tree.body:
        if not isinstance(output, nodes.Output):
            return None
        for node in output.nodes:
            if isinstance(node, nodes.TemplateData):
                parts.append(node.data)
            elif isinstance(node, nodes.Name) and node.name != "self":
                parts.append(Variable(dotted.get(node.name, node.name)))
            else:
                return None
    return tuple(parts)
