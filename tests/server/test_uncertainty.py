"""Disagreement and drift against brute force and scipy; tallies against numpy's histogram."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau, ks_2samp

from quorum_client.types import ItemError
from quorum_model.bundle.manifest import Manifest, MemberCalibration, MemberEntry, ReferenceStats
from quorum_model.scoring import PreparedComparisons, PreparedRewards, Rule
from quorum_model.scoring.prepare import Encoded
from quorum_server.tallies import DRIFT_WINDOW, MIN_DRIFT_ITEMS, SCORE_BUCKETS, STD_BUCKETS, Histogram, VersionTally
from quorum_server.uncertainty import (
    MAX_COMPARED,
    CalibratedTexts,
    calibrate_texts,
    has_histogram,
    rank_disagreement,
    score_drift,
)

REFERENCE = ReferenceStats(
    std_quantiles={"0.5": 0.2, "0.99": 1.0}, score_edges=[-2.0, -1.0, 0.0, 1.0, 2.0], score_counts=[10, 20, 30, 40]
)


def texts(scores: object, groups: list[int]) -> CalibratedTexts:
    return CalibratedTexts(np.array(scores, np.float64), np.array(groups, np.int64))


def disagreement_by_hand(scores: np.ndarray) -> float:
    """Of one group (K, n): every pair of members, every pair of candidates, one at a time."""
    distances = []
    for one, other in itertools.combinations(scores, 2):
        for i, j in itertools.combinations(range(len(one)), 2):
            a, b = np.sign(one[i] - one[j]), np.sign(other[i] - other[j])
            distances.append(1.0 if a * b < 0 else 0.5 if a != b else 0.0)
    return float(np.mean(distances))


@given(
    st.integers(2, 5),
    st.lists(st.integers(1, 6), min_size=1, max_size=5),
    st.randoms(use_true_random=False),
    st.sampled_from([2, 1000]),
)
def test_disagreement_is_that_of_brute_force(num_members: int, sizes: list[int], random: object, values: int) -> None:
    """Groups of several sizes, mixed up; with two values there are many ties."""
    groups = [group for group, size in enumerate(sizes) for _ in range(size)]
    random.shuffle(groups)  # type: ignore[attr-defined]
    scores = np.array([[random.randrange(values) for _ in groups] for _ in range(num_members)], float)  # type: ignore[attr-defined]
    expected = [
        disagreement_by_hand(scores[:, np.array(groups) == group]) for group, size in enumerate(sizes) if size > 1
    ]
    assert sorted(rank_disagreement(texts(scores, groups))) == pytest.approx(sorted(expected))


def test_without_ties_disagreement_is_kendalls_tau() -> None:
    scores = np.random.default_rng(0).normal(size=(4, 12))
    taus = [kendalltau(one, other).statistic for one, other in itertools.combinations(scores, 2)]
    (found,) = rank_disagreement(texts(scores, [0] * 12))
    assert found == pytest.approx((1 - np.mean(taus)) / 2)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [([[1, 2, 3], [2, 4, 9]], 0.0), ([[1, 2, 3], [3, 2, 1]], 1.0), ([[1, 1], [1, 2]], 0.5), ([[1, 1], [2, 2]], 0.0)],
)
def test_disagreement_of_plain_cases(scores: list[list[float]], expected: float) -> None:
    assert rank_disagreement(texts(scores, [7] * len(scores[0]))).tolist() == [expected]


def test_nothing_to_disagree_about() -> None:
    assert rank_disagreement(texts([[1, 2, 3]], [0, 0, 0])).size == 0  # one member
    assert rank_disagreement(texts([[1, 2], [2, 1]], [0, 1])).size == 0  # no two of a prompt
    assert rank_disagreement(texts(np.empty((3, 0)), [])).size == 0


def test_of_a_large_group_the_first_candidates_are_compared() -> None:
    scores = np.random.default_rng(1).normal(size=(3, MAX_COMPARED + 40))
    (found,) = rank_disagreement(texts(scores, [0] * scores.shape[1]))
    assert found == pytest.approx(disagreement_by_hand(scores[:, :MAX_COMPARED]))


@given(st.lists(st.floats(-4, 4), min_size=1, max_size=200))
def test_drift_is_the_two_sample_statistic_of_binned_scores(means: list[float]) -> None:
    """Each score moved to the middle of its bin, the reference's counts as a sample there."""
    edges = np.array(REFERENCE.score_edges)
    centres = np.array([-9, -1.5, -0.5, 0.5, 1.5, 9])
    # numpy counts the last edge into the last bin, as the reference was made.
    bins = np.where(np.array(means) == edges[-1], 4, np.searchsorted(edges, means, side="right"))
    reference = np.repeat(centres[1:5], REFERENCE.score_counts)
    assert score_drift(REFERENCE, means) == pytest.approx(ks_2samp(reference, centres[bins]).statistic, abs=1e-12)


