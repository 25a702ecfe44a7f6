"""A cluster of one machine for the tests: ``sbatch``, ``squeue``, ``scontrol``, ``scancel`` and ``srun`` in one script.

Its books are files below ``$FAKE_SLURM``: ``ID.state``, ``ID.requeue``, ``ID.pids``, and ``sbatch.log``. With a file
``hold`` there, jobs stay pending.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

BOOKS = Path(os.environ["FAKE_SLURM"])
COMMANDS = ("sbatch", "squeue", "scontrol", "scancel", "srun")


def install(folder):
    """Make the commands in ``folder``."""
    folder.mkdir()
    for name in COMMANDS:
        path = folder / name
        path.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).resolve()} {name} "$@"\n')
        path.chmod(0o755)


def sbatch(script):
    text = Path(script).read_text()
    options = dict(re.findall(r"#SBATCH --([\w-]+)=(\S+)", text))
    number = len(list(BOOKS.glob("*.sh"))) + 100
    kept = BOOKS / f"{number}.sh"
    kept.write_text(text)
    with open(BOOKS / "sbatch.log", "a") as log:
        log.write(f"{number} {options.get('array', '')}\n")
    last = re.match(r"0-(\d+)", options.get("array", ""))
    elements = [f"{number}_{i}" for i in range(int(last[1]) + 1)] if last else [str(number)]
    for job in elements:
        (BOOKS / f"{job}.state").write_text("PENDING")
    given = [sys.executable, __file__, "node", str(kept), options.get("ntasks-per-node", "1"), *elements]
    subprocess.Popen(given, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    print(f"Submitted batch job {number}")


def node(script, tasks, *jobs):
    """Run the elements one after the other, each again as often as it is requeued."""
    while (BOOKS / "hold").exists():
        time.sleep(0.05)
    for job in jobs:
        number, _, index = job.partition("_")
        env = dict(os.environ, FAKE_JOB=job, SLURM_JOB_ID=number, SLURM_JOB_NAME="fake")
        env |= {"SLURM_NTASKS": tasks, "SLURM_NTASKS_PER_NODE": tasks, "SLURM_NODELIST": "localhost"}
        env |= {"SLURM_JOB_NUM_NODES": "1", "SLURM_NNODES": "1"}
        if index:
            env |= {"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": index}
        state, asked = BOOKS / f"{job}.state", BOOKS / f"{job}.requeue"
        for turn in range(20):
            if state.read_text() == "CANCELLED":
                break
            state.write_text("RUNNING")
            status = subprocess.call(["bash", script], env=dict(env, SLURM_RESTART_COUNT=str(turn)))
            if state.read_text() == "CANCELLED":
                break
            state.write_text("PENDING" if asked.exists() else "FAILED" if status else "COMPLETED")
            if not asked.exists():
                break
            asked.unlink()


def srun(*arguments):
    words = list(arguments)
    files = {}
    while words[0].startswith("-"):
        option = words.pop(0)
        if option in ("--output", "--error"):
            files[option] = words.pop(0)
    job = os.environ["FAKE_JOB"]
    number, _, index = job.partition("_")
    processes = []
    for rank in range(int(os.environ["SLURM_NTASKS"])):
        env = dict(
            os.environ, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank), SLURM_NODEID="0", SLURM_STEP_ID="0"
        )
        names = {"%A": number, "%a": index, "%j": number, "%t": str(rank)}
        out = re.sub("%.", lambda m: names[m[0]], files["--output"])  # noqa: B023
        with open(out, "a") as log:
            processes.append(subprocess.Popen(words, env=env, stdout=log, stderr=log))
    (BOOKS / f"{job}.pids").write_text(" ".join(str(p.pid) for p in processes))
    sys.exit(max(abs(p.wait()) for p in processes))


def squeue(*_):
    for path in sorted(BOOKS.glob("*.state")):
        if path.read_text() in ("PENDING", "RUNNING"):
            script = (BOOKS / f"{path.stem.partition('_')[0]}.sh").read_text()
            name = re.search(r"#SBATCH --job-name=(.*)", script)[1]
            print(f"{path.stem}|{path.read_text()}|{name}")


def scontrol(word, job):
    assert word == "requeue"
    (BOOKS / f"{job}.requeue").touch()


def scancel(job, option="", name=""):
    if not option:
        (BOOKS / f"{job}.state").write_text("CANCELLED")
    for pid in (BOOKS / f"{job}.pids").read_text().split():
        os.kill(int(pid), getattr(signal, f"SIG{name.removeprefix('SIG')}") if name else signal.SIGTERM)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
