"""Which room may import which: DESIGN section 3, read off the imports themselves."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ANYWHERE = {"numpy", "torch", "fedrec.errors", "fedrec.randomness", "fedrec.files", "fedrec.compiled", "fedrec"}
ROOMS = {
    "fedrec/data": {"fedrec.data", "pandas", "pyarrow", "pydantic", "numba"},
    "fedrec/models": {"fedrec.models", "fedrec.data", "pydantic", "numba"},
    "fedrec/privacy": {"fedrec.privacy", "opacus", "scipy", "cryptography"},
    "fedrec/federated": {"fedrec.federated", "fedrec.data", "fedrec.models", "fedrec.privacy", "safetensors"},
    "fedrec/evaluation": {"fedrec.evaluation", "fedrec.data", "fedrec.models", "numba"},
    "fedrec/device": {"fedrec.device", "fedrec.data", "fedrec.models", "fedrec.evaluation", "safetensors"},
    "fedrec/audit": {
        "fedrec.audit",
        "fedrec.data",
        "fedrec.models",
        "fedrec.federated",
        "fedrec.privacy",
        "fedrec.assemble",
        "fedrec.config",
        "scipy",
    },
    "fedrec/report": {"fedrec.report", "matplotlib", "jinja2", "markupsafe"},
    "fedrec/flower": {"fedrec.flower", "flwr", "ray"},
    "server": {"server", "fedrec", "flwr"},
    "client": {"client", "fedrec", "flwr"},
}
STDLIB = set(__import__("sys").stdlib_module_names)


def imported(path: Path) -> set[str]:
    """Return the modules a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module == "fedrec":
                found.discard("fedrec")
                found |= {f"fedrec.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] not in STDLIB}


def allowed(module: str, rooms: set[str]) -> bool:
    return (
        any(module == room or module.startswith(room + ".") for room in rooms)
        or module in ANYWHERE
        or (module.split(".")[0] in {"numpy", "torch"})
    )


@pytest.mark.parametrize("room", ROOMS)
def test_room_imports_only_what_it_may(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files, f"{room} has no files"
    wrong = {
        f"{path.relative_to(ROOT)}: {module}"
        for path in files
        for module in imported(path)
        if not allowed(module, ROOMS[room])
    }
    assert not wrong


def test_flower_is_imported_in_its_own_room_and_the_apps_only() -> None:
    for path in sorted((ROOT / "fedrec").rglob("*.py")):
        if "flower" not in path.parts:
            assert not any(module.split(".")[0] in {"flwr", "ray", "server", "client"} for module in imported(path)), (
                path
            )


def test_nothing_is_unpickled() -> None:
    for folder in ("fedrec", "server", "client", "simulations"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            names = imported(path)
            assert not names & {"pickle", "dill", "cloudpickle", "joblib"}, path
            assert "torch.load(" not in path.read_text(encoding="utf-8"), path