@pytest.mark.parametrize(
    "changes",
    [
        {"score_edges": [], "score_counts": []},
        {"score_edges": [0.0, 1.0], "score_counts": [1, 2]},
        {"score_edges": [0.0, 0.0, 1.0], "score_counts": [1, 2]},
        {"score_edges": [0.0, 1.0], "score_counts": [0]},
        {"score_edges": [0.0, 1.0, 2.0], "score_counts": [3, -1]},
    ],
)
def test_a_reference_without_a_histogram(changes: dict[str, list[float]]) -> None:
    assert has_histogram(REFERENCE)
    assert not has_histogram(REFERENCE.model_copy(update=changes))
    assert not has_histogram(None)
    tally = VersionTally(REFERENCE.model_copy(update=changes))
    tally.add("", texts(np.zeros((2, MIN_DRIFT_ITEMS)), [0] * MIN_DRIFT_ITEMS), np.empty(0))
    assert tally.drift() is None


@given(st.lists(st.one_of(st.floats(-30, 30), st.sampled_from(SCORE_BUCKETS))))
def test_a_histogram_counts_as_prometheus_does(values: list[float]) -> None:
    histogram = Histogram(SCORE_BUCKETS)
    half = len(values) // 2
    histogram.add(np.array(values[:half]))
    histogram.add(np.array(values[half:]))
    expected = [float(sum(value <= edge for value in values)) for edge in SCORE_BUCKETS]
    assert [count for _, count in histogram.cumulative()] == [*expected, float(len(values))]
    assert [name for name, _ in histogram.cumulative()] == [*map(str, SCORE_BUCKETS), "+Inf"]
    assert histogram.sum == pytest.approx(sum(values))


def test_drift_is_of_the_most_recent_items() -> None:
    tally = VersionTally(REFERENCE)
    draw = np.random.default_rng(2)
    old, new = draw.normal(-1, 1, DRIFT_WINDOW), draw.normal(1, 1, DRIFT_WINDOW - 100)
    for start in range(0, len(old), 64):
        batch = old[start : start + 64]
        tally.add("", texts([batch, batch], list(range(len(batch)))), np.empty(0))
    assert tally.drift() == pytest.approx(score_drift(REFERENCE, old))
    tally.add("", texts([new, new], list(range(len(new)))), np.empty(0))
    assert tally.drift() == pytest.approx(score_drift(REFERENCE, np.concatenate([old[-100:], new])))


def test_too_few_items_have_no_drift() -> None:
    tally = VersionTally(REFERENCE)
    tally.add("", texts(np.zeros((2, MIN_DRIFT_ITEMS - 1)), [0] * (MIN_DRIFT_ITEMS - 1)), np.empty(0))
    assert tally.drift() is None
    tally.add("", texts(np.zeros((2, 1)), [0]), np.empty(0))
    assert tally.drift() == score_drift(REFERENCE, [0.0])


