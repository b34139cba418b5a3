"""Writing a bundle: all of it or nothing."""

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path

import pytest

from quorum_model.bundle.golden import GoldenItem, read_golden, write_golden
from quorum_model.bundle.read import read_bundle
from quorum_model.bundle.write import write_bundle
from quorum_model.errors import BundleCorrupt, BundleError, HeadMissing
from tests.model.bundle.small_bundle import LORA, make_bundle, make_manifest, write_adapter_files, write_small_files


def test_the_manifest_holds_the_hash_of_every_other_file(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", files={"ignored.json": "00"})
    expected = {
        path.relative_to(bundle.path).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in bundle.path.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }
    assert bundle.manifest.files == expected
    assert {"README.md", "golden.json", "members/m00/adapter_config.json"} <= set(expected)


def test_equal_content_has_an_equal_version(tmp_path: Path) -> None:
    assert make_bundle(tmp_path / "a").version == make_bundle(tmp_path / "b").version
    assert make_bundle(tmp_path / "c", pair_temperature=2.0).version != make_bundle(tmp_path / "d").version


class Interrupted(BaseException):
    """Neither an Exception: as Ctrl-C."""


@pytest.mark.parametrize("error", [OSError("disk full"), ValueError("x"), KeyboardInterrupt(), Interrupted()])
def test_a_failure_leaves_nothing_behind(tmp_path: Path, error: BaseException) -> None:
    manifest = make_manifest()

    def fail_late(root: Path) -> None:
        write_small_files(root, manifest)
        raise error

    with pytest.raises(type(error)):
        write_bundle(tmp_path / "b", manifest, fail_late)
    assert list(tmp_path.iterdir()) == []


def test_what_would_not_be_read_is_not_written(tmp_path: Path) -> None:
    manifest = make_manifest()

    def with_a_pickle(root: Path) -> None:
        write_small_files(root, manifest)
        (root / "optimizer.pt").write_bytes(pickle.dumps([]))

    def without_golden(root: Path) -> None:
        write_small_files(root, manifest)
        (root / "golden.json").unlink()

    def without_a_head(root: Path) -> None:
        write_adapter_files(root / "members" / "m00")
        write_adapter_files(root / "members" / "m01", (LORA,))
        write_golden(root, [GoldenItem(token_ids=[1], scores=[0.0, 0.0])])

    def without_files(root: Path) -> None:
        pass

    for write_files, error, name in (
        (with_a_pickle, BundleCorrupt, "optimizer.pt"),
        (without_golden, BundleCorrupt, "golden.json"),
        (without_a_head, HeadMissing, "m01"),
        (without_files, BundleCorrupt, "m00/adapter_model.safetensors is missing"),
    ):
        with pytest.raises(error, match=name):
            write_bundle(tmp_path / "b", manifest, write_files)
        assert list(tmp_path.iterdir()) == []


def test_an_existing_target_is_never_touched(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b")
    (tmp_path / "empty").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("b", "empty", "dangling"):
        with pytest.raises(BundleError, match="exists already"):
            make_bundle(tmp_path / name)
    assert read_bundle(tmp_path / "b") == bundle
    with pytest.raises(BundleError, match="no such folder"):
        make_bundle(tmp_path / "missing" / "b")


def test_a_target_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    manifest = make_manifest()

    def write_files(root: Path) -> None:
        write_small_files(root, manifest)
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "mine").write_text("x")

    with pytest.raises(BundleError, match="cannot be made"):
        write_bundle(tmp_path / "b", manifest, write_files)
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["mine"]
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_bundle_is_as_readable_as_any_new_file(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("x")
    folder = tmp_path / "folder"
    folder.mkdir()
    manifest = make_manifest()

    def write_files(root: Path) -> None:
        write_small_files(root, manifest)
        (root / "members" / "m00" / "adapter_model.safetensors").chmod(0o600)

    bundle = write_bundle(tmp_path / "b", manifest, write_files)
    for path in (bundle.path, *bundle.path.rglob("*")):
        wanted = folder if path.is_dir() else plain
        assert path.stat().st_mode == wanted.stat().st_mode, path


def test_everything_is_on_the_disk_before_the_name_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: set[tuple[int, int]] = set()
    before_rename: set[tuple[int, int]] = set()
    real_fsync, real_rename = os.fsync, Path.rename

    def fsync(descriptor: int) -> None:
        synced.add((os.fstat(descriptor).st_dev, os.fstat(descriptor).st_ino))
        real_fsync(descriptor)

    def rename(self: Path, target: Path) -> Path:
        before_rename.update(synced)
        return real_rename(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", rename)
    bundle = make_bundle(tmp_path / "b")
    for path in (bundle.path, *bundle.path.rglob("*")):
        assert (path.stat().st_dev, path.stat().st_ino) in before_rename, path
    assert (tmp_path.stat().st_dev, tmp_path.stat().st_ino) in synced - before_rename


# golden.json


def test_golden_items_survive_exactly(tmp_path: Path) -> None:
    items = [GoldenItem(token_ids=[1, 97, 2], scores=[0.1, -1e-30]), GoldenItem(token_ids=[0], scores=[1 / 3, 2e20])]
    manifest = make_manifest()

    def write_files(root: Path) -> None:
        write_small_files(root, manifest)
        write_golden(root, items)

    assert read_golden(write_bundle(tmp_path / "b", manifest, write_files)) == items


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        "not json",
        '[{"token_ids": [], "scores": [1.0, 2.0]}]',
        '[{"token_ids": [1], "scores": [1.0]}]',
        '[{"token_ids": [-1], "scores": [1.0, 2.0]}]',
        '[{"token_ids": [1], "scores": [1.0, NaN]}]',
    ],
)
def test_golden_of_another_shape_is_refused(tmp_path: Path, text: str) -> None:
    bundle = make_bundle(tmp_path / "b")
    (bundle.path / "golden.json").write_text(text)
    with pytest.raises(BundleCorrupt, match=r"golden\.json"):
        read_golden(bundle)


def test_golden_refuses_to_invent_a_number(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="finite"):
        GoldenItem(token_ids=[1], scores=[float("nan")])
