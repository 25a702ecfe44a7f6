"""A value of the configuration, held against its annotation: type, range, what float32 holds, texts of numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from hardpix.ranges import outside
from hardpix.run.signatures import expected

# Of float32: from the first on a number is infinite, below the second it is 0.
LARGEST, SMALLEST = 3.4028235677973366e38, 1.401298464324817e-45
WHOLE = 2**63 - 1
NUMBER = r"[-+]?(\d[\d_]*\.?\d*|\.\d+)(e[-+]?\d+)?|[-+]?inf|nan"
WORD = "true|false|null"


def value_problem(
    node: DictConfig, key: str, path: str, annotation: str, *, typed: bool = True
) -> str | None:
    """What is wrong with the value of ``key``, one sentence that begins with ``path``; None if nothing is.

    Not ``typed``: the plain types of the annotation are judged elsewhere.
    """
    value = resolved(node[key])
    wanted = (expected(value, annotation) if typed else None) or outside(value, annotation)
    if wanted := wanted or _meant(value, annotation):
        return f"{path}={value}: must be {wanted}{text_hint(node, key, path)}"
    why = _unusable(value, annotation)
    return f"{path}={value}: {why}" if why else None


def text_hint(node: DictConfig, key: str, path: str) -> str:
    """What to type where the value of ``key`` is, or holds, a text that reads as a number; empty where none does."""
    raw = OmegaConf.to_container(node, resolve=False)[key]  # type: ignore[index, call-overload]
    for place, text, source in _texts(path, resolved(node[key]), raw):
        if not re.fullmatch(rf"({NUMBER}|{WORD})", text, re.IGNORECASE):
            continue
        if "${" not in str(source):
            return f"; {text!r} is a text: write {place}{text} without quotes"
        if "oc.decode:" in source:
            return f"; {text!r} is a text: take out the quotes that {source} gives"
        decoded = f"${{oc.decode:{source}}}"
        written = f"'{place}\"{decoded}\"'" if place else f'"{decoded}"'
        return f"; {text!r} is a text, as every environment variable is: write {written}"
    return ""


def resolved(value: Any) -> Any:
    """A value with its interpolations resolved, lists and mappings as Python's own."""
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _texts(path: str, value: Any, raw: Any) -> Iterator[tuple[str, str, Any]]:
    """(``path=``, text, as it was written) of all texts in a value; an element of a list has no path of its own."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts(f"{path}.{key}", inner, raw[key] if isinstance(raw, Mapping) else raw)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            for _, text, source in _texts(path, inner, raw[index] if isinstance(raw, list) else raw):
                yield "", text, source
    elif isinstance(value, str):
        yield f"{path}=", value, raw


def _meant(value: Any, annotation: str) -> str | None:
    """What is wanted besides a text, where a text reads as just that: a share where a share or a file is named."""
    kinds = [kind.strip() for kind in annotation.split("|")]
    others = " | ".join(kind for kind in kinds if kind != "str")
    if not isinstance(value, str) or "str" not in kinds or not others or expected(object(), others) is None:
        return None
    if re.fullmatch("true|false", value, re.IGNORECASE):
        read: Any = True
    elif re.fullmatch(NUMBER, value, re.IGNORECASE):
        read = int(value) if re.fullmatch(r"[-+]?\d+", value) else float(value)
    else:
        return None
    return None if expected(read, others) or outside(read, others) else expected(value, others)


def _unusable(value: Any, annotation: str) -> str | None:
    """Why a value within its range cannot be computed with. Objects of their own in it are judged by themselves."""
    if isinstance(value, Mapping):
        value = [] if "_target_" in value else list(value.values())
    if isinstance(value, list):
        return next((why for item in value if (why := _unusable(item, annotation))), None)
    if isinstance(value, int):
        return f"must be at most {WHOLE} in size" if abs(value) > WHOLE else None
    if not isinstance(value, float) or (math.isinf(value) and "inf]" in annotation):
        return None
    if not math.isfinite(value):
        return "must be a finite number"
    if abs(value) >= LARGEST:
        return f"is infinite in float32, in which networks train; must be below {LARGEST:.3g}"
    if 0 < abs(value) < SMALLEST:
        return f"is 0 in float32, in which networks train; must be 0, or at least {SMALLEST:.3g}"
    return None
