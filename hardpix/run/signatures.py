"""Signatures of hardpix's public callables, read from source text: no import, so no torch."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent


class Signature(NamedTuple):
    names: frozenset[str]  # every keyword that can be given
    required: frozenset[str]  # those without a default


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
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("hardpix"):
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
    return Signature(frozenset(), frozenset())


def _of_function(node: ast.FunctionDef, *, skip_first: bool) -> Signature:
    positional = [a.arg for a in (*node.args.posonlyargs, *node.args.args)]
    optional = set(positional[len(positional) - len(node.args.defaults) :]) if node.args.defaults else set()
    optional |= {
        a.arg for a, d in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True) if d is not None
    }
    names = positional[1:] if skip_first else positional
    names += [a.arg for a in node.args.kwonlyargs]
    return Signature(frozenset(names), frozenset(names) - optional)


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
    return Signature(frozenset(names), frozenset(required))
