"""The schema of configurations: signatures and ranges of public callables, read without importing torch."""

from __future__ import annotations

import ast
import difflib
import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar, get_args

from hardpix.types import ConfigError

ROOT = Path(__file__).resolve().parent.parent.parent


class Signature(NamedTuple):
    names: frozenset[str]  # every keyword that can be given
    required: frozenset[str]  # those without a default
    types: dict[str, str]  # the annotations as they are written, by keyword


@cache
def find_signature(target: str) -> Signature:
    """Signature of ``hardpix.<folder>.<Name>`` (class or function); LookupError where there is none."""
    module, _, name = target.rpartition(".")
    found = _definition(module, name)
    if found is None:
        raise LookupError(f"{module} has no public name {name}")
    home, node = found
    if isinstance(node, ast.FunctionDef):
        return _of_function(node, skip_first=False)
    return _of_class(home, node)


def find_class(target: str) -> Signature:
    """As :func:`find_signature`, of a class; LookupError for a function too."""
    found = _definition(*target.rpartition(".")[::2])
    if found is not None and not isinstance(found[1], ast.ClassDef):
        raise LookupError(f"{target} is a function, and a class is wanted")
    return find_signature(target)


def _source(module: str) -> Path | None:
    base = ROOT.joinpath(*module.split("."))
    for path in (base / "__init__.py", base.with_suffix(".py")):
        if path.is_file():
            return path
    return None


@cache
def _tree(module: str) -> ast.Module | None:
    path = _source(module)
    return ast.parse(path.read_text(encoding="utf-8")) if path else None


def _definition(module: str, name: str) -> tuple[str, ast.ClassDef | ast.FunctionDef] | None:
    """Follow re-exports from ``module`` to the definition of ``name``: (module that holds it, its node)."""
    tree = _tree(module)
    if tree is None:
        return None
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return module, node
        if isinstance(node, ast.ImportFrom) and node.module and f"{node.module}.".startswith("hardpix."):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _definition(node.module, alias.name)
    return None


def _of_class(module: str, node: ast.ClassDef) -> Signature:
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return _of_function(item, skip_first=True)
    if any(_is_dataclass(decorator) for decorator in node.decorator_list):
        return _of_dataclass(node)
    for base in node.bases:
        if isinstance(base, ast.Name) and (found := _definition(module, base.id)):
            home, definition = found
            if isinstance(definition, ast.ClassDef):
                return _of_class(home, definition)
    return Signature(frozenset(), frozenset(), {})


def _of_function(node: ast.FunctionDef, *, skip_first: bool) -> Signature:
    positional = [a.arg for a in (*node.args.posonlyargs, *node.args.args)]
    optional = set(positional[len(positional) - len(node.args.defaults) :]) if node.args.defaults else set()
    optional |= {
        a.arg for a, d in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True) if d is not None
    }
    names = positional[1:] if skip_first else positional
    names += [a.arg for a in node.args.kwonlyargs]
    arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
    types = {a.arg: ast.unparse(a.annotation) for a in arguments if a.annotation is not None}
    return Signature(frozenset(names), frozenset(names) - optional, types)


def _is_dataclass(decorator: ast.expr) -> bool:
    name = decorator.func if isinstance(decorator, ast.Call) else decorator
    return (isinstance(name, ast.Name) and name.id == "dataclass") or (
        isinstance(name, ast.Attribute) and name.attr == "dataclass"
    )


def _of_dataclass(node: ast.ClassDef) -> Signature:
    fields = [
        item for item in node.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    ]
    names = {f.target.id for f in fields}  # type: ignore[union-attr]
    required = {f.target.id for f in fields if f.value is None}  # type: ignore[union-attr]
    types = {f.target.id: ast.unparse(f.annotation) for f in fields}  # type: ignore[union-attr]
    return Signature(frozenset(names), frozenset(required), types)


_WORDS = {"int": "an int", "float": "a float", "bool": "a bool", "str": "a string", "None": "null"}
_LISTS = ("list", "tuple", "Sequence")


@cache
def _members(annotation: str) -> tuple[ast.expr, ...]:
    """The alternatives of a union."""
    waiting, found = [ast.parse(annotation, mode="eval").body], []
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            waiting += [node.right, node.left]
        else:
            found.append(node)
    return tuple(found)


def type_problem(value: object, annotation: str) -> str | None:
    """What a plain value must be, such as ``an int or null``; None where it fits or cannot be judged.

    Judged are unions of int, float, bool, str, None, and of lists and tuples. An int fits a float; a bool or
    a string fits no number.
    """
    words = []
    for member in _members(plain(annotation)):
        word = _word(member)
        if word is None or _fits(value, member):
            return None
        words.append(word)
    return " or ".join(words)


