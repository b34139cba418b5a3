"""Reading a bundle: whole ones pass, and every kind of damage is refused by name."""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest

from quorum_model.bundle import read
from quorum_model.bundle.read import head_tensors, read_bundle, resolve_bundle
from quorum_model.errors import BundleCorrupt, BundleError, BundleFromFuture, HeadMissing
from tests.model.bundle.small_bundle import LORA, forge, make_bundle, make_manifest, write_adapter_files


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "b").path


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("lora", {}),
        ("linear", {}),
        ("lora", {"shared_adapter": "shared_adapter"}),
        (
            "linear",
            {"backbone": {"source": "bundle:backbone", "weights_sha256": "ab" * 32, "tokenizer_sha256": "cd" * 32}},
        ),
    ],
)
def test_a_whole_bundle_is_read_with_its_version(tmp_path: Path, kind: str, changes: dict[str, Any]) -> None:
    written = make_bundle(tmp_path / "b", kind, **changes)
    read_back = read_bundle(tmp_path / "b")
    assert read_back == written
    digest = hashlib.sha256((tmp_path / "b" / "manifest.json").read_bytes()).hexdigest()
    assert read_back.version == digest[:12]
    assert head_tensors(read_back.path, read_back.manifest.members[1]) == ["classifier.weight"]


def test_every_flipped_byte_is_found(bundle: Path) -> None:
    """The first, a middle and the last byte of every file; the manifest's own are its version."""
    files = [path for path in bundle.rglob("*") if path.is_file() and path.name != "manifest.json"]
    assert len(files) == 6
    for path in files:
        content = path.read_bytes()
        for position in (0, len(content) // 2, len(content) - 1):
            flipped = bytearray(content)
            flipped[position] ^= 1
            path.write_bytes(flipped)
            with pytest.raises(BundleCorrupt, match=path.relative_to(bundle).as_posix()):
                read_bundle(bundle)
        path.write_bytes(content)
    read_bundle(bundle)


def test_a_changed_manifest_is_another_version(bundle: Path) -> None:
    before = read_bundle(bundle)
    text = (bundle / "manifest.json").read_text()
    (bundle / "manifest.json").write_text(text.replace('"scale": 1.0', '"scale": 1.5'))
    after = read_bundle(bundle)
    assert after.manifest != before.manifest
    assert after.version != before.version


@pytest.mark.parametrize("name", ["golden.json", "README.md", "members/m01/adapter_model.safetensors"])
def test_a_missing_file_is_refused(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(BundleCorrupt, match=f"{name} is missing"):
        read_bundle(bundle)
    forge(bundle)  # a manifest that does not mention it does not help
    with pytest.raises(BundleCorrupt, match=f"{name} is missing"):
        read_bundle(bundle)


@pytest.mark.parametrize("name", ["extra.json", "members/m02/adapter_config.json", "backbone/.hidden.json"])
def test_an_extra_file_is_refused(bundle: Path, name: str) -> None:
    (bundle / name).parent.mkdir(exist_ok=True)
    (bundle / name).write_text("{}")
    with pytest.raises(BundleCorrupt, match=f"{name} is in the folder but not in manifest.json"):
        read_bundle(bundle)


def test_what_git_and_hubs_put_at_the_top_is_not_the_bundles(bundle: Path) -> None:
    (bundle / ".gitattributes").write_text("*.safetensors filter=lfs")
    (bundle / ".git").mkdir()
    (bundle / ".git" / "objects.bin").write_bytes(b"x")
    read_bundle(bundle)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "heads.pt", "heads.pth", "x.pkl", "x.PKL", "x.ckpt", "model.py", "x.npy", "x.exe"]
)
def test_other_formats_are_refused_even_where_the_hash_is_right(bundle: Path, name: str) -> None:
    (bundle / name).write_bytes(pickle.dumps({"m00": [1.0]}))
    for _ in range(2):
        with pytest.raises(BundleCorrupt, match=f"{name}: (pickled weights can run code|not a kind of file)"):
            read_bundle(bundle)
        forge(bundle)


