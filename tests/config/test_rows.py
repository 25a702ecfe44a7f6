"""Published rows: each composes to what its experiment file once did, and its commands fill its cells."""

import functools
import hashlib
import json
import re
import shlex
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from hardpix.config import published
from hardpix.config import rows as reader
from hardpix.config.catalog import conf_dir
from hardpix.config.compose import compose, validate
from hardpix.config.published import layout
from hardpix.config.rows import commands, fill, papers, row, row_of, rows, rows_of
from hardpix.evaluate import override
from hardpix.types import ConfigError, HardpixError

# sha256 of the composed configuration without `reproduces`, of the 213 files that the rows replaced, and of the demo.
GOLDEN = json.loads((Path(__file__).parents[1] / "fixtures/rows.json").read_text())
EVERY = [one for paper in papers() for one in rows(paper).values()]
TABLES = [layout(table, conf_dir() / "table") for paper in papers() for table in published.tables(paper)]


@functools.cache
def composed(full_name):
    one = row(full_name)
    if one.evaluate:
        return override(composed(f"{one.paper}/{one.evaluate}").copy(), list(one.overrides))
    return compose(one.fixed)


def fingerprint(cfg):
    content = OmegaConf.to_container(cfg, resolve=False)
    content.pop("reproduces")
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def test_no_row_is_lost_and_the_demo_is_what_it_was():
    assert set(GOLDEN) - {one.full_name for one in EVERY} == {"demo"}
    assert len(GOLDEN) == 214
    assert fingerprint(compose(["experiment=demo"])) == GOLDEN["demo"]


@pytest.mark.parametrize("name", sorted(set(GOLDEN) - {"demo"}))
def test_a_row_composes_to_what_its_file_did(name):
    cfg = composed(name)
    assert fingerprint(cfg) == GOLDEN[name]
    validate(cfg)
