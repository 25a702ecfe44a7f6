"""What is to be told about a printed value: copied, doubtful, deduced."""

from __future__ import annotations

from hardpix.report.layout import Column, Row
from hardpix.report.published import Value


def aside(row: Row, column: Column) -> Value:
    """The value printed in parentheses beside the cell's own."""
    return row.facts.get("copied_cells", {}).get(column.id)


def remarks(row: Row, column: Column, value: Value) -> list[str]:
    """One sentence for each reservation about a printed cell."""
    if value is None or column.derived:
        return []
    facts = row.facts
    found = []
    if facts.get("copied") or column.id in facts.get("copied_from_source_paper", ()):
        found.append("copied by the paper from the cited work")
    if aside(row, column) is not None:
        found.append("the authors' own re-run, in parentheses the value of the cited work")
    if facts.get("confidence", "certain") != "certain":
        found.append(f"{facts['confidence']}: {facts['evidence']}")
    if facts.get("suspect"):
        found.append("doubtful as printed")
    if facts.get("note"):
        found.append(str(facts["note"]))
    if log := facts.get("released_log"):
        parts = [f"crop {log['crop']}", f"{log['iterations']} iterations", f"batch {log['total_batch']}"]
        found.append(f"released log: {', '.join(parts)}")
    return found
