"""One input for one reader, judged; and many of them."""

import contextlib
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from hardpix.types import HardpixError
from tests.fuzz.parsers import PARSERS

SECONDS, MEGABYTES = 1.0, 200.0


def forget_peak():
    """Let the system measure the most memory of this process anew, where it can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak():
    """The most memory of this process, in MB, since :func:`forget_peak` (elsewhere than on Linux: ever)."""
    try:
        line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) / 1e3
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def violation(name, content, folder):
    """What ``content`` does that it must not: raise anything but a sentence with the file's name, be slow or large."""
    parser = PARSERS[name]
    path = Path(folder) / parser.name
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        (parser.write or Path.write_bytes)(path, content)
    except (ValueError, OSError, UnicodeError):  # no such archive can be made
        return None
    forget_peak()
    before, begin = peak(), time.process_time()
    try:
        parser.read(path)
    except HardpixError as error:
        text = str(error)
        if parser.tells and ("\n" in text or str(path) not in text):
            return f"the sentence does not name the file on one line: {text!r}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if time.process_time() - begin > SECONDS:
        return f"{time.process_time() - begin:.1f} s"
    if peak() - before > MEGABYTES:
        return f"{peak() - before:.0f} MB"
    return None


def fuzz(name, examples, number):
    """(inputs tried, the violation found first and its input, or None)."""
    tried, found = 0, None

    @seed(number)
    @settings(
        max_examples=max(1, examples), deadline=None, database=None, suppress_health_check=list(HealthCheck),
        phases=(Phase.generate,), report_multiple_bugs=False,
    )  # fmt: skip
    @given(st.data())
    def search(data):
        nonlocal tried, found
        content = data.draw(PARSERS[name].inputs)
        if found:
            return
        folder = tempfile.mkdtemp()
        try:
            tried += 1
            if wrong := violation(name, content, folder):
                found = wrong, content
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    search()
    return tried, found
