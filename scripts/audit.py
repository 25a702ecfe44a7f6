"""Known vulnerabilities of the versions in constraints.txt: first the floors below, then the advisory database.

The floors need nothing. The database needs the network and pip-audit, which is installed apart from the project, in a
folder that goes again. Status 0: nothing known; 1: a version has an advisory, or is below a floor; 2: not asked.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

CONSTRAINTS = Path(__file__).resolve().parent.parent / "constraints.txt"

# The lowest version without a known hole in what hardpix does with it, and what the hole is.
FLOORS = {
    "torch": ("2.10", "CVE-2026-24747: a weights-only load can run code"),
    "pytorch-lightning": ("2.6.6", "a checkpoint names a class that is called (issues 21832, 21914)"),
    "lightning": ("2.6.6", "2.6.2 and 2.6.3 were malicious (GHSA-w37p-236h-pfx3)"),
    "hydra-core": ("1.3.8", "GHSA-37p2-j732-x8pj: the block list is passed by an alias"),
    "wandb": ("0.29", "CVE-2026-91771: a downloaded file leaves its folder"),
    "pillow": ("12.3", "CVE-2026-55379: the check for decompression bombs is passed"),
}
SECONDS = 300  # for pip-audit, with its installation


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--constraints", type=Path, default=CONSTRAINTS)
    parser.add_argument("--floors-only", action="store_true", help="without the network")
    given = parser.parse_args()
    pinned = read(given.constraints)
    low = below(pinned)
    for line in low:
        print(line)
    print(f"{len(pinned)} pinned versions, {len(low)} below a floor")
    if given.floors_only:
        return 1 if low else 0
    status = ask(pinned)
    return 1 if low else status


def read(path: Path) -> dict[str, str]:
    """Name -> version of every ``name==version``."""
    lines = (
        line.split("#")[0].split(";")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()
    )
    pairs = (line.split("==") for line in lines if "==" in line)
    return {name.strip().lower().replace("_", "-"): version.strip() for name, version in pairs}


def below(pinned: dict[str, str]) -> list[str]:
    """A sentence for every version that is lower than its floor."""
    return [
        f"{name}=={pinned[name]}: must be {floor} or later ({why})"
        for name, (floor, why) in FLOORS.items()
        if name in pinned and numbers(pinned[name]) < numbers(floor)
    ]


def numbers(version: str) -> list[int]:
    return [int(part) for part in re.match(r"[\d.]*", version)[0].strip(".").split(".")]


def ask(pinned: dict[str, str]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder, "Scripts" if sys.platform == "win32" else "bin", "python")
        install = [
            python,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "pip-audit>=2.10,<3",
        ]
        listed = Path(folder) / "pinned.txt"
        # A local label (+cpu) names a build that the database does not know.
        listed.write_text("".join(f"{name}=={version.split('+')[0]}\n" for name, version in pinned.items()))
        audit = [python, "-m", "pip_audit", "--no-deps", "--disable-pip", "--progress-spinner", "off"]
        audit += ["--format", "json", "-r", listed]
        try:
            subprocess.run(install, check=True, capture_output=True, timeout=SECONDS)
            done = subprocess.run(audit, capture_output=True, text=True, timeout=SECONDS)
            answers = json.loads(done.stdout)["dependencies"]
        except (subprocess.SubprocessError, OSError, ValueError, KeyError, TypeError):
            return unasked("pip-audit did not run, or had no answer")
    return judge(answers)


def judge(answers: list[dict[str, Any]]) -> int:
    """Tell the advisories; a version that the database was not asked about, or does not have, is not sound by that."""
    known = [(one, hole) for one in answers for hole in one.get("vulns", ())]
    for one, hole in known:
        fixed = ", ".join(hole.get("fix_versions") or ()) or "no version yet"
        print(f"{one['name']}=={one['version']}: {hole['id']}, mended in {fixed}")
    silent = [one["name"] for one in answers if "skip_reason" in one]
    print(f"{len(answers) - len(silent)} of {len(answers)} versions looked up, {len(known)} advisories")
    if known:
        return 1
    if silent or not answers:
        return unasked(f"it has no answer for {len(silent)} versions, {', '.join(silent[:3])}")
    return 0


def unasked(why: str) -> int:
    print(
        f"the advisory database has not answered for all ({why}): that needs the network; --floors-only needs none",
        file=sys.stderr,
    )
    return 2


if __name__ == "__main__":
    sys.exit(main())
