"""Jinja for templates that flags, task files and checkpoints bring: no code, and bounded in time and memory.

Every text that a template makes is bounded, and so is what its loops handle: what could make more (powers, products,
formats, padding, loops in loops, macros, ...) is refused when the template is read. The rest takes a few passes over a
row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateSyntaxError, nodes, pass_context
from jinja2.filters import FILTERS
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MOST_CHARACTERS = 1 << 26  # of any text that a template makes of a row
STEP = 16  # characters that a step of a loop counts for besides those it handles
MOST_ASSIGNMENTS = 10
_NODES = """Template Output TemplateData Name Const List Tuple Dict Pair Keyword If CondExpr And Or Not Compare Operand
    Add Sub Div FloorDiv Neg Pos Getattr Getitem Slice Test"""
_FILTERS = """capitalize count d default first float int join last length list lower replace reverse string striptags
    title trim truncate upper wordcount"""
_COUNTED = "counted"  # the filter around every value in a loop; templates cannot name it
_METHODS = """capitalize casefold count endswith find index isalnum isalpha isdecimal isdigit islower isspace isupper
    join lower lstrip partition removeprefix removesuffix replace rfind rpartition rsplit rstrip split splitlines
    startswith strip swapcase title upper"""


def compiled(source: str, filters: Mapping[str, Callable[..., str]]) -> tuple[Template, nodes.Template, dict[str, str]]:
    """A template ready to render, its parsed form, and the dotted names of columns by the names they have in it.
    `filters` are some of the caller's own, whose texts are short.

    `{{ a.b }}` and `{{ a['b'] }}` read the column `a.b`: the template has one name for it, and no object to look into.
    Raises `TemplateSyntaxError` with the line, also for what a template may not use, and `RecursionError`.
    """
    environment = _Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    environment.globals.clear()  # every name is a column, `range` and `dict` too
    environment.filters |= filters
    parsed = environment.parse(source)
    own = {name.name for name in parsed.find_all(nodes.Name) if name.ctx != "load"}
    bounded = _Bounded(own, [*_FILTERS.split(), *filters])
    tree: nodes.Template = bounded.visit(parsed)
    tree.set_environment(environment)
    try:
        return environment.from_string(tree), tree, bounded.dotted
    except (MemoryError, SyntaxError) as error:  # how Python says that the code of the template is nested too deep
        raise RecursionError from error


def _check(characters: int) -> None:
    if characters > MOST_CHARACTERS:
        raise ValueError(f"makes more than {MOST_CHARACTERS:,} characters")


class _Row(Context):
    """The names of a row, and the characters that the loops have handled of it."""

    handled = 0


@pass_context
def _counted(row: _Row, value: object) -> object:
    """`value`, which a step of a loop handles; `ValueError` when the loops of a row handle too many characters."""
    row.handled += STEP + (len(value) if isinstance(value, str | list | tuple | dict) else 0)
    if row.handled > MOST_CHARACTERS:
        raise ValueError(f"its loops handle more than {MOST_CHARACTERS:,} characters of the row")
    return value


def _striptags(text: object) -> str:
    whole = str(text)
    if len(whole) * whole.count("<") > MOST_CHARACTERS:  # the library copies the text for every tag
        raise ValueError("striptags: too many tags")
    return str(FILTERS["striptags"](whole))


def _int(text: object, default: int = 0) -> int:
    return int(FILTERS["int"](text, default))  # in base 10, in which Python bounds the digits


def _replace(text: object, old: object, new: object, count: int | None = None) -> str:
    whole, part, other = str(text), str(old), str(new)
    times = whole.count(part) if count is None or count < 0 else min(whole.count(part), count)
    _check(len(whole) + times * (len(other) - len(part)))
    return whole.replace(part, other, times)


def _join(values: Iterable[object], separator: object = "") -> str:
    texts, between = [str(value) for value in values], str(separator)
    _check(sum(map(len, texts)) + len(texts) * len(between))
    return between.join(texts)


def _string(value: object) -> str:
    if not isinstance(value, str):  # the text of a list is longer than what it was made of
        _check(4 * len(value) if isinstance(value, list | tuple) else 0)
    return str(value)


class _Environment(ImmutableSandboxedEnvironment):
    """Every step that joins texts says how much it would make before it does."""

    intercepted_binops = frozenset(["+"])
    context_class = _Row

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.filters = {name: FILTERS[name] for name in _FILTERS.split()}
        self.filters |= {"replace": _replace, "join": _join, "string": _string, "striptags": _striptags, "int": _int}
        self.filters[_COUNTED] = _counted

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """The sum of two values."""
        if isinstance(left, str | list | tuple) and isinstance(right, type(left)):
            _check(len(left) + len(right))
        return super().call_binop(context, operator, left, right)

    @staticmethod
    def concat(pieces: Iterable[str]) -> str:
        """The pieces of a rendered template as one text."""
        kept, size = [], 0
        for piece in pieces:
            size += len(piece)
            _check(size)
            kept.append(piece)
        return "".join(kept)


class _Bounded(NodeTransformer):
    """Refuses what a template may not use, turns every way to join texts into the bounded filters, and dotted names
    into plain ones.

    Args:
        own: names that the template sets itself.
        filters: names of filters that it may use.
    """

    def __init__(self, own: set[str], filters: Sequence[str]) -> None:
        self.own = {*own, "loop", "self"}
        self.filters = filters
        self.dotted: dict[str, str] = {}  # name in the tree -> dotted name of the column
        self.in_loop = False
        self.assignments = 0
        self.called: nodes.Getattr | None = None  # the method of the call that is being visited

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        """The node in its bounded form; in a loop every value is counted."""
        called = node is self.called
        visited = super().visit(node, *args, **kwargs)
        return visited if called else self._counted(visited)

    def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        name = type(node).__name__
        if name not in _NODES.split():
            raise TemplateSyntaxError(
                f"{name} is not for templates; they may hold names, texts, if, for, set, comparisons, + - / // ~,"
                " slices, filters and methods of text",
                node.lineno,
            )
        return super().generic_visit(node, *args, **kwargs)

    def _counted(self, node: nodes.Node) -> nodes.Node:
        """In a loop, `node` as a value that is counted; anywhere else, and where it is no value, `node` itself."""
        of_loop = isinstance(node, nodes.Name) and (node.ctx != "load" or node.name == "loop")
        if not self.in_loop or of_loop or not isinstance(node, nodes.Expr):
            return node
        if isinstance(node, nodes.Literal | nodes.Slice):
            return node
        return nodes.Filter(node, _COUNTED, [], [], None, None, lineno=node.lineno)

    def visit_Filter(self, node: nodes.Filter) -> nodes.Node:
        if node.node is None or node.name not in self.filters:
            known = ", ".join(self.filters)
            raise TemplateSyntaxError(f"filter {node.name!r} is not for templates; known: {known}", node.lineno)
        return super().generic_visit(node)

    def visit_Call(self, node: nodes.Call) -> nodes.Node:
        method = node.node.attr if isinstance(node.node, nodes.Getattr) else ""
        if method not in _METHODS.split():
            known = ", ".join(_METHODS.split())
            raise TemplateSyntaxError(f"only these methods of text may be called: {known}", node.lineno)
        assert isinstance(node.node, nodes.Getattr)
        text = node.node.node
        if method == "replace":
            return self._filtered(node, method, text, node.args)
        if method == "join":
            return self._filtered(node, method, node.args[0] if node.args else nodes.List([]), [text])
        self.called = node.node
        return super().generic_visit(node)

    def visit_Getattr(self, node: nodes.Getattr) -> nodes.Node:
        if node.attr.startswith("_"):
            raise TemplateSyntaxError(f"{node.attr!r} is not for templates", node.lineno)
        of_loop = isinstance(node.node, nodes.Name) and node.node.name == "loop"  # it has an index, as text has
        called = node is self.called
        if not called and hasattr(str, node.attr) and not of_loop:
            raise TemplateSyntaxError(
                f"{node.attr!r} is a method; write {node.attr}(), or [{node.attr!r}] for a key of the row", node.lineno
            )
        visited = super().generic_visit(node)
        return visited if called else self._column(visited, node.node, node.attr)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        visited = self.generic_visit(node)
        key = node.arg.value if isinstance(node.arg, nodes.Const) else None
        return self._column(visited, node.node, key) if isinstance(key, str) else visited

    def _column(self, node: nodes.Node, parent: nodes.Expr, key: str) -> nodes.Node:
        """The name that stands for `key` of a column; `node` as it is where the parent is no column."""
        if isinstance(parent, nodes.Filter) and parent.name == _COUNTED:
            assert parent.node is not None
            parent = parent.node
        if not isinstance(parent, nodes.Name) or parent.name in self.own:
            return node
        path = f"{self.dotted.get(parent.name, parent.name)}.{key}"
        name = f"dotted_{path.encode().hex()}"  # Python has no other name with dots in it
        self.dotted[name] = path
        return nodes.Name(name, "load", lineno=node.lineno)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        return self._filtered(node, "join", nodes.List(node.nodes, lineno=node.lineno), [])

    def _filtered(self, node: nodes.Node, name: str, value: nodes.Expr, args: list[nodes.Expr]) -> nodes.Node:
        return super().generic_visit(nodes.Filter(value, name, args, [], None, None, lineno=node.lineno))

    def visit_For(self, node: nodes.For) -> nodes.Node:
        if self.in_loop or node.recursive:
            raise TemplateSyntaxError("a loop may hold no other loop", node.lineno)
        self.in_loop = True
        visited = super().generic_visit(node)
        self.in_loop = False
        return visited

    def visit_Assign(self, node: nodes.Assign) -> nodes.Node:
        self.assignments += 1
        if self.assignments > MOST_ASSIGNMENTS:
            raise TemplateSyntaxError(f"at most {MOST_ASSIGNMENTS} names may be set", node.lineno)
        return super().generic_visit(node)
