"""Which bundles a request may have loaded: those in the folders that the operator named, and hub ids.

    source of a PUT  --check_source-->  what to load, or SourceNotAllowed

What the operator named at the start (`--bundle`) needs no leave. Asks the file system where a path leads, reads no
file, and knows no HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from quorum_model.bundle.read import DEFAULT_SOURCE, is_hub_id
from quorum_model.errors import BundleError


class SourceNotAllowed(BundleError):
    """A folder outside the allowed ones; the message does not tell whether it exists."""

    code = "source_not_allowed"


def check_source(source: str, roots: Sequence[Path]) -> str:
    """What to load for the source that a request names.

    Args:
        source: as `resolve_bundle` takes it.
        roots: the allowed folders.

    Returns:
        "default" and hub ids as they are; a folder by its real path, without links and `..`.

    Raises:
        SourceNotAllowed: a folder that does not lie in one of `roots`, its links followed.
    """
    if source == DEFAULT_SOURCE:
        return source
    path = _local_path(source)
    return source if path is None else str(_in_roots(path, roots))


def _local_path(source: str) -> Path | None:
    """The path that a source is, with `~` expanded; None for a hub id that no folder here hides."""
    try:
        path = Path(source).expanduser()
        if is_hub_id(source) and not path.exists():
            return None
        return path.resolve()
    except (OSError, ValueError, RuntimeError):  # too long, a NUL, links in a circle, a home of nobody
        raise SourceNotAllowed("the source is neither a hub id nor a path that can be followed") from None


def _in_roots(path: Path, roots: Sequence[Path]) -> Path:
    if not any(path.is_relative_to(root.resolve()) for root in roots):
        raise SourceNotAllowed(
            "the folder lies in none that requests may load from; the server's --bundle-root FOLDER allows one"
        )
    return path
