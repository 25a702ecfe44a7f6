"""The architecture, checked: who may import whom, read with ``ast`` against one literal table."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "hardpix"

ALLOWED = {
    "types": set(),
    "atomic": set(),
    "arguments": set(),
    "plain_yaml": {"types"},
    "secrets": set(),
    "ranges": {"types"},
    "record": {"types", "atomic", "secrets"},
    "ops": {"types", "ranges"},
    "losses": {"types", "ranges", "ops"},
    "metrics": {"types", "ops"},
    "models": {"types", "ranges", "ops"},
    "data": {"types", "ranges", "atomic", "ops", "plain_yaml"},
    "optim": {"types", "ranges"},
    "methods": {"types", "ranges", "ops", "losses", "metrics", "models"},
    "report": {"types", "atomic", "arguments", "record", "plain_yaml"},
    "run": {
        "types", "ranges", "atomic", "arguments", "secrets", "record", "ops", "losses", "metrics", "models", "data",
        "optim", "methods", "report", "plain_yaml",
    },
    "cli": {"types", "atomic", "run", "report"},
}  # fmt: skip

THIRD_PARTY = {
    "pytorch_lightning": {"methods", "data/datamodule.py", "run"},
    "hydra": {
        "run/config.py",
        "run/build.py",
        "run/foreign_files.py",
        "run/launch.py",
        "run/evaluate.py",
        "run/sweep/study.py",
        "run/sweep/jobs.py",
    },
    "omegaconf": {"run"},
    "timm": {"models/backbone.py"},
    "segmentation_models_pytorch": {"models/smp.py"},
    "optuna": {"run/sweep/trials.py", "run/sweep/search.py", "run/sweep/search_status.py"},
    "wandb": {"run/tracking/wandb_logger.py"},
    "wandb_workspaces": {"run/dashboard_command.py"},
    "torchmetrics": {"metrics"},
}


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path, path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, node.lineno
            if node.module == "hardpix":
                yield from ((f"hardpix.{alias.name}", node.lineno) for alias in node.names)


def layer(name):
    return name.split("/")[0].removesuffix(".py")


def test_layers_import_only_what_lies_below_them():
    wrong = []
    for _, name, tree in modules():
        own = layer(name)
        if own == "__init__":
            continue
        for module, line in imports(tree):
            parts = module.split(".")
            ours = parts[0] == "hardpix" and len(parts) > 1 and parts[1] not in ("__version__", own)
            if ours and parts[1] not in ALLOWED[own]:
                wrong.append(f"{name}:{line} imports {module}")
    assert wrong == []


def test_third_party_packages_stay_in_their_places():
    wrong = []
    for _, name, tree in modules():
        for module, line in imports(tree):
            places = THIRD_PARTY.get(module.split(".")[0])
            if places is not None and name not in places and layer(name) not in places:
                wrong.append(f"{name}:{line} imports {module}")
    assert wrong == []


def test_reports_and_records_never_import_torch():
    for _, name, tree in modules():
        if layer(name) in ("report", "record", "types", "ranges", "atomic", "secrets", "cli"):
            heavy = [
                m
                for m, _ in imports_outside_type_checking(tree)
                if m.split(".")[0] in ("torch", "torchvision")
            ]
            assert heavy == [], name


def imports_outside_type_checking(tree):
    guarded = {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for inner in node.body
        for line in range(inner.lineno, inner.end_lineno + 1)
    }
    return [(m, line) for m, line in imports(tree) if line not in guarded]


def test_no_method_is_named_outside_methods():
    exported = ast.parse((PACKAGE / "methods/__init__.py").read_text())
    names = {
        alias.name for node in exported.body if isinstance(node, ast.ImportFrom) for alias in node.names
    } - {"Method", "Parts"}
    assert "HardnessLevel" in names
    pattern = re.compile(r"\b(" + "|".join(sorted(names)) + r")\b")
    for _, name, tree in modules():
        if layer(name) != "methods":
            used = [n for n in ast.walk(tree) if isinstance(n, ast.Name | ast.Attribute)]
            found = {getattr(n, "id", getattr(n, "attr", "")) for n in used}
            assert not [f for f in found if pattern.fullmatch(f)], name


def test_only_resize_interpolates():
    for _, name, tree in modules():
        calls = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
        assert "interpolate" not in calls or name == "ops/resize.py", name


def test_files_stay_readable():
    long = [name for path, name, _ in modules() if path.read_text().count("\n") > 300]
    assert long == []
    assert (PACKAGE / "methods/base.py").read_text().count("\n") <= 200


def test_the_project_names_no_machine():
    files = [
        p
        for p in ROOT.rglob("*")
        if p.suffix in (".py", ".yaml", ".toml", ".md", ".txt") or p.name == "Makefile"
    ]
    skipped = {".venv", ".git", "runs", "node_modules", "build", "dist"}
    for path in files:
        if skipped & set(path.relative_to(ROOT).parts) or path == Path(__file__):
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        named = [
            place for place in (f"{ROOT}/", f"{Path.home()}/", "index-url") if place in text and place != "//"
        ]
        assert named == [], path
