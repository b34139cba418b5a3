"""The files of a bundle folder: which there are, which may be there, and what they hash to.

    folder  --list_files-->  paths  --check_format-->  allowed ones  --hash_file-->  sha256

Safetensors and text only: nothing that runs code when it is opened. Knows nothing of manifests.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from safetensors import SafetensorError, safe_open

from quorum_model.errors import BundleCorrupt

MANIFEST_NAME = "manifest.json"
CARD_NAME = "README.md"

_FORMATS = frozenset({".safetensors", ".json", ".jinja", ".md", ".txt", ".model", ".vocab", ".tiktoken"})
_PLAIN_NAMES = frozenset({"LICENSE", "NOTICE"})
_PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz"})

HUB_PATTERNS = [f"*{suffix}" for suffix in sorted(_FORMATS)] + [f"*{name}" for name in sorted(_PLAIN_NAMES)]
"""What to download of a bundle on a hub."""


def list_files(root: Path) -> list[str]:
    """All files of a bundle by their path in it ("members/m00/adapter_config.json"), sorted, manifest.json left out.

    Entries of the top folder that begin with a dot belong to git or a hub's client and are never read.

    Raises:
        BundleCorrupt: something that is neither a folder nor a regular file, or a link that leads out of the bundle.
    """
    roots = _own_roots(root)
    found = []
    for path in _walk(root):
        relative = path.relative_to(root).as_posix()
        target = path.resolve()
        if not any(target.is_relative_to(own) for own in roots):
            raise BundleCorrupt(f"{relative} is a link that leads out of the bundle")
        if not target.is_file():
            raise BundleCorrupt(f"{relative} is not a regular file")
        found.append(relative)
    return sorted(name for name in found if name != MANIFEST_NAME)


def _walk(root: Path) -> Iterator[Path]:
    """Everything in a bundle but its ordinary folders; links are not followed."""
    for folder, folders, names in os.walk(root):
        if Path(folder) == root:
            folders[:] = [name for name in folders if not name.startswith(".")]
        for name in [*names, *folders]:
            path = Path(folder, name)
            is_hidden = path.parent == root and name.startswith(".")
            if not is_hidden and (path.is_symlink() or not path.is_dir()):
                yield path


def _own_roots(root: Path) -> list[Path]:
    """Where a bundle's bytes may lie: in its folder, or, in a hub's cache, in the blobs that its links lead to."""
    own = root.resolve()
    if own.parent.name == "snapshots":
        return [own, own.parent.parent / "blobs"]
    return [own]


def check_path(relative: str) -> None:
    """Refuse a path that a manifest has no business naming.

    Raises:
        BundleCorrupt: absolute, with `..`, or not in its simplest form.
    """
    path = PurePosixPath(relative)
    if not relative or path.is_absolute() or ".." in path.parts or "\\" in relative or str(path) != relative:
        raise BundleCorrupt(f"manifest.json: files: '{relative}' is not a plain path inside the bundle")


def check_format(relative: str) -> None:
    """Refuse a file whose name says that it is of a format bundles do not have.

    Raises:
        BundleCorrupt: naming it.
    """
    path = PurePosixPath(relative)
    if path.suffix.lower() in _PICKLES:
        raise BundleCorrupt(f"{relative}: pickled weights can run code when loaded; a bundle holds safetensors only")
    if path.suffix not in _FORMATS and path.name not in _PLAIN_NAMES:
        raise BundleCorrupt(f"{relative}: not a kind of file that a bundle holds ({', '.join(sorted(_FORMATS))})")


def tensor_names(root: Path, relative: str) -> list[str]:
    """The names in a safetensors file, from its header; no tensor is loaded.

    Raises:
        BundleCorrupt: there is no such file, or its content is not safetensors, whatever its name says.
    """
    try:
        with safe_open(root / relative, framework="numpy") as file:
            return sorted(file.keys())
    except FileNotFoundError as error:
        raise BundleCorrupt(f"{relative} is missing") from error
    except (SafetensorError, OSError) as error:
        raise BundleCorrupt(f"{relative} is not a valid safetensors file: {error}") from error


def hash_file(root: Path, relative: str) -> str:
    """sha256 of a file, in hex.

    Raises:
        BundleCorrupt: it cannot be read.
    """
    try:
        with (root / relative).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BundleCorrupt(f"{relative} cannot be read: {error.strerror}") from error
