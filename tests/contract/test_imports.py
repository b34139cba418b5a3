"""The layers hold: who may import whom, what a light import loads, and how long files and functions may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "quorum_client": ROOT / "clients/quorum_client",
    "quorum_model": ROOT / "server/quorum_model",
    "quorum_server": ROOT / "server/quorum_server",
    "quorum_trainer": ROOT / "trainer/quorum_trainer",
}
# quorum_client <- quorum_model <- {quorum_server, quorum_trainer}
ALLOWED = {
    "quorum_client": set(),
    "quorum_model": {"quorum_client"},
    "quorum_server": {"quorum_client", "quorum_model"},
    "quorum_trainer": {"quorum_client", "quorum_model"},
}
SOURCES = [path for folder in PACKAGES.values() for path in sorted(folder.rglob("*.py"))]
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60
# Relative paths (or "path::function") that may be longer, each with its reason. Empty: keep it so.
LONGER: set[str] = set()


def imported_names(tree: ast.AST) -> Iterator[str]:
    """Every module that is imported anywhere in the file, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or ""
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in (
            "import_module",
            "__import__",
        ):
            yield from (arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str))


def own_packages(source: str) -> set[str]:
    return {name.partition(".")[0] for name in imported_names(ast.parse(source))} & set(PACKAGES)


def function_lengths(source: str) -> dict[str, int]:
    """Lines of each function's body, from after its docstring to its end; the longest where names repeat."""
    lengths: dict[str, int] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            length = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
            lengths[node.name] = max(length, lengths.get(node.name, 0))
    return lengths


@pytest.mark.parametrize("package", PACKAGES)
def test_import_rule(package: str) -> None:
    for path in PACKAGES[package].rglob("*.py"):
        forbidden = own_packages(path.read_text()) - ALLOWED[package] - {package}
        assert not forbidden, f"{path.relative_to(ROOT)} imports {sorted(forbidden)}"


@pytest.mark.parametrize(
    "source",
    [
        "import quorum_model",
        "from quorum_model.errors import BundleError",
        "def f():\n    import quorum_model.heads as heads",
        "def f():\n    return importlib.import_module('quorum_model.heads')",
        "if TYPE_CHECKING:\n    from quorum_model import errors",
    ],
)
def test_import_rule_sees_every_kind_of_import(source: str) -> None:
    assert own_packages(source) == {"quorum_model"}


@pytest.mark.parametrize("folder", ["clients", "server", "trainer"])
def test_no_module_beside_the_packages(folder: str) -> None:
    # In an editable install it would become a top-level module of everybody's environment.
    assert list((ROOT / folder).glob("*.py")) == []


@pytest.mark.parametrize("module", ["quorum_client", "quorum_client.cli", "quorum_client.commands.score"])
def test_light_import(module: str) -> None:
    heavy = {"torch", "transformers", "peft", "fastapi", "uvicorn", "quorum_model", "quorum_server", "quorum_trainer"}
    program = f"import sys, {module}; print(*sorted(set(sys.modules) & {heavy}))"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT / "clients", capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_files_are_short() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in SOURCES}
    assert {name: n for name, n in lengths.items() if n > MAX_FILE_LINES and name not in LONGER} == {}


def test_functions_are_short() -> None:
    lengths = {
        f"{path.relative_to(ROOT)}::{name}": n
        for path in SOURCES
        for name, n in function_lengths(path.read_text()).items()
    }
    assert {name: n for name, n in lengths.items() if n > MAX_FUNCTION_LINES and name not in LONGER} == {}


def test_length_is_counted_after_the_docstring() -> None:
    source = 'def f(\n    a,\n):\n    """One.\n\n    Two.\n    """\n    a = 1\n\n    return a\n'
    assert function_lengths(source) == {"f": 3}
    assert function_lengths(source + "class A:\n    def f(self): ...\n") == {"f": 3}
