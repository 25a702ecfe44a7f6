"""What the package imports is what it says it needs."""

import ast
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Where a distribution's module has another name.
MODULES = {
    "hydra-core": {"hydra"},
    "hydra-joblib-launcher": {"hydra_plugins"},
    "hydra-submitit-launcher": {"hydra_plugins"},
    "opencv-python-headless": {"cv2"},
    "pillow": {"PIL"},
    "pyyaml": {"yaml"},
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def name_of(requirement):
    return re.match(r"[A-Za-z0-9._-]+", requirement)[0].lower()


def modules(requirements):
    found = [MODULES.get(name_of(text), {name_of(text).replace("-", "_")}) for text in requirements]
    return set().union(*found)


def imported(folder):
    """Module at the top level -> the places that import it, those of type checkers alone left out."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            for name in names:
                found.setdefault(name.partition(".")[0], []).append(f"{path.relative_to(ROOT)}:{node.lineno}")
    return {k: v for k, v in found.items() if k not in sys.stdlib_module_names and k != "hardpix"}


def test_everything_that_is_imported_is_declared():
    extras = PROJECT["optional-dependencies"]
    own = [text for name, texts in extras.items() if name != "dev" for text in texts]
    declared = modules([*PROJECT["dependencies"], *own])
    assert {k: v for k, v in imported(ROOT / "hardpix").items() if k not in declared} == {}


def test_what_is_imported_when_a_module_is_loaded_is_no_extra():
    """An extra is imported where it is used, or by a file that only what needs it imports."""
    always = modules(PROJECT["dependencies"])
    alone: set[str] = set()
    odd = []
    for path in sorted((ROOT / "hardpix").rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            tops = {found.partition(".")[0] for found in names}
            odd += [
                f"{name}: {top}"
                for top in tops - always - {"hardpix"} - sys.stdlib_module_names
                if name not in alone
            ]
    assert odd == []


def test_every_dependency_is_imported():
    assert modules(PROJECT["dependencies"]) - imported(ROOT / "hardpix").keys() == set()


def test_a_pinned_version_is_within_what_is_declared():
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    pins = {name.lower(): version for name, version in pins.items()}
    for text in PROJECT["dependencies"]:
        floor, ceiling = re.search(r">=([\d.]+)", text)[1], re.search(r"<([\d.]+)", text)[1]
        low, pin, high = (
            tuple(map(int, re.findall(r"\d+", v)[:3])) for v in (floor, pins[name_of(text)], ceiling)
        )
        assert low <= pin < high, text
