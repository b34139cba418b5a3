"""Members added, replaced and removed: the new bundle's scores are the members' own, and its files are links."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from quorum_model.bundle.edit import Fitted, put_member, remove_member
from quorum_model.bundle.golden import read_golden
from quorum_model.bundle.manifest import TrainingData
from quorum_model.bundle.read import Bundle, read_bundle
from quorum_model.errors import BundleError, Unsupported
from quorum_model.loading import load_member_scorer
from tests.server.tiny_bundle import encode_by_hand, make_bert_bundle, make_fake_bundle

SEQUENCES = [encode_by_hand("Hi", text) for text in ("a", "Hello there", "What?")]


def data(number: int) -> TrainingData:
    return TrainingData(name=f"d{number}", sha256=f"{number}" * 64, num_pairs=1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("base")
    return make_bert_bundle(
        folder / "base", default_mode="lcb", default_beta=2.0, metrics={"accuracy": 0.6}, licence="MIT",
        training_data=[data(1), data(2)],
    )  # fmt: skip


@pytest.fixture(scope="module")
def donor(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("donor")
    return make_bert_bundle(folder / "donor", seed=50, licence="Apache-2.0", training_data=[data(2), data(3)])


def raw(bundle: Bundle) -> np.ndarray:  # type: ignore[type-arg]
    return load_member_scorer(bundle).score(SEQUENCES).raw


@pytest.mark.parametrize(
    ("name", "donor_name", "rows"),
    [("m01", "m02", ["base 0", "donor 2", "base 2"]), ("m03", "m00", ["base 0", "base 1", "base 2", "donor 0"])],
)
def test_put_gives_each_members_own_scores(
    base: Bundle, donor: Bundle, tmp_path: Path, name: str, donor_name: str, rows: list[str]
) -> None:
    new = put_member(base, tmp_path / "new", name, donor, donor_name, Fitted())
    scores = {"base": raw(base), "donor": raw(donor)}
    expected = [scores[row.split()[0]][int(row.split()[1])] for row in rows]
    # Ranks are padded to the largest of the ensemble: other summation order in fp32.
    np.testing.assert_allclose(raw(new), expected, atol=1e-5)  # the self-test has passed too
    assert [member.name for member in new.manifest.members] == [f"m{k:02d}" for k in range(len(rows))]
    calibrations = {"base": base.manifest.members, "donor": donor.manifest.members}
    for row, member in zip(rows, new.manifest.members, strict=True):
        assert member.calibration == calibrations[row.split()[0]][int(row.split()[1])].calibration


def test_remove_leaves_the_others(base: Bundle, tmp_path: Path) -> None:
    new = remove_member(base, tmp_path / "new", "m01", Fitted())
    np.testing.assert_allclose(raw(new), raw(base)[[0, 2]], atol=1e-5)
    assert [member.name for member in new.manifest.members] == ["m00", "m02"]
    assert not (new.path / "members" / "m01").exists()


def test_what_was_fitted_together_is_dropped_unless_given(base: Bundle, donor: Bundle, tmp_path: Path) -> None:
    plain = put_member(base, tmp_path / "plain", "m03", donor, "m00", Fitted()).manifest
    assert (plain.pair_temperature, plain.default_mode, plain.default_beta) == (1.0, "mean", None)
    assert (plain.reference_stats, plain.metrics) == (None, {})
    given = put_member(base, tmp_path / "given", "m03", donor, "m00", Fitted(0.7, "uwo", 0.3)).manifest
    assert (given.pair_temperature, given.default_mode, given.default_beta) == (0.7, "uwo", 0.3)
    assert given.parent_version == base.version
    assert given.licence == "Apache-2.0 AND MIT"
    assert [one.name for one in given.training_data] == ["d1", "d2", "d3"]


def test_files_are_links_and_the_old_bundles_are_untouched(base: Bundle, donor: Bundle, tmp_path: Path) -> None:
    inside = put_member(base, base.path.with_name("new"), "m01", donor, "m02", Fitted())
    old = base.path / "members" / "m00" / "adapter_model.safetensors"
    assert os.path.samefile(old, inside.path / "members" / "m00" / "adapter_model.safetensors")
    assert not os.path.samefile(base.path / "golden.json", inside.path / "golden.json")
    for bundle in (base, donor):
        assert read_bundle(bundle.path).version == bundle.version


def test_without_links_files_are_copied(base: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    new = remove_member(base, tmp_path / "new", "m01", Fitted())
    assert new.version == read_bundle(new.path).version


def test_heads_on_one_backbone_are_exchanged_too(tmp_path: Path) -> None:
    base, donor = make_fake_bundle(tmp_path / "base"), make_fake_bundle(tmp_path / "donor", num_members=2)
    new = put_member(base, tmp_path / "new", "m00", donor, "m01", Fitted())
    assert [member.calibration.mean for member in new.manifest.members] == [1.0, 1.0, 2.0]
    fewer = remove_member(new, tmp_path / "fewer", "m02", Fitted())
    assert [member.name for member in fewer.manifest.members] == ["m00", "m01"]
    assert [len(item.scores) for item in read_golden(fewer)] == [2]


def test_what_does_not_fit_is_refused_and_nothing_is_left(base: Bundle, donor: Bundle, tmp_path: Path) -> None:
    target = tmp_path / "new"
    other_pooling = make_bert_bundle(tmp_path / "pooling", pooling="mean")
    cases = [
        (lambda: put_member(base, target, "m01", other_pooling, "m00", Fitted()), "another pooling"),
        (lambda: put_member(base, target, "m01", make_fake_bundle(tmp_path / "kind"), "m00", Fitted()), "another kind"),
        (lambda: put_member(base, target, "m01", donor, "m07", Fitted()), "no member m07"),
        (lambda: put_member(base, target, "m100", donor, "m00", Fitted()), "equal width"),
        (lambda: remove_member(base, target, "m09", Fitted()), "no member m09"),
        (lambda: remove_member(base, target, "m01", Fitted(default_mode="lcb", default_beta=-1.0)), "default_beta"),
    ]
    for act, message in cases:
        with pytest.raises(BundleError, match=message):
            act()
        assert not target.exists()
    single = make_fake_bundle(tmp_path / "single", num_members=1, kind="single")
    with pytest.raises(Unsupported, match="single"):
        remove_member(single, target, "m00", Fitted())


def test_the_last_member_stays(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="at least 1"):
        remove_member(make_fake_bundle(tmp_path / "one", num_members=1), tmp_path / "none", "m00", Fitted())
