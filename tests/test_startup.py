"""What starting costs, by modules and not by time: help and `import fedrec` load nothing that is heavy."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"torch", "flwr", "opacus", "numba", "pandas", "matplotlib", "ray", "pyarrow", "scipy"}

SHOW_HELP = """
import sys
from fedrec.cli import main
sys.argv = ["fedrec", *{arguments!r}]
try:
    main()
except SystemExit as stop:
    assert stop.code in (0, None), stop.code
"""


def loaded_by(code: str) -> set[str]:
    """Return the top-level names of all modules that a fresh interpreter has loaded after `code`."""
    code += "\nimport sys\nprint('LOADED', *sorted({name.split('.')[0] for name in sys.modules}))\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    return set(done.stdout.splitlines()[-1].split()[1:])


@pytest.mark.parametrize("arguments", [["--help"], ["simulate", "--help"], ["data", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    loaded = loaded_by(SHOW_HELP.format(arguments=arguments))
    assert {"fedrec", "typer"} <= loaded and not loaded & HEAVY


def test_package_alone_loads_nothing_heavy() -> None:
    loaded = loaded_by("import fedrec")
    assert "fedrec" in loaded and not loaded & HEAVY
