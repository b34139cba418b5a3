"""Writing a bundle: all of it or nothing.

    manifest, write_files  --temporary folder, card, hashes, manifest.json, fsync, rename-->  Bundle

Knows nothing of what the files hold.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from quorum_model.bundle.card import render_card
from quorum_model.bundle.files import CARD_NAME, MANIFEST_NAME, check_format, hash_file, list_files
from quorum_model.bundle.manifest import Manifest
from quorum_model.bundle.read import Bundle, head_tensors, read_bundle
from quorum_model.errors import BundleError


def write_bundle(target: Path, manifest: Manifest, write_files: Callable[[Path], None]) -> Bundle:
    """Write a bundle to a new folder.

    Args:
        target: must not exist; its parent must.
        manifest: `files` is filled in here.
        write_files: writes everything but manifest.json and README.md into the folder that it is given.

    Returns:
        The bundle as it reads back from disk: verified as any other is.

    Raises:
        BundleError: `target` exists, its parent does not, or what was written is no valid bundle. Whatever is raised,
            here or by `write_files`, leaves nothing behind.
    """
    target = target.absolute()
    if os.path.lexists(target):
        raise BundleError(f"{target} exists already; a bundle is never overwritten")
    if not target.parent.is_dir():
        raise BundleError(f"no such folder: {target.parent}")
    # Beside the target, so that the rename stays on one file system. One level down, so that the bundle has an
    # ordinary folder's permissions and not those of a private temporary one.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as staging:
        root = Path(staging) / "bundle"
        root.mkdir()
        write_files(root)
        _complete(root, manifest)
        bundle = read_bundle(root)
        _sync(root)
        try:
            root.rename(target)
        except OSError as error:
            raise BundleError(f"{target} cannot be made: {error.strerror}") from error
        sync_entry(target.parent)
    return Bundle(target, bundle.manifest, bundle.version)


def _complete(root: Path, manifest: Manifest) -> None:
    """Add the card, and last the manifest with every hash; all files as readable as the card.

    safetensors makes its files private to the user, which who serves a bundle may not be. Hard-linked files are another
    bundle's too, and stay as they are.
    """
    for relative in list_files(root):
        check_format(relative)
    head_names = head_tensors(root, manifest.members[0])
    card = root / CARD_NAME
    card.write_text(render_card(manifest, head_names), encoding="utf-8")
    for relative in list_files(root):
        if (root / relative).stat().st_nlink == 1:
            (root / relative).chmod(card.stat().st_mode)
    hashes = {relative: hash_file(root, relative) for relative in list_files(root)}
    text = manifest.model_copy(update={"files": hashes}).to_json()
    (root / MANIFEST_NAME).write_text(text, encoding="utf-8")


def _sync(root: Path) -> None:
    """Have everything on the disk before the bundle appears under its name."""
    for folder, _, names in os.walk(root):
        for name in names:
            sync_entry(Path(folder, name))
        sync_entry(Path(folder))


def sync_entry(path: Path) -> None:
    """Have a file, or a folder's list of names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
