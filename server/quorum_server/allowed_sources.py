"""Which bundles a request may have loaded: those in the folders that the operator named, and hub ids.

    source of a PUT  --check_source-->  what to load, or SourceNotAllowed
    the bundle there  --check_backbone-->  its backbone lies in an allowed folder too, or is in use already

What the operator named at the start (`--bundle`) needs no leave. Asks the file system where a path leads, reads no
file, and knows no HTTP.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from quorum_model.bundle.read import DEFAULT_SOURCE, Bundle, is_hub_id
from quorum_model.errors import BundleError
from quorum_model.sources import BUNDLE_SCHEME, PACKAGE_SCHEME


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


def check_backbone(bundle: Bundle, roots: Sequence[Path], in_use: Collection[str]) -> None:
    """Refuse a requested bundle whose backbone is a folder that requests may not load from.

    Args:
        bundle: read.
        roots: the allowed folders.
        in_use: backbone sources of what serves already: another version may stand on them.

    Raises:
        SourceNotAllowed: the backbone is a folder in none of `roots`, and not in use.
    """
    source = bundle.manifest.backbone.source
    if source.startswith((BUNDLE_SCHEME, PACKAGE_SCHEME)) or source in in_use:
        return
    path = _local_path(source)
    if path is not None and not any(path.is_relative_to(root.resolve()) for root in roots):
        raise SourceNotAllowed(
            "the bundle's backbone lies in a folder that requests may not load from; the server's --bundle-root FOLDER "
            "allows one"
        )


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
