"""The choices of a group of ``conf/``, for tests that walk all of them: a new file is tested without being named."""

from collections.abc import Collection

from hardpix.config.catalog import entries


def listed(group: str, without: Collection[str] = ()) -> list[str]:
    """Names of the files of ``conf/GROUP``; all of ``without`` must be among them, so that no exception outlives it."""
    names = [entry.name for entry in entries(group)]
    assert set(without) <= set(names), f"conf/{group} has no {sorted(set(without) - set(names))}"
    return [name for name in names if name not in without]
