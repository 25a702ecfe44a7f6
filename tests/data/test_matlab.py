"""MATLAB v5 files: what is in them, and damaged ones, which end scipy's reader but not the program."""

import os

import numpy as np
import pytest

from hardpix.data import matlab
from hardpix.data.matlab import read_variable
from hardpix.types import DataError

savemat = pytest.importorskip("scipy.io").savemat
CRASHES = (184, 101)  # the kind of its numbers: none that there is


@pytest.fixture
def written(tmp_path):
    def write(at=None, value=0):
        path = tmp_path / f"{at}-{value}.mat"
        savemat(path, {"depths": np.arange(12.0).reshape(3, 4), "names": np.array(["a", "bc"], dtype=object)})
        if at is not None:
            content = bytearray(path.read_bytes())
            content[at] = value
            path.write_bytes(content)
        return path

    return write


def test_the_first_variable_that_is_there(written):
    path = written()
    assert np.array_equal(read_variable(path, "labels", "depths"), np.arange(12.0).reshape(3, 4))
    assert [str(cell[0]) for cell in read_variable(path, "names").flat] == ["a", "bc"]
    with pytest.raises(DataError, match="variable labels is missing"):
        read_variable(path, "labels")


def test_a_file_that_ends_its_reader_is_told_and_the_next_one_is_read(written, tmp_path):
    whole, damaged = written(), written(*CRASHES)
    for _ in range(2):
        with pytest.raises(
            DataError, match=rf"{damaged}: not readable as a MATLAB v5 file .damaged"
        ) as error:
            read_variable(damaged, "depths")
        assert "\n" not in str(error.value)
        assert read_variable(whole, "depths").shape == (3, 4)
    (tmp_path / "a.mat").write_bytes(b"no such thing")
    with pytest.raises(DataError, match=r"a\.mat: not readable"):
        read_variable(tmp_path / "a.mat", "depths")
    with pytest.raises(DataError, match="no such file"):
        read_variable(tmp_path / "none.mat", "depths")


def test_one_reader_serves_many_files_and_a_forked_process_has_its_own(written):
    path = written()
    read_variable(path, "depths")
    reader = matlab._reader
    read_variable(path, "depths")
    assert matlab._reader == reader
    pid = os.fork()
    if pid == 0:
        fine = read_variable(path, "depths").shape == (3, 4) and matlab._reader[1].pid != reader[1].pid
        matlab._reader[1].kill()
        os._exit(0 if fine else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert read_variable(path, "depths").shape == (3, 4)
    assert matlab._reader == reader
