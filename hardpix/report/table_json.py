"""Tables as JSON, for programs: full precision, fractions as fractions, ``null`` where there is no number.

``schema`` grows by one when a key changes its meaning or goes; further keys may come without. Of both kinds:
``notes`` (sentences below the table), and in each cell ``mean``, ``std``, ``n``, ``states`` (seeds without a value)
and, where asked for, ``test`` with ``delta``, ``low``, ``high``, ``p``, ``label`` (of an interval over images
alone), ``seeds``, ``images`` and ``why`` (without images). A column's ``unit`` says what its numbers are:
``fraction``, ``ratio``, ``percent``, or nothing where its metric says it.
"""

from __future__ import annotations

import json
import math
from typing import Any

from hardpix.report.collect import Run
from hardpix.report.columns import is_fraction, title
from hardpix.report.lacks import reason
from hardpix.report.significance import PairedTest
from hardpix.report.table import Cell, Row, Table

SCHEMA = 2


def of_runs(table: Table) -> str:
    """``kind: runs``. Rows have ``labels`` by factor, ``runs``, ``protocol``, ``lacking`` and ``cells``.

    ``lacking`` also has the values that tell little: state ``uneven``, a time per step whose steps spread widely.
    """
    from hardpix.report.render import best_rows

    best = [best_rows(table, i) for i in range(len(table.columns))]
    columns = [
        {
            "metric": column.metric,
            "kind": column.kind,
            "title": title(column),
            "unit": "ratio" if column.kind == "ratio" else "fraction" if is_fraction(column.metric) else "",
        }
        for column in table.columns
    ]
    return dumped(
        {
            "schema": SCHEMA,
            "kind": "runs",
            "factors": list(table.factors),
            "reference": table.reference or None,
            "against": table.against or None,
            "columns": columns,
            "rows": [_row(table, row, [r in own for own in best]) for r, row in enumerate(table.rows)],
            "notes": list(table.notes),
        }
    )


def _row(table: Table, row: Row, best: list[bool]) -> dict[str, Any]:
    cells = []
    for column, made, leads in zip(table.columns, row.cells, best, strict=True):
        values = {run.record.seed: run.record.metrics.get(column.metric) for run in row.runs}
        own = (
            {"values": {str(seed): value for seed, value in values.items()}} if column.kind == "value" else {}
        )
        cells.append({"metric": column.metric, "kind": column.kind, **cell(made), "best": leads, **own})
    return {
        "labels": dict(zip(table.factors, row.labels, strict=True)),
        "n": row.n,
        "protocol": row.protocol or None,
        "runs": list(map(run_entry, row.runs)),
        "lacking": [
            {
                "state": lack.state,
                "seeds": list(lack.seeds),
                "metric": lack.metric or None,
                "note": lack.words,
                "commands": list(lack.commands),
            }
            for lack in row.lacks
        ],
        "cells": cells,
    }


def cell(made: Cell) -> dict[str, Any]:
    own = {"mean": made.mean, "std": made.std, "n": made.n, "total": made.total, "states": dict(made.states)}
    return own if made.test is None else own | {"test": tested(made.test)}


def tested(test: PairedTest) -> dict[str, Any]:
    return {
        "delta": test.delta,
        "low": test.low,
        "high": test.high,
        "p": test.p,
        "label": test.label or None,
        "seeds": list(test.seeds),
        "images": test.images,
        "why": test.why or None,
    }


def run_entry(run: Run) -> dict[str, Any]:
    own = run.record
    told = None if own.status == "done" else reason(run)
    return {
        "directory": run.directory,
        "run_id": own.run_id,
        "seed": own.seed,
        "status": own.outcome,
        "reason": told,
    }


def dumped(content: dict[str, Any]) -> str:
    return json.dumps(_finite(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value
