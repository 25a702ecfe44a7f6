"""The architecture, checked: who may import whom, read with ``ast`` against one literal table."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "hardpix"

# Each layer (a folder, or a single file) and what it may import besides itself; imports inside functions count.
BELOW = {
    "types": "",
    "secrets": "",
    "record": "types secrets",
    "scores": "types record",
    "config": "types secrets record",
    "ops": "types config",
    "optim": "types config",
    "losses": "types config ops",
    "metrics": "types config ops",
    "models": "types config ops",
    "data": "types record config ops",
    "methods": "types config ops losses metrics models",
    "draw": "types record",
    "tables": "types record scores config",
    "train": "types secrets record scores config ops optim losses metrics models data methods draw",
    "evaluate": "types record config methods data train",
    "sweep": "types secrets record scores config train",
    "predict": "types record config data draw train evaluate",
    "export": "types record config ops train evaluate predict",
    "figures": "types record scores config ops metrics models data methods train evaluate predict draw tables",
    "page": "types record scores config ops data methods train predict draw tables figures",
    # What `cli` needs of torch's layers it imports when a command runs.
    "cli": "types secrets record scores config ops data methods train sweep evaluate predict export draw tables "
    "figures page",
}
# Not even inside functions; `types` names its tensors for type checking only.
WITHOUT_TORCH = ("types", "secrets", "record", "scores", "config", "draw", "tables", "cli")

THIRD_PARTY = {
    "pytorch_lightning": "methods/base.py methods/steps.py data/datamodule.py train sweep evaluate.py",
    "hydra": "config train/build.py sweep cli/train.py evaluate.py",
    "omegaconf": "config train sweep evaluate.py figures/runs.py cli/train.py cli/prepare.py cli/published_rows.py",
    "timm": "models/backbone.py",
    "segmentation_models_pytorch": "models/smp.py",
    "optuna": "sweep/search.py",
    "wandb": "train/wandb.py",
    "wandb_workspaces": "cli/reports.py",
    "torchmetrics": "metrics",
    "matplotlib": "draw figures",
    "jinja2": "page",
}

# Private modules of other packages, and where one is used all the same.
PRIVATE = {
    "hydra._internal.config_repository.ConfigRepository": {"config/trust.py"},
    "torch.nn.modules.batchnorm._BatchNorm": {"models/backbone.py"},
    "torch.utils._python_dispatch.TorchDispatchMode": {"train/cost.py"},
    "torch.utils._pytree.tree_leaves": {"train/cost.py"},
}


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path, path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def imports(tree):
    """(module, line, whether for type checking only) of every import, those in functions included."""
    typing = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno, id(node) in typing) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno, id(node) in typing


def layer(name):
    return name.split("/")[0].removesuffix(".py")


def test_layers_import_only_what_lies_below_them():
    wrong = []
    for _, name, tree in modules():
        own = layer(name)
        if own == "__init__":
            continue
        for module, line, _ in imports(tree):
            package, *rest = module.split(".")
            if package == "hardpix" and rest and rest[0] not in ("__version__", own, *BELOW[own].split()):
                wrong.append(f"{name}:{line} imports {module}")
    assert wrong == []


def test_every_layer_lies_above_what_it_imports():
    """The table itself has no circle, and names every folder and file there is."""
    known: set[str] = set()
    for name, below in BELOW.items():
        assert known.issuperset(below.split()), name
        known.add(name)
    assert {layer(name) for _, name, _ in modules()} - {"__init__"} == known


def test_no_import_circle():
    """Imports in functions and for types count too."""
    trees = {
        "hardpix." + name.removesuffix(".py").removesuffix("/__init__").replace("/", "."): tree
        for _, name, tree in modules()
    }
    graph = {
        module: {full if full in trees else full.rpartition(".")[0] for full, _, _ in imports(tree)}
        & trees.keys()
        for module, tree in trees.items()
    }
    graph = {module: needed - {module} for module, needed in graph.items()}
    while free := [m for m, needed in graph.items() if not needed & graph.keys()]:
        for module in free:
            del graph[module]
    assert graph == {}


def test_third_party_packages_stay_in_their_places():
    wrong = []
    for _, name, tree in modules():
        for module, line, _ in imports(tree):
            places = THIRD_PARTY.get(module.split(".")[0])
            if places is not None and not {name, layer(name)} & {*places.split()}:
                wrong.append(f"{name}:{line} imports {module}")
    assert wrong == []


def test_private_modules_of_other_packages_are_used_nowhere_else():
    used = {}
    for _, name, tree in modules():
        for module, _, _ in imports(tree):
            if any(part.startswith("_") and not part.startswith("__") for part in module.split(".")):
                used.setdefault(module, set()).add(name)
    assert used == PRIVATE


def test_tables_pictures_and_records_never_import_torch():
    for _, name, tree in modules():
        if layer(name) in WITHOUT_TORCH:
            heavy = [
                m
                for m, _, typed in imports(tree)
                if m.split(".")[0] in ("torch", "torchvision") and not typed
            ]
            assert heavy == [] or name == "cli/train.py", name


def test_a_training_configuration_is_validated_without_tables_figures_or_torch():
    code = (
        "import sys; from hardpix.config.compose import compose, validate; validate(compose(['method=hardness']));"
        "print(*(m for m in sys.modules if m.split('.')[0] == 'torch' or m.startswith('hardpix.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    loaded = {name.removeprefix("hardpix.").split(".")[0] for name in done.stdout.split()}
    assert loaded <= {"types", "secrets", "record", "config"}


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
    long = [name for path, name, _ in modules() if path.read_text().count("\n") > 500]
    assert long == []
    assert (PACKAGE / "methods/base.py").read_text().count("\n") <= 200


@pytest.mark.parametrize("name", ["utils", "common", "helpers", "misc"])
def test_no_file_is_named_for_nothing(name):
    assert not [*PACKAGE.rglob(f"{name}.py"), *PACKAGE.rglob(f"{name}/")]


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
