"""What must be told below a table about its tests: how they were made, on what, and what they do not say."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from hardpix.report.significance import LEVEL, SEEDS, Options, PairedTest

Key = TypeVar("Key")


def about(
    tests: Iterable[tuple[str, PairedTest]], against: str, seeds: Sequence[int], options: Options
) -> list[str]:
    """``tests``: with the labels of their rows. ``seeds``: all of the table."""
    tests = list(tests)
    made = [test for _, test in tests if test.seeds]
    if not made:
        return (
            [f"Nothing can be tested against {against}: no seed is finished on both sides."] if tests else []
        )
    notes = [_how(made, against, options)]
    counts = sorted({len(test.seeds) for test in made})
    if counts[0] < SEEDS:
        few = " or ".join(str(count) for count in counts if count < SEEDS)
        notes.append(
            f"With {few} seed{'' if few == '1' else 's'} the interval is about the sample of images alone and says "
            f"nothing of how training varies; p needs {SEEDS} seeds on both sides."
        )
    for why, labels in _collected(
        (test.why, label) for label, test in tests if test.seeds and test.why
    ).items():
        notes.append(f"{'; '.join(labels)}: without images, because {why}.")
    lacking = ((tuple(s for s in seeds if s not in test.seeds), label) for label, test in tests if test.seeds)
    for left, labels in _collected(pair for pair in lacking if pair[0]).items():
        named = f"seed{'s' if len(left) > 1 else ''} {', '.join(map(str, left))}"
        notes.append(f"{'; '.join(labels)}: {named} left out of the test, without a value on one side.")
    return notes


def _how(made: Sequence[PairedTest], against: str, options: Options) -> str:
    with_images = sorted({test.images for test in made if test.images})
    count = f"{options.resamples:,}"
    parts = []
    if with_images:
        parts.append(
            f"in brackets the {LEVEL} % interval of {count} paired bootstrap samples of the "
            f"{' or '.join(map(str, with_images))} images"
            + (
                ", with Student's t for the seeds, and p from the same samples (below 0.05 where the interval "
                "excludes 0)"
                if any(test.images and test.p == test.p for test in made)
                else ""
            )
        )
    if any(not test.images for test in made):
        parts.append(
            f"{'where images cannot be paired, ' if with_images else ''}Student's t over seeds alone"
        )
    return (
        f"Δ [{LEVEL} %], p: difference from {against}; {'; '.join(parts)}. Random numbers from {options.seed}; "
        f"p is not corrected for {len(made)} comparison{'s' if len(made) > 1 else ''}."
    )


def _collected(pairs: Iterable[tuple[Key, str]]) -> dict[Key, list[str]]:
    found: dict[Key, list[str]] = {}
    for key, label in pairs:
        if label not in found.setdefault(key, []):
            found[key].append(label)
    return found
