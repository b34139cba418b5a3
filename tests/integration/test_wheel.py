"""The wheel as a user installs it: the client without torch, and the default ensemble inside."""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode and "No matching distribution found for hatchling" in built.stderr:
        pytest.skip("the build needs hatchling from a package index, and there is none")
    assert built.returncode == 0, built.stderr
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_it_holds_four_packages_and_the_default_bundle(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"quorum_client", "quorum_model", "quorum_server", "quorum_trainer"}
    assert "quorum_model/default_bundle/manifest.json" in names
    assert sum(name.endswith("adapter_model.safetensors") for name in names) >= 5
    assert wheel.stat().st_size < 12 * 2**20


@pytest.mark.slow
def test_the_client_alone_installs_and_says_what_is_missing(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    constraints = ROOT / "constraints.txt"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "-c", constraints, wheel], check=True)
    listed = subprocess.run([python, "-m", "pip", "list"], capture_output=True, text=True, check=True).stdout
    assert "torch" not in listed
    version = subprocess.run([tmp_path / "env/bin/quorum", "--version"], capture_output=True, text=True, check=True)
    assert "0.1.0" in version.stdout
    serve = subprocess.run([tmp_path / "env/bin/quorum", "serve"], capture_output=True, text=True, check=False)
    assert serve.returncode == 1
    assert "quorum-rm[server]" in serve.stderr
