"""The `quorum` command: what is listed, what is imported, and how errors become exit codes."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from typer.testing import CliRunner

from quorum_client import __version__, cli
from quorum_client.errors import Overloaded

CLIENTS = Path(cli.__file__).parents[1]
runner = CliRunner()


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Register subcommands: name -> (module, its source); the command is the function or app `command` in it."""

    def register(**commands: tuple[str, str]) -> None:
        found = []
        for name, (module, source) in commands.items():
            folder = tmp_path.joinpath(*module.split(".")[:-1])
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{module.rpartition('.')[2]}.py").write_text(source)
            found.append(EntryPoint(name, f"{module}:command", cli.COMMAND_GROUP))
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setattr(cli, "entry_points", lambda group: found)

    return register


RAISES_AT_IMPORT = "raise AssertionError('imported for nothing')"


def test_help_lists_commands_without_importing_them(register: Callable[..., None]) -> None:
    register(score=("cmd_a", RAISES_AT_IMPORT), zeta=("cmd_b", RAISES_AT_IMPORT))
    result = runner.invoke(cli.app, ["--help"])
    assert result.exit_code == 0, result.output
    assert "Score JSON lines against a server or a bundle." in result.stdout
    assert "zeta" in result.stdout


def test_only_the_command_that_is_called_is_imported(register: Callable[..., None]) -> None:
    register(
        first=("cmd_c", "def command(*, number: int = 1) -> None:\n    '''Say it.'''\n    print('first', number)"),
        second=("cmd_d", RAISES_AT_IMPORT),
    )
    assert runner.invoke(cli.app, ["first", "--number", "3"]).stdout == "first 3\n"
    assert "Say it." in runner.invoke(cli.app, ["first", "--help"]).stdout


def test_a_command_may_be_an_app_of_its_own(register: Callable[..., None]) -> None:
    source = (
        "import typer\ncommand = typer.Typer()\n"
        "@command.command()\ndef a() -> None: print('a')\n@command.command()\ndef b() -> None: print('b')\n"
    )
    register(group=("cmd_e", source))
    assert runner.invoke(cli.app, ["group", "b"]).stdout == "b\n"


@pytest.mark.parametrize(
    "source",
    ["import no_such_module\ndef command() -> None: ...", "def command() -> None:\n    import no_such_module"],
    ids=["when imported", "when called"],
)
@pytest.mark.parametrize("extra", ["server", "trainer", "model"])
def test_missing_extra_is_named(
    register: Callable[..., None], monkeypatch: pytest.MonkeyPatch, extra: str, source: str
) -> None:
    # The extras go by package; a stand-in package keeps the real one out of the test.
    package = f"stand_in_{extra}_{len(source)}"
    monkeypatch.setitem(cli._EXTRAS, package, extra)
    register(work=(f"{package}.command", source))
    result = runner.invoke(cli.app, ["work"])
    assert result.exit_code == 1
    assert result.stderr == (
        f"error: missing_extra: quorum work needs the {extra} extra: pip install 'quorum-rm[{extra}]' "
        "(No module named 'no_such_module')\n"
    )


def test_extras_go_by_package() -> None:
    assert cli._EXTRAS == {"quorum_model": "model", "quorum_server": "server", "quorum_trainer": "trainer"}


@pytest.mark.parametrize(("package", "module"), [("own_a", "quorum_server.gone"), ("foreign_a", "no_such_module")])
def test_a_defect_is_not_taken_for_a_missing_extra(
    register: Callable[..., None], monkeypatch: pytest.MonkeyPatch, package: str, module: str
) -> None:
    # A module of ours that is not there, or a command of a package that has no extra: the traceback is what helps.
    monkeypatch.setitem(cli._EXTRAS, "own_a", "server")
    register(work=(f"{package}.command", f"import {module}"))
    result = runner.invoke(cli.app, ["work"])
    assert isinstance(result.exception, ModuleNotFoundError)


def test_quorum_error_is_one_line_and_exit_code_1(register: Callable[..., None]) -> None:
    source = "from quorum_client.errors import Overloaded\ndef command() -> None: raise Overloaded('the queue is full')"
    register(work=("cmd_g", source))
    result = runner.invoke(cli.app, ["work"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"error: {Overloaded.code}: the queue is full\n"


def test_interrupt_is_exit_code_130(register: Callable[..., None]) -> None:
    register(work=("cmd_h", "def command() -> None: raise KeyboardInterrupt"))
    assert runner.invoke(cli.app, ["work"]).exit_code == 130


@pytest.mark.parametrize("args", [["wrok"], ["work", "--no-such-option"], ["work", "--number", "x"]])
def test_wrong_usage_is_exit_code_2(register: Callable[..., None], args: list[str]) -> None:
    register(work=("cmd_i", "def command(*, number: int = 1) -> None: ..."))
    assert runner.invoke(cli.app, args).exit_code == 2


def test_a_typo_gets_a_suggestion(register: Callable[..., None]) -> None:
    register(work=("cmd_j", RAISES_AT_IMPORT))
    assert "Did you mean 'work'?" in runner.invoke(cli.app, ["wrok"]).stderr


def test_version() -> None:
    result = runner.invoke(cli.app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"quorum {__version__}\n")


def test_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "quorum_client.cli", "--version"]
    done = subprocess.run(command, cwd=CLIENTS, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"quorum {__version__}\n")


def test_summaries_are_of_the_registered_subcommands() -> None:
    # From the project's file, since the tests run without an installation too.
    project = tomllib.loads((CLIENTS.parent / "pyproject.toml").read_text())["project"]
    assert set(cli._SUMMARIES) == set(project["entry-points"][cli.COMMAND_GROUP])
