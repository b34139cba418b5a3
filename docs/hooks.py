"""MkDocs hooks: pages that lie beside docs/ come in, and links to what is no page go to the repository's files.

README.md, ARCHITECTURE.md, …  --on_files-->  index.md, architecture.md, …      links  --on_page_markdown-->  theirs
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}
"""Of the repository's root, by their name in the site."""
_LINK = re.compile(r"\[([^\]]*)\]\((?!https?://|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the root's pages, and the experiments' pictures under their own paths."""
    for source, target in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, target, content=text))
    for path in sorted(ROOT.glob("experiments/*/results/*.png")):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turn links between files of the repository into links between pages; of what is no page only its name is left."""
    here = page.file.src_uri
    source = {target: source for source, target in PAGES.items()}.get(here, f"docs/{here}")

    def turn(found: re.Match[str]) -> str:
        text, path, anchor = found[1], found[2], found[3] or ""
        file = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        target = _page_of(file)
        if target is not None:
            return f"[{text}]({posixpath.relpath(target, posixpath.dirname(here) or '.')}{anchor})"
        # What is nowhere stays a link, of which MkDocs then says so.
        return text if (ROOT / file).exists() else found[0]

    return _LINK.sub(turn, markdown)


def _page_of(file: str) -> str | None:
    """Where a file of the repository is in the site."""
    if file in PAGES:
        return PAGES[file]
    if not (ROOT / file).is_file():
        return None
    if file.startswith("docs/"):
        return file.removeprefix("docs/")
    return file if re.fullmatch(r"experiments/[^/]+/results/[^/]+\.png", file) else None
