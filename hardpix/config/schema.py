"""Signatures of hardpix's public callables, read from source text: no import, so no torch."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import NamedTuple

from hardpix.ranges import plain

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


def expected(value: object, annotation: str) -> str | None:
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
    return expected(value, annotation) is None
