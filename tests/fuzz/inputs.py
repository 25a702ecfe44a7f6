"""Inputs for a reader: whole files that are right but for something, and files that are nothing at all."""

# ruff: noqa: E501 -- tables

import copy
import json

import yaml
from hypothesis import strategies as st

ODD = (
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**30, 10**400, 1.5, float("nan"), float("inf"), -0.0, "",
    "x", ".", "..", "../../x", "/x", "a\\b", "C:x", "a\0b", "é\n", "\ud800", "?" * 5000, "${x}", "${oc.env:HOME}",
    "${a.b.c}", "???", "_target_", "os.system", "last", "[]", "{}", [], {}, [[]], [None], {"_target_": "os.system"},
    {"": ""},
)  # fmt: skip
odd = st.one_of(
    st.sampled_from(ODD),
    st.text(max_size=12),
    st.integers(),
    st.floats(),
    st.recursive(
        st.sampled_from(ODD),
        lambda s: st.lists(s, max_size=3) | st.dictionaries(st.text(max_size=5), s, max_size=3),
        max_leaves=6,
    ),
).map(copy.deepcopy)
CUTS = (b"", b"\0", b"\n", b"\r", b",", b'"', b"'", b"{", b"}", b"[", b"[" * 20_000, b"]", b":", b"-", b"9" * 5000, b"\xff\xfe", b"\xef\xbb\xbf",
        b"&a [*a]", b"!!python/object/apply:os.system ['x']", b"*a", b"1e999", b"NaN", b"\xed\xa0\x80", b"%", b"a: &a [x,x]\nb: &b [*a,*a]\n")  # fmt: skip


@st.composite
def damaged(draw, seeds):
    """One of ``seeds`` (bytes) with up to four places cut, filled or turned, or bytes of no meaning."""
    if draw(st.integers(0, 19)) == 0:
        return draw(st.binary(max_size=200))
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        kind = draw(st.integers(0, 4))
        if kind == 0:
            del data[at:]
        elif kind == 1 and data:
            data[at % len(data)] ^= 1 << draw(st.integers(0, 7))
        elif kind == 2:
            data[at : at + draw(st.integers(0, 20))] = draw(st.sampled_from(CUTS) | st.binary(max_size=8))
        elif kind == 3:
            end = draw(st.integers(at, min(len(data), at + 60)))
            data[at:at] = data[at:end]
        else:
            data[at : at + draw(st.integers(1, 40))] = b""
    return bytes(data)


@st.composite
def changed(draw, tree):
    """``tree`` (JSON) with up to three of its nodes replaced, removed or added to."""
    tree = json.loads(json.dumps(tree))
    for _ in range(draw(st.integers(1, 3))):
        node, holder, key = tree, None, None
        while isinstance(node, dict | list) and node and (holder is None or draw(st.integers(0, 3))):
            key = draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
            holder, node = node, node[key]
        if holder is None:
            return draw(odd)
        kind = draw(st.integers(0, 4))
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[draw(st.text(max_size=6) | st.sampled_from(["_target_", "trusted", "id", "1", ""]))] = (
                draw(odd)
            )
        elif kind == 2 and isinstance(holder, list):
            holder.insert(key, draw(odd))
        else:
            holder[key] = draw(odd)
    return tree


def as_json(tree):
    """A JSON file like ``tree``: other values in it, or other bytes."""
    text = json.dumps(tree).encode()
    return st.one_of(
        changed(tree).map(lambda t: json.dumps(t, default=str).encode("utf-8", "surrogatepass")),
        damaged([text]),
    )


def _dumped(tree):
    try:
        return yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass")
    except (yaml.YAMLError, ValueError):
        return b"{}"


def as_yaml(tree):
    return st.one_of(changed(tree).map(_dumped), damaged([yaml.safe_dump(tree).encode()]))
