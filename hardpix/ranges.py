"""Ranges and choices of arguments, written once: in the annotation of the parameter.

``lr: Positive``, ``thresh: PositiveShare | None``, ``Annotated[float, "[1.01, inf]"]``, ``Literal["valid", "all"]``.
The configuration is judged by the annotations as they stand in the source, before anything is imported; ``checked``
makes a callable judge its own arguments by the same text.
"""

from __future__ import annotations

import ast
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, TypeVar, get_args

from hardpix.types import ConfigError

# Intervals as in mathematics: a square bracket includes the end, a round one does not. No NaN is within any.
Count = Annotated[int, "[1, inf)"]
Whole = Annotated[int, "[0, inf)"]
Seed = Annotated[int, "[0, 4294967295]"]  # what NumPy's generator takes
Positive = Annotated[float, "(0, inf)"]
NonNegative = Annotated[float, "[0, inf)"]
Share = Annotated[float, "[0, 1]"]
PositiveShare = Annotated[float, "(0, 1]"]
ShareBelowOne = Annotated[float, "[0, 1)"]
LabelValue = Annotated[int, "[0, 65535]"]  # what a label file of 16 bits can hold
InnerShare = Annotated[float, "(0, 1)"]

NAMED: dict[str, tuple[str, str]] = {
    name: (get_args(value)[0].__name__, get_args(value)[1])
    for name, value in dict(globals()).items()
    if name[0].isupper() and get_args(value)[1:]
}
LISTS = ("list", "tuple", "Sequence")
MAPPINGS = ("dict", "Mapping")
TYPES = {"bool": bool, "int": int, "float": int | float, "str": str, "None": None}

F = TypeVar("F", bound=Callable[..., Any])


def checked(function: F) -> F:
    """Refuse arguments outside the ranges and choices of their annotations: ``ConfigError``."""
    names = tuple(inspect.signature(function).parameters)
    owner = function.__qualname__.removesuffix(".__init__").rpartition(".")[2]

    @functools.wraps(function)
    def judged(*args: Any, **given: Any) -> Any:
        for key, value in (*zip(names, args, strict=False), *given.items()):
            if wanted := outside(value, function.__annotations__.get(key, "object")):
                raise ConfigError(f"{owner}: {key}={value}: must be {wanted}")
        return function(*args, **given)

    return judged  # type: ignore[return-value]


def outside(value: object, annotation: str) -> str | None:
    """What ``value`` would have to be, such as ``above 0 and at most 1, or null``; None where it fits.

    Judged are annotations of intervals, ``Literal`` and plain types, in unions, lists and mappings.
    """
    node = _parsed(annotation)
    return _outside(value, node) if node is not None else None


def plain(annotation: str) -> str:
    """The annotation without intervals: the types alone."""
    return ast.unparse(_Plain().visit(ast.parse(annotation, mode="eval").body))


class _Plain(ast.NodeTransformer):
    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Name(NAMED[node.id][0]) if node.id in NAMED else node

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        if ast.unparse(node.value) == "Annotated" and isinstance(node.slice, ast.Tuple):
            return node.slice.elts[0]
        return self.generic_visit(node)


@functools.cache
def _parsed(annotation: str) -> ast.expr | None:
    """None where nothing is said but types."""
    node = ast.parse(annotation, mode="eval").body
    said = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} & {*NAMED, "Annotated", "Literal"}
    return node if said else None


def _members(node: ast.expr) -> Iterator[ast.expr]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        yield from _members(node.left)
        yield from _members(node.right)
    else:
        yield node


def _outside(value: object, node: ast.expr) -> str | None:
    wanted: list[str] = []
    for member in _members(node):
        words = _refusal(value, member)
        if words is None:
            return None
        wanted += [words] if words else []
    named = [words for words in wanted if words != "null"]
    return ", or ".join([*dict.fromkeys(named), *(["null"] if "null" in wanted else [])])


def _refusal(value: object, member: ast.expr) -> str | None:
    """None where the member of a union takes the value, else what it would take."""
    text = ast.unparse(member)
    if interval := _interval(member):
        return _beyond(value, *interval)
    if text in TYPES:
        kind = TYPES[text]
        fits = value is None if kind is None else isinstance(value, kind)
        return None if fits else "null" if kind is None else "a string" if text == "str" else f"a {text}"
    if not isinstance(member, ast.Subscript):
        return None
    kind_name, inner = ast.unparse(member.value), member.slice
    if kind_name == "Literal":
        return _unlisted(value, ast.literal_eval(inner))
    if kind_name in MAPPINGS and isinstance(inner, ast.Tuple):
        items, nodes = (list(value.values()) if isinstance(value, Mapping) else None), inner.elts[1:]
    elif kind_name in LISTS:
        items = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else None
        nodes = inner.elts if isinstance(inner, ast.Tuple) else [inner]
    else:
        return None
    if items is None:
        return "a list" if kind_name in LISTS else "a mapping"
    fixed = kind_name == "tuple" and ast.unparse(nodes[-1]) != "..."
    if fixed and len(items) != len(nodes):
        return f"{len(nodes)} values"
    told = [words for n, item in enumerate(items) if (words := _outside(item, nodes[n if fixed else 0]))]
    return f"values, each {told[0].removeprefix('values, each ')}" if told else None


def _interval(member: ast.expr) -> tuple[str, str] | None:
    """``(type, interval)`` of a named or a written-out one."""
    if isinstance(member, ast.Name):
        return NAMED.get(member.id)
    if isinstance(member, ast.Subscript) and ast.unparse(member.value) == "Annotated":
        kind, interval = member.slice.elts  # type: ignore[attr-defined]
        return ast.unparse(kind), ast.literal_eval(interval)
    return None


def _beyond(value: object, kind: str, interval: str) -> str | None:
    low, high = (float(end) for end in interval[1:-1].split(","))
    number = isinstance(value, int if kind == "int" else int | float) and not isinstance(value, bool)
    if number:
        above = value >= low if interval[0] == "[" else value > low  # type: ignore[operator]
        below = value <= high if interval[-1] == "]" else value < high  # type: ignore[operator]
        if above and below:
            return None
    kindly = "an int, " if kind == "int" and not isinstance(value, int) else ""
    least = f"at least {low:.10g}" if interval[0] == "[" else f"above {low:.10g}"
    most = f"at most {high:.10g}" if interval[-1] == "]" else f"below {high:.10g}"
    if high == float("inf"):
        return f"{kindly}{least}{' and finite' if value == high else ''}"
    return f"{kindly}{least} and {most}"


def _unlisted(value: object, listed: Any) -> str | None:
    choices = listed if isinstance(listed, tuple) else (listed,)
    if any(type(value) is type(choice) and value == choice for choice in choices):
        return None
    return " or ".join(dict.fromkeys(str(choice).lower() for choice in choices))