def test_a_tally_holds_what_numpy_finds() -> None:
    scores = np.random.default_rng(3).normal(0, 1.2, (3, 500))
    tally = VersionTally(REFERENCE)
    tally.add("a", texts(scores[:, :200], list(range(200))), np.array([0.5, 1.5]))
    tally.add("a", texts(scores[:, 200:], list(range(300))), np.array([0.5]))
    tally.add("b", texts(scores[:, :1], [0]), np.empty(0))
    own, spread = tally.runs["a"], scores.std(axis=0, ddof=1)
    assert own.std.sum == pytest.approx(spread.sum())
    assert own.std.counts.tolist() == np.histogram(spread, [-np.inf, *STD_BUCKETS, np.inf])[0].tolist()
    assert own.score.sum == pytest.approx(scores.mean(axis=0).sum())
    assert (own.num_checked, own.num_exceeded) == (500, int((spread > 1.0).sum()))
    assert 0 < own.num_exceeded < 500
    assert (own.penalty.sum, own.penalty.counts.sum()) == (2.5, 3)
    assert tally.runs["b"].num_checked == 1


@pytest.mark.parametrize("reference", [None, REFERENCE.model_copy(update={"std_quantiles": {"0.5": 1.0}})])
def test_without_a_yardstick_no_std_is_held_against_it(reference: ReferenceStats | None) -> None:
    tally = VersionTally(reference)
    tally.add("", texts([[0.0], [9.0]], [0]), np.empty(0))
    assert (tally.runs[""].num_checked, tally.runs[""].std.counts.sum()) == (0, 1)


def test_one_member_has_scores_and_no_spread() -> None:
    tally = VersionTally(REFERENCE)
    tally.add("", texts([[1.0, 2.0]], [0, 0]), np.empty(0))
    own = tally.runs[""]
    assert (own.score.counts.sum(), own.std.counts.sum(), own.disagreement.counts.sum(), own.num_checked) == (
        2,
        0,
        0,
        0,
    )


MANIFEST = Manifest.model_construct(
    members=[
        MemberEntry(name=f"m0{k}", head="h", seed=k, calibration=MemberCalibration(mean=k, scale=k + 1)) for k in (0, 1)
    ]
)
RAW = np.array([[10, 20, 30, np.nan], [1, 2, np.inf, 4]], np.float32)
FAILED = Encoded(error=ItemError(code="empty_text", message="it is empty"))


def test_texts_are_calibrated_and_neither_centred_nor_without_duplicates() -> None:
    items = [Encoded(0), Encoded(1), FAILED, Encoded(1), Encoded(2), Encoded(3)]
    rule = Rule("lcb", 1.0, normalize=False, center="reference")
    prepared = PreparedRewards([[1]] * 4, 9, rule, items, [5, 6, 6, 6, 5, 5], references=[Encoded(2)] * 6)
    found = calibrate_texts(MANIFEST, prepared, RAW)
    assert found.scores.tolist() == [[10, 20, 20], [0, 0.5, 0.5]]
    assert found.groups.tolist() == [5, 6, 6]


def test_both_sides_of_a_pair_are_one_group() -> None:
    pairs = [(Encoded(0), Encoded(1)), (Encoded(1), FAILED), (Encoded(3), Encoded(0))]
    found = calibrate_texts(MANIFEST, PreparedComparisons([[1]] * 4, 9, pairs, is_list=True), RAW)
    assert found.scores[0].tolist() == [10, 20, 20, 10]
    assert found.groups.tolist() == [0, 0, 1, 2]


def test_no_text_with_a_score() -> None:
    rule = Rule("mean", None, normalize=True, center="none")
    prepared = PreparedRewards([[1]], 1, rule, [FAILED, Encoded(3)], [0, 1], references=[])
    assert calibrate_texts(MANIFEST, prepared, RAW).scores.shape == (2, 0)
    assert calibrate_texts(MANIFEST, replace(prepared, items=[], groups=[]), RAW).scores.shape == (2, 0)
