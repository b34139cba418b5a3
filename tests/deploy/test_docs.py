"""The documentation's site: built with warnings as errors, whole, and asking no other machine for anything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs", reason="MkDocs is not installed (group docs)")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    # A proxy that nobody listens at: whoever asks another machine fails.
    fenced = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    environ = os.environ | fenced | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_guide_is_a_page(site: Path) -> None:
    pages = {path.relative_to(site).with_suffix(".md").as_posix() for path in site.rglob("*.html")}
    written = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert {"index.md", "architecture.md", "security.md"} <= pages
    assert written - {"frameworks/README.md"} <= pages


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe)[^>]+src=\"?([^\"\s>]+)", text)
        loaded += re.findall(
            r"<link[^>]+rel=\"?(?:stylesheet|preload|icon|preconnect)\"?[^>]*href=\"?([^\"\s>]+)", text
        )
        assert loaded
        assert [one for one in loaded if re.match(r"(https?:)?//", one)] == [], path.name


def test_the_reference_says_what_docstrings_say(site: Path) -> None:
    page = (site / "api/client.html").read_text(encoding="utf-8")
    for said in ("lower confidence bound", "InvalidRequest", "AsyncClient", "aggregate"):
        assert said in page