def test_a_pickle_in_place_of_safetensors_is_refused(bundle: Path) -> None:
    path = bundle / "members" / "m00" / "adapter_model.safetensors"
    whole = path.read_bytes()
    for content in (pickle.dumps({"classifier.weight": [1.0]}), b"", whole[:-1], whole + b"x", whole[:8]):
        path.write_bytes(content)
        forge(bundle)
        with pytest.raises(BundleCorrupt, match=r"members/m00/adapter_model.safetensors is not a valid safetensors"):
            read_bundle(bundle)


def test_every_safetensors_file_is_one_not_only_the_members(tmp_path: Path) -> None:
    path = make_bundle(
        tmp_path / "b",
        backbone={"source": "bundle:backbone", "weights_sha256": "ab" * 32, "tokenizer_sha256": "cd" * 32},
    ).path
    (path / "backbone" / "model.safetensors").write_bytes(pickle.dumps({}))
    forge(path)
    with pytest.raises(BundleCorrupt, match=r"backbone/model.safetensors is not a valid safetensors"):
        read_bundle(path)


def test_a_member_without_a_head_is_refused(bundle: Path) -> None:
    shutil.rmtree(bundle / "members" / "m01")
    write_adapter_files(bundle / "members" / "m01", (LORA,))
    forge(bundle)
    with pytest.raises(HeadMissing, match="m01"):
        read_bundle(bundle)


def test_a_linear_member_without_its_tensors_is_refused(tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "b", "linear").path

    def rename(manifest: dict[str, Any]) -> None:
        manifest["members"][1]["name"] = "m07"

    forge(path, rename)
    with pytest.raises(HeadMissing, match="m07"):
        read_bundle(path)


@pytest.mark.parametrize(
    "name", ["../outside.json", "/etc/outside.json", "a/../golden.json", "./golden.json", "", "a\\b.json"]
)
def test_a_path_that_leads_out_is_refused(bundle: Path, name: str) -> None:
    (bundle.parent / "outside.json").write_text("{}")

    def add(manifest: dict[str, Any]) -> None:
        manifest["files"][name] = hashlib.sha256(b"{}").hexdigest()

    forge(bundle, add)
    with pytest.raises(BundleCorrupt, match="is not a plain path"):
        read_bundle(bundle)


def test_a_link_that_leads_out_is_refused(bundle: Path) -> None:
    outside = bundle.parent / "outside.json"
    for name in ("golden.json", "manifest.json"):
        content = (bundle / name).read_bytes()
        outside.write_bytes(content)
        (bundle / name).unlink()
        (bundle / name).symlink_to(outside)
        with pytest.raises(BundleCorrupt, match=f"{name} is a link that leads out"):
            read_bundle(bundle)
        (bundle / name).unlink()
        (bundle / name).write_bytes(content)
    shutil.move(bundle / "members", bundle.parent / "members")
    (bundle / "members").symlink_to(bundle.parent / "members")
    with pytest.raises(BundleCorrupt, match="members is a link that leads out"):
        read_bundle(bundle)


def test_what_is_no_regular_file_is_refused(bundle: Path) -> None:
    os.mkfifo(bundle / "pipe.json")
    with pytest.raises(BundleCorrupt, match=r"pipe\.json is not a regular file"):
        read_bundle(bundle)


def test_a_hubs_cache_is_links_to_its_blobs(bundle: Path) -> None:
    """The layout of huggingface_hub: models--org--name/{blobs,snapshots/REVISION}."""
    cache = bundle.parent / "models--org--name"
    snapshot = cache / "snapshots" / "0123"
    shutil.copytree(bundle, snapshot)
    (cache / "blobs").mkdir()
    for number, path in enumerate(sorted(path for path in snapshot.rglob("*") if path.is_file())):
        path.rename(cache / "blobs" / f"blob{number}")
        path.symlink_to(cache / "blobs" / f"blob{number}")
    assert read_bundle(snapshot).version == read_bundle(bundle).version


