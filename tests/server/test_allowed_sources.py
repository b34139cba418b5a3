"""What a request may have loaded: folders under the allowed roots however they are written, and hub ids."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from quorum_model.bundle.read import Bundle, resolve_bundle
from quorum_model.errors import BundleError
from quorum_server.allowed_sources import SourceNotAllowed, check_backbone, check_source
from tests.server.tiny_bundle import make_fake_bundle


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """roots/in/bundle and secret/bundle, with links between them; the working folder is their parent."""
    for name in ("roots/in/bundle", "secret/bundle", "roots-not/bundle"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "roots" / "out").symlink_to(tmp_path / "secret" / "bundle")
    (tmp_path / "roots" / "up").symlink_to(tmp_path / "secret")
    (tmp_path / "secret" / "home").symlink_to(tmp_path / "roots" / "in")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / "roots"


@pytest.mark.parametrize(
    "source",
    ["{root}/in/bundle", "{root}/in/../in/./bundle", "roots/in/bundle", "./roots/in/bundle", "~/roots/in/bundle",
     "{root}/up/../roots/in/bundle", "{root}/../secret/home/bundle", "{root}/in/bundle/", "//{root}/in/bundle"],
)  # fmt: skip
def test_a_folder_in_a_root_is_its_real_path(root: Path, source: str) -> None:
    given = source.format(root=root)
    assert check_source(given, [root]) == os.path.realpath(os.path.expanduser(given)) == str(root / "in" / "bundle")


@pytest.mark.parametrize(
    "source",
    ["{root}/out", "{root}/up/bundle", "{root}/../secret/bundle", "{root}/in/../../secret/bundle",
     "roots/../secret/bundle", "secret/bundle", "./secret/bundle", "~/secret/bundle", "{root}-not/bundle",
     "../roots-not/bundle", "/", "/etc", "/nowhere/at/all", "..", ".", "", "~nobody-of-this-name/x", "a\0b",
     "x" * 5000, "/" + "x" * 5000],
)  # fmt: skip
def test_everything_else_is_refused_whether_it_exists_or_not(root: Path, source: str) -> None:
    given = source.format(root=root)
    with pytest.raises(SourceNotAllowed) as failure:
        check_source(given, [root])
    assert "secret" not in failure.value.message
    assert failure.value.code == "source_not_allowed"


def test_what_exists_cannot_be_told_from_what_does_not(root: Path) -> None:
    messages = set()
    for source in ("/etc", "/nowhere/at/all"):
        with pytest.raises(SourceNotAllowed) as failure:
            check_source(source, [root])
        messages.add(failure.value.message)
    assert len(messages) == 1


def test_without_roots_no_folder_is_allowed(root: Path) -> None:
    with pytest.raises(SourceNotAllowed, match="--bundle-root"):
        check_source(str(root / "in" / "bundle"), [])


@pytest.mark.parametrize("source", ["default", "org/name", "org/name@main", "org/na-me.v2@refs/pr/1"])
def test_hub_ids_and_the_shipped_bundle_are_allowed(root: Path, source: str) -> None:
    assert check_source(source, []) == source


@pytest.mark.parametrize("source", ["org/name@../../etc", "org/..", "../name", "org/name@a/../b"])
def test_a_hub_id_does_not_climb(root: Path, source: str) -> None:
    with pytest.raises(SourceNotAllowed):
        check_source(source, [root])
    with pytest.raises(BundleError, match="no such folder"):
        resolve_bundle(source)


def test_a_folder_named_like_a_hub_id_is_a_folder(root: Path) -> None:
    """`resolve_bundle` would load it."""
    with pytest.raises(SourceNotAllowed):
        check_source("secret/bundle", [root])
    assert check_source("roots/in", [root]) == str(root / "in")


def test_a_root_may_be_a_link(root: Path) -> None:
    link = root.parent / "link"
    link.symlink_to(root)
    assert check_source(str(link / "in" / "bundle"), [link]) == str(root / "in" / "bundle")


@pytest.mark.parametrize("source", ["bundle:backbone", "package:some-model", "org/model", "{root}/in"])
def test_a_backbone_in_the_bundle_a_package_the_hub_or_a_root(root: Path, source: str, tmp_path: Path) -> None:
    bundle = with_backbone(tmp_path, source.format(root=root))
    check_backbone(bundle, [root], set())


@pytest.mark.parametrize("source", ["{root}/up", "{root}/../secret", "/etc", "/nowhere/at/all", "secret"])
def test_a_backbone_in_any_other_folder_is_refused_unless_it_serves(root: Path, source: str, tmp_path: Path) -> None:
    given = source.format(root=root)
    bundle = with_backbone(tmp_path, given)
    with pytest.raises(SourceNotAllowed, match="backbone") as failure:
        check_backbone(bundle, [root], {"/another"})
    assert "secret" not in failure.value.message
    check_backbone(bundle, [root], {given})


def with_backbone(folder: Path, source: str) -> Bundle:
    bundle = make_fake_bundle(folder / "with-backbone")
    reference = bundle.manifest.backbone.model_copy(update={"source": source})
    return replace(bundle, manifest=bundle.manifest.model_copy(update={"backbone": reference}))