def _word(member: ast.expr) -> str | None:
    text = ast.unparse(member)
    if text in _WORDS:
        return _WORDS[text]
    elements = _elements(member)
    if elements is None:
        return None
    count = "" if elements[-1] == "..." else f"{len(elements)} "
    kinds = {_WORDS[e].split()[-1] + "s" if e in _WORDS else "items" for e in elements if e != "..."}
    return f"a list of {count}{kinds.pop() if len(kinds) == 1 else 'items'}"


def _elements(member: ast.expr) -> tuple[str, ...] | None:
    """Annotations of a list's elements, ending in ``...`` where their number is free; None for no list."""
    if not (isinstance(member, ast.Subscript) and ast.unparse(member.value) in _LISTS):
        return None
    if not isinstance(member.slice, ast.Tuple):
        only = ast.unparse(member.slice)
        return (only,) if ast.unparse(member.value) == "tuple" else (only, "...")
    texts = [ast.unparse(element) for element in member.slice.elts]
    return tuple(texts)


def _fits(value: object, member: ast.expr) -> bool:
    text = ast.unparse(member)
    if text == "None":
        return value is None
    if text in _WORDS:
        fitting = {"int": ("int",), "float": ("int", "float")}.get(text, (text,))
        return type(value).__name__ in fitting
    elements = _elements(member)
    if elements is None or not isinstance(value, list | tuple):
        return False
    if elements[-1] == "...":
        return all(_agrees(item, elements[0]) for item in value)
    return len(value) == len(elements) and all(map(_agrees, value, elements))


def _agrees(value: object, annotation: str) -> bool:
    return type_problem(value, annotation) is None


# Ranges and choices of arguments, written once: in the annotation of the parameter.
#
# ``lr: Positive``, ``thresh: PositiveShare | None``, ``Annotated[float, "[1.01, inf]"]``,
# ``Literal["valid", "all"]``. The configuration is judged by the annotations as they stand in the source,
# before anything is imported; ``checked`` makes a callable judge its own arguments by the same text.


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
            if wanted := range_problem(value, function.__annotations__.get(key, "object")):
                raise ConfigError(f"{owner}: {key}={value}: must be {wanted}")
        return function(*args, **given)

    return judged  # type: ignore[return-value]


def range_problem(value: object, annotation: str) -> str | None:
    """What ``value`` would have to be, such as ``above 0 and at most 1, or null``; None where it fits.

    Judged are annotations of intervals, ``Literal`` and plain types, in unions, lists and mappings.
    """
    node = _parsed(annotation)
    return _member_problem(value, node) if node is not None else None


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


def _range_members(node: ast.expr) -> Iterator[ast.expr]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        yield from _range_members(node.left)
        yield from _range_members(node.right)
    else:
        yield node


def _member_problem(value: object, node: ast.expr) -> str | None:
    wanted: list[str] = []
    for member in _range_members(node):
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
    parts = [
        words for n, item in enumerate(items) if (words := _member_problem(item, nodes[n if fixed else 0]))
    ]
    return f"values, each {parts[0].removeprefix('values, each ')}" if parts else None


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


# The names of timm's models, read from its source text: a wrong one is reported before timm and torch are
# imported.


TIMM_BACKBONE = "hardpix.models.TimmBackbone"
REGISTERED = re.compile(r"^@register_model\s*\ndef (\w+)", re.MULTILINE)


@cache
def timm_names() -> frozenset[str]:
    """What ``timm.list_models()`` gives; empty where timm is not installed."""
    found = find_spec("timm")
    folders = (found.submodule_search_locations if found else None) or ()
    files = (path for folder in folders for path in Path(folder, "models").rglob("*.py"))
    return frozenset(name for path in files for name in REGISTERED.findall(path.read_text(encoding="utf-8")))


def name_problem(name: object) -> str | None:
    """What is wrong with ``backbone.name``, with the nearest names there are; None for a model of timm's.

    A tag of weights (``resnet50.a1_in1k``) is not judged.
    """
    base, known = str(name).partition(".")[0], timm_names()
    if not known or base in known or not re.fullmatch(r"[\w.-]+", str(name)):
        return None  # the backbone refuses the last, with what they would have loaded
    near = difflib.get_close_matches(base, sorted(known), n=3, cutoff=0.4)
    return "timm has no such model" + (f"; nearest: {', '.join(near)}" if near else "")