def test_what_is_not_a_bundle_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such folder"):
        read_bundle(tmp_path / "nothing")
    with pytest.raises(BundleError, match=r"it has no manifest\.json"):
        read_bundle(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleError, match="no such folder"):
        read_bundle(tmp_path / "file")


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", BundleCorrupt),
        (b"\xff\xfe", BundleCorrupt),
        (b"[]", BundleCorrupt),
        (b'{"schema_version": 1}', BundleCorrupt),
        (b'{"schema_version": 2}', BundleFromFuture),
        (b'{"metrics": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", BundleCorrupt),
    ],
)
def test_a_manifest_that_cannot_be_read_is_refused(bundle: Path, content: bytes, error: type[BundleError]) -> None:
    (bundle / "manifest.json").write_bytes(content)
    with pytest.raises(error):
        read_bundle(bundle)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_what_is_no_number_is_refused_wherever_it_stands(bundle: Path, number: str) -> None:
    forge(bundle, lambda manifest: manifest.update(metrics={"accuracy": 0.125}))
    text = (bundle / "manifest.json").read_text()
    (bundle / "manifest.json").write_text(text.replace("0.125", number))
    with pytest.raises(BundleCorrupt, match="no number"):
        read_bundle(bundle)


@pytest.mark.parametrize("mode", ["lcb", "uwo"])
def test_a_default_mode_that_needs_a_spread_needs_two_members(mode: str) -> None:
    member = {"name": "m00", "head": "heads.safetensors", "seed": 0}
    assert make_manifest("single", members=[member], default_mode="min").default_mode == "min"
    with pytest.raises(ValueError, match=r"default_mode: .*at least 2 members"):
        make_manifest("single", members=[member], default_mode=mode)


def test_a_shared_adapter_and_a_backbone_must_be_there(bundle: Path) -> None:
    forge(bundle, lambda manifest: manifest.update(shared_adapter="shared_adapter"))
    with pytest.raises(BundleCorrupt, match=r"shared_adapter/adapter_config\.json is missing"):
        read_bundle(bundle)
    forge(
        bundle, lambda manifest: manifest.update(shared_adapter=None) or manifest["backbone"].update(source="bundle:x")
    )
    with pytest.raises(BundleCorrupt, match=r"x/config\.json is missing"):
        read_bundle(bundle)


# where bundles come from


def test_a_folder_is_itself(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_bundle(str(bundle)) == bundle
    monkeypatch.chdir(bundle.parent)
    assert resolve_bundle("b") == Path("b")


@pytest.mark.parametrize(
    "source",
    [
        "./nothing",
        "/nothing/here",
        "a/b/c",
        "nothing",
        "~/nothing-of-this-name/x",
        "",
        "a b/c",
        "a" * 5000,
        "a\0b",
        "~nobody-of-this-name",
    ],
)
def test_what_looks_like_a_path_never_reaches_the_network(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(BundleError, match="no such folder"):
        resolve_bundle(source)


def test_a_hub_id_is_downloaded_at_its_revision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[Any, ...]] = []

    def download(repo: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((repo, revision))
        assert "*.safetensors" in allow_patterns
        assert not any(pattern.endswith((".bin", ".py", "*")) for pattern in allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(read, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    assert resolve_bundle("org/name") == tmp_path
    assert resolve_bundle("org/name@v1.0") == tmp_path
    assert asked == [("org/name", None), ("org/name", "v1.0")]


def test_a_hub_out_of_reach_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(BundleError, match="org/name is not a folder here, and not to be had from the hub"):
        resolve_bundle("org/name")


def test_default_is_the_shipped_one_or_says_that_there_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(read, "files", lambda _: tmp_path)
    with pytest.raises(BundleError, match="no default bundle"):
        resolve_bundle("default")
    (tmp_path / "default_bundle").mkdir()
    assert resolve_bundle("default") == tmp_path / "default_bundle"
