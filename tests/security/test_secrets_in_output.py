"""What libraries print and errors say reaches no file with a secret in it, however it was printed."""

import os
import signal
import subprocess
import sys
import time

import pytest

from hardpix import secrets
from hardpix.cli import main
from hardpix.train import machine
from tests.conftest import TINY
from tests.security.test_secrets import (
    CANARIES,
    canaries,  # noqa: F401
    leaks,
)

TOKEN = CANARIES["HF_TOKEN"]


def passed(*pieces):
    lines = secrets.Lines()
    return b"".join([lines.put(piece) for piece in pieces] + [lines.rest()])


def test_a_line_cut_anywhere_is_masked(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    line = f"said {TOKEN} to https://me:hunter22@host/x\n".encode()
    for cut in range(len(line) + 1):
        assert passed(line[:cut], line[cut:]) == b"said *** to https://me:***@host/x\n"
    assert passed(*(bytes([one]) for one in line)) == b"said *** to https://me:***@host/x\n"
    assert passed(b"step 1\rstep 2\rhalf") == b"step 1\rstep 2\rhalf"
    assert (
        passed(b"\xff\xfe\0 \xc3", b"\xa9\n") == b"\xff\xfe\0 \xc3\xa9\n"
    )  # whatever is no text stays as it is


def test_whole_lines_do_not_wait():
    lines = secrets.Lines()
    assert lines.put(b"a\nb\rc") == b"a\nb\r"
    assert lines.rest() == b"c"


def test_a_line_without_end_is_not_held_for_ever(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(secrets, "LONGEST_LINE", 10_000)
    lines, out, fed = secrets.Lines(), b"", b""
    for _ in range(200):
        fed += (piece := b"x" * 333 + TOKEN.encode())
        for start in range(0, len(piece), 50):
            out += lines.put(piece[start : start + 50])
        assert len(fed) - len(out) < 50_000
    assert len(out) > 20_000
    assert out + lines.rest() == fed.replace(TOKEN.encode(), b"***")


def test_long_lines_take_no_long_time(monkeypatch):
    begin = time.process_time()
    passed(b"a" * 300_000 + b"\n")
    passed(b"x://" * 75_000 + b"\n")
    assert time.process_time() - begin < 5  # where each sign began a search to the end it would be minutes


def test_forms_in_which_a_secret_is_printed(monkeypatch):
    monkeypatch.setenv("ODD_PASSWORD", 'a"b\\c/d e+fgh')
    monkeypatch.setenv("SSH_KEY", "-----BEGIN KEY-----\nabcdefghijklmn\nopqrstuvwxyz\n")
    for text in (
        'a"b\\c/d e+fgh',
        'a"b\\\\c/d e+fgh',
        'a\\"b\\\\c/d e+fgh',
        "a%22b%5Cc/d%20e%2Bfgh",
        "a%22b%5Cc%2Fd%20e%2Bfgh",
    ):
        assert secrets.masked(f"<{text}>") == "<***>", text
    assert secrets.masked("one abcdefghijklmn\ntwo opqrstuvwxyz") == "one ***\ntwo ***"


def test_passwords_of_a_netrc(monkeypatch, tmp_path):
    path = tmp_path / "netrc"
    path.write_text('machine a login me password first-password\nmachine b\n login x\n password "second pass word"\n'
                    "machine c login y password short\n")  # fmt: skip
    path.chmod(0o644)  # which Python's own reader refuses, other libraries not
    monkeypatch.setenv("NETRC", str(path))
    assert secrets.masked("first-password, second pass word, short") == "***, ***, short"
    told = secrets.problems({"study": "x-first-password"})
    assert len(told) == 1
    assert f"holds the value of password 1 of {path}" in told[0]
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    assert secrets.masked("first-password") == "first-password"


PRINTS = """
import logging, os, signal, subprocess, sys
from pathlib import Path
from hardpix.train import machine as console
token, path, how = os.environ["HF_TOKEN"], Path(sys.argv[1]), sys.argv[2]
def speak():
    print("print", token)
    sys.stdout.write("half " + token[:9]); sys.stdout.flush(); sys.stdout.write(token[9:] + "\\n")
    print("error", token, file=sys.stderr)
    logging.basicConfig(); logging.error("log %s", token)
    sys.stdout.flush()
    os.write(2, b"direct " + token[:4].encode()); os.write(2, token[4:].encode() + b"\\n")
    subprocess.run(["sh", "-c", "echo child $HF_TOKEN"])
    print("no end", token, end="", flush=True)
if how == "file":
    with console.output_to_file(path):
        speak()
    print("after")
elif how == "killed":
    with console.output_to_file(path):
        speak()
        os.kill(os.getpid(), signal.SIGKILL)
elif how == "lingering":
    with console.output_to_file(path):
        child = subprocess.Popen(["sh", "-c", "read x; echo late $HF_TOKEN"], stdin=subprocess.PIPE)
        speak()
    assert "no end" in path.read_text()
    child.communicate(b"go\\n")
else:
    with console.masked_output():
        [one.send_signal(signal.SIGUSR1) for one in console._started_filters if how == "signal"]
        speak()
    print("after")
"""
SPOKEN = ["print ***", "half ***", "error ***", "ERROR:root:log ***", "direct ***", "child ***", "no end ***"]


def printed(tmp_path, how):
    path = tmp_path / "output.log"
    code = (
        "import signal; signal.signal(signal.SIGUSR1, lambda *_: None)" if how == "signal" else ""
    ) + PRINTS
    done = subprocess.run([sys.executable, "-c", code, str(path), how], capture_output=True, text=True,
                          env=os.environ | {"HF_TOKEN": TOKEN}, start_new_session=True)  # fmt: skip
    machine.wait_for_output(path)
    return done, path.read_text() if path.exists() else ""


@pytest.mark.parametrize("how", ["file", "killed", "lingering"])
def test_a_file_has_every_word_and_no_secret(tmp_path, how):
    """Also the last words of a process that is killed, and what a child says after the end."""
    done, text = printed(tmp_path, how)
    assert done.returncode == (-signal.SIGKILL if how == "killed" else 0), done.stderr
    assert sorted(text.splitlines()) == sorted(
        [*SPOKEN[:-1], "no end ***late ***" if how == "lingering" else "no end ***"]
    )
    assert done.stdout.split() == (["after"] if how == "file" else [])


@pytest.mark.parametrize("how", ["streams", "signal"])
def test_the_streams_of_a_job_stay_two(tmp_path, how):
    """A cluster's signals to all processes of the job do not end what stands between."""
    done, _ = printed(tmp_path, how)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stderr.splitlines()) == sorted(["error ***", "ERROR:root:log ***", "direct ***"])
    assert done.stdout.splitlines() == ["print ***", "half ***", "child ***", "no end ***after"]


def test_an_error_that_another_program_would_write_down(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(machine.MaskedError) as error, machine.masked_errors():
        raise RuntimeError(f"no {TOKEN}")
    assert "RuntimeError: no ***" in str(error.value)
    assert error.value.__suppress_context__
    with pytest.raises(KeyError), machine.masked_errors():
        raise KeyError("x")


LEAKY = """
import logging, os, sys
from hardpix.methods import Baseline
class Leaky(Baseline):
    def training_step(self, *given):
        for value in map(os.environ.get, ("HF_TOKEN", "WANDB_API_KEY", "DB_PASSWORD")):
            print("print", value)
            sys.stdout.write("half " + value[:9]); sys.stdout.flush(); sys.stdout.write(value[9:] + "\\n")
            print("error", value, file=sys.stderr, flush=True)
            logging.getLogger("leaky").error("log %s", value)
            os.system("echo child $HF_TOKEN >&2")
        print("netrc-canary-password", flush=True)
        raise RuntimeError(f"no {value} " + os.environ["HF_TOKEN"] + "\\nnetrc-canary-password")
"""


@pytest.fixture
def leaky(canaries, tmp_path, monkeypatch):  # noqa: F811
    """Words of a study whose two jobs print and raise every secret, and the secrets."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/leaky.py").write_text(LEAKY)
    monkeypatch.syspath_prepend(tmp_path / "lib")
    words = ["method._target_=leaky.Leaky", "trusted=[leaky]", "seed=0,1", f"runs_dir={tmp_path}/runs"]
    return [*TINY, *words, "logger=default"], canaries


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher", [[], ["hydra/launcher=pool", "hydra.launcher.workers=2"]], ids=["basic", "pool"]
)
def test_a_study_that_prints_and_raises_them(leaky, tmp_path, launcher):
    words, values = leaky
    assert main(["sweep", *words, *launcher]) == 1
    assert len(list(tmp_path.glob("runs/**/error.txt"))) == 2
    logs = [path.read_text() for path in tmp_path.glob("runs/**/output.log")]
    assert len(logs) == (2 if launcher else 0)
    for text in logs:
        assert all(f"{word} ***" in text for word in ("print", "half", "error", "child", "RuntimeError: no"))
    runs = [str(path.parent) for path in tmp_path.glob("runs/**/run.json")]
    assert main(["page", *runs, "-o", str(tmp_path / "runs/page.html")]) == 0
    assert leaks(tmp_path / "runs", values) == []
