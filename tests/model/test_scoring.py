"""The pure halves of scoring: every rule of /score, /rank and /compare over hand-made raw scores.

The fake encoder gives one id a character, so that tokens can be counted by hand.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorum_client.errors import InternalError, InvalidRequest
from quorum_client.modes import MODES, aggregate
from quorum_client.types import (
    CompareListResponse,
    CompareRequest,
    CompareResponse,
    RankRequest,
    RankResponse,
    ScoreItem,
    ScoreRequest,
    ScoreResponse,
)
from quorum_model.bundle.manifest import (
    BackboneRef,
    Manifest,
    MemberCalibration,
    MemberEntry,
    PromptFormat,
    fingerprint_of,
)
from quorum_model.errors import ItemRejected
from quorum_model.scoring import (
    ScoringContext,
    finish_compare,
    finish_rank,
    finish_score,
    prepare_compare,
    prepare_rank,
    prepare_score,
)

MEANS, SCALES, TAU = [0.5, -1.0, 2.0], [2.0, 0.5, 4.0], 0.7
CLOSE = 1e-12  # float64, a handful of operations on numbers of order 1


@dataclasses.dataclass
class _Encoded:
    ids: list[int]
    truncated: bool


class FakeEncoder:
    """One id a character, cut to 40; blank text is refused."""

    def __init__(self) -> None:
        self.truncate_seen: list[Any] = []

    def encode(self, item: ScoreItem, truncate: Any = None) -> _Encoded:
        self.truncate_seen.append(truncate)
        if item.token_ids is not None:
            return _Encoded(item.token_ids, False)
        prompt = item.prompt or ""
        turns = prompt if isinstance(prompt, str) else "".join(turn.content for turn in prompt)
        response = item.text if item.text is not None else item.response
        assert response is not None
        if not response.strip():
            raise ItemRejected("empty_text", "the text is empty or blank")
        ids = [ord(character) for character in f"{turns}|{response}"]
        return _Encoded(ids[:40], len(ids) > 40)


def make_context(num_members: int = 3, **changes: Any) -> ScoringContext:
    members = [
        MemberEntry(name=f"m{k:02d}", head="heads.safetensors", seed=k,
                    calibration=MemberCalibration(mean=MEANS[k], scale=SCALES[k]))
        for k in range(num_members)
    ]  # fmt: skip
    values: dict[str, Any] = {
        "name": "hand",
        "kind": "linear",
        "backbone": BackboneRef(source="org/base", weights_sha256="0" * 64, tokenizer_sha256="0" * 64),
        "pooling": "first",
        "max_length": 40,
        "bos_ids": [],
        "eos_ids": [],
        "prompt_format": PromptFormat(template="t", origin="plain", fingerprint=fingerprint_of("t", [], [])),
        "members": members,
        "pair_temperature": TAU,
    }
    return ScoringContext(Manifest(**(values | changes)), "0123456789ab", FakeEncoder())  # type: ignore[arg-type]


def pair(response: str, prompt: str = "p", **more: Any) -> ScoreItem:
    return ScoreItem(prompt=prompt, response=response, **more)


def raw_of(sequences: list[list[int]], num_members: int = 3) -> np.ndarray:
    """Distinct numbers for each member and each sequence, in the engine's float32."""
    rows = [[math.sin((k + 1) * sum(ids) + k) * (k + 1) for ids in sequences] for k in range(num_members)]
    return np.array(rows, dtype=np.float32)


def calibrated(texts: list[str], num_members: int = 3) -> np.ndarray:
    raw = raw_of([[ord(character) for character in text] for text in texts], num_members)
    return np.array(
        [[(float(raw[k, b]) - MEANS[k]) / SCALES[k] for b in range(len(texts))] for k in range(num_members)]
    )


def score(request: ScoreRequest, context: ScoringContext | None = None, raw: np.ndarray | None = None) -> ScoreResponse:
    context = context or make_context()
    prepared = prepare_score(context, request)
    raw = raw_of(prepared.sequences, len(context.manifest.members)) if raw is None else raw
    return finish_score(context, prepared, raw, computed_tokens=5, response_id="r1")


def rank(request: RankRequest, context: ScoringContext | None = None, raw: np.ndarray | None = None) -> RankResponse:
    context = context or make_context()
    prepared = prepare_rank(context, request)
    raw = raw_of(prepared.sequences, len(context.manifest.members)) if raw is None else raw
    return finish_rank(context, prepared, raw, computed_tokens=5, response_id="r1")


def compare(
    request: CompareRequest, context: ScoringContext | None = None, raw: np.ndarray | None = None
) -> CompareResponse | CompareListResponse:
    context = context or make_context()
    prepared = prepare_compare(context, request)
    raw = raw_of(prepared.sequences, len(context.manifest.members)) if raw is None else raw
    return finish_compare(context, prepared, raw, computed_tokens=5, response_id="r1")


# /score


@pytest.mark.parametrize("mode", MODES)
def test_members_are_calibrated_each_by_its_own_and_aggregated(mode: Any) -> None:
    answer = score(ScoreRequest(inputs=[pair("a"), pair("bcd"), ScoreItem(text="xy")], mode=mode))
    expected = calibrated(["p|a", "p|bcd", "|xy"])
    assert answer.mode == mode
    for b, result in enumerate(answer.results):
        assert result.members == pytest.approx(expected[:, b], rel=CLOSE)
        assert result.mean == pytest.approx(expected[:, b].mean(), rel=CLOSE)
        assert result.std == pytest.approx(np.std(expected[:, b], ddof=1), rel=CLOSE)
        assert result.score == pytest.approx(float(aggregate(expected[:, b], mode)), rel=CLOSE)
        assert result.error is None


def test_answer_names_ensemble_rule_and_usage() -> None:
    answer = score(ScoreRequest(inputs=[pair("a"), pair("bcd")], mode="lcb", beta=2.0))
    assert (answer.id, answer.ensemble.name, answer.ensemble.version) == ("r1", "hand", "0123456789ab")
    assert (answer.mode, answer.beta, answer.center) == ("lcb", 2.0, "none")
    assert [result.num_tokens for result in answer.results] == [3, 5]
    assert (answer.usage.prompt_tokens, answer.usage.computed_tokens) == (8, 5)


def test_normalize_false_leaves_the_engines_numbers() -> None:
    answer = score(ScoreRequest(inputs=[pair("a")], normalize=False))
    assert answer.results[0].members == [float(value) for value in raw_of([[ord(c) for c in "p|a"]])[:, 0]]


def test_equal_sequences_are_computed_once_and_counted_each() -> None:
    request = ScoreRequest(inputs=[pair("a"), pair("b"), pair("a"), ScoreItem(token_ids=[ord(c) for c in "p|a"])])
    prepared = prepare_score(make_context(), request)
    assert [len(ids) for ids in prepared.sequences] == [3, 3]
    assert prepared.prompt_tokens == 12
    results = score(request).results
    assert results[0] == results[2] == results[3]
    assert results[0] != results[1]


def test_truncation_is_asked_for_and_reported() -> None:
    context = make_context()
    answer = score(ScoreRequest(inputs=[pair("a" * 60), pair("a")], truncate="right"), context)
    assert [result.truncated for result in answer.results] == [True, False]
    assert context.encoder.truncate_seen == ["right", "right"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("default_mode", "default_beta", "mode", "beta", "expected"),
    [
        ("mean", None, None, None, ("mean", None)),
        ("lcb", 3.0, None, None, ("lcb", 3.0)),
        ("lcb", 3.0, "lcb", None, ("lcb", 3.0)),
        ("lcb", 3.0, None, 0.25, ("lcb", 0.25)),
        ("lcb", 3.0, "uwo", None, ("uwo", 0.5)),  # 3 was fitted for lcb, not for uwo
        ("lcb", None, None, None, ("lcb", 1.0)),
        ("lcb", 3.0, "mean", None, ("mean", None)),
        ("mean", None, "mean", 2.0, ("mean", None)),
    ],
)
def test_defaults_of_mode_and_beta(
    default_mode: Any, default_beta: float | None, mode: Any, beta: float | None, expected: tuple[str, float | None]
) -> None:
    context = make_context(default_mode=default_mode, default_beta=default_beta)
    answer = score(ScoreRequest(inputs=[pair("a")], mode=mode, beta=beta), context)
    assert (answer.mode, answer.beta) == expected
    wanted = aggregate(np.array(answer.results[0].members), *expected)
    assert answer.results[0].score == pytest.approx(float(wanted), rel=CLOSE)


def test_one_member_has_no_std_and_no_mode_that_needs_it() -> None:
    context = make_context(1)
    result = score(ScoreRequest(inputs=[pair("a")], mode="median"), context).results[0]
    assert result.std is None
    assert result.members == [pytest.approx(result.score)]
    for mode in ("lcb", "uwo"):
        with pytest.raises(InvalidRequest, match="at least 2 members"):
            prepare_score(context, ScoreRequest(inputs=[pair("a")], mode=mode))


def test_a_rejected_item_has_an_error_and_its_neighbours_their_scores() -> None:
    answer = score(ScoreRequest(inputs=[pair(" "), pair("a")]))
    bad, good = answer.results
    assert bad.error is not None
    assert (bad.error.code, bad.score, bad.mean, bad.std, bad.members) == ("empty_text", None, None, None, None)
    assert good.members == pytest.approx(calibrated(["p|a"])[:, 0], rel=CLOSE)


def test_a_request_in_which_nothing_can_be_scored_fails_as_its_first_item() -> None:
    for prepare, request in (
        (prepare_score, ScoreRequest(inputs=[pair(" "), pair("")])),
        (prepare_rank, RankRequest(prompt="p", candidates=["", " "])),
        (prepare_compare, CompareRequest(prompt="p", a="x", b=" ")),
        (prepare_compare, CompareRequest.model_validate({"pairs": [{"prompt": "p", "a": "", "b": "x"}]})),
    ):
        with pytest.raises(InvalidRequest, match="empty or blank") as caught:
            prepare(make_context(), request)  # type: ignore[operator]
        assert (caught.value.code, caught.value.status) == ("empty_text", 422)
    assert InvalidRequest.code == "invalid_request"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("center", ["none", "group"])
def test_a_score_that_is_not_finite_is_an_error_and_never_a_number(bad: float, mode: Any, center: Any) -> None:
    request = ScoreRequest(inputs=[pair("a"), pair("b"), pair("c")], mode=mode, center=center)
    raw = raw_of(prepare_score(make_context(), request).sequences)
    raw[1, 1] = bad
    result = score(request, raw=raw).results[1]
    assert result.error is not None
    assert result.error.code == "non_finite_score"
    assert (result.score, result.mean, result.std, result.members) == (None, None, None, None)
    assert result.num_tokens == 3
    others = score(request, raw=raw).results
    without = score(ScoreRequest(inputs=[pair("a"), pair("c")], mode=mode, center=center), raw=raw[:, [0, 2]]).results
    assert [others[0], others[2]] == without


def test_a_reward_that_overflows_is_an_error() -> None:
    answer = score(ScoreRequest(inputs=[pair("a"), pair("b")], mode="lcb", beta=1.7e308 * 1.05))
    assert all(result.error is not None and result.error.code == "non_finite_score" for result in answer.results)


def test_all_not_finite_is_still_an_answer() -> None:
    answer = score(ScoreRequest(inputs=[pair("a"), pair("b")]), raw=np.full((3, 2), np.nan, np.float32))
    assert all(result.error is not None for result in answer.results)


def test_raw_scores_of_another_shape_are_a_defect() -> None:
    prepared = prepare_score(make_context(), ScoreRequest(inputs=[pair("a"), pair("b")]))
    for shape in ((2, 2), (3, 1), (3,)):
        with pytest.raises(InternalError, match="shape"):
            finish_score(make_context(), prepared, np.zeros(shape), computed_tokens=0, response_id="r")


# centring


def test_group_centring_subtracts_each_members_mean_over_the_prompt() -> None:
    inputs = [pair("a", "p"), pair("b", "q"), pair("cc", "p"), pair("dd", "q"), pair("e", "p")]
    answer = score(ScoreRequest(inputs=inputs, center="group", mode="lcb"))
    members = calibrated(["p|a", "q|b", "p|cc", "q|dd", "p|e"])
    for rows in ([0, 2, 4], [1, 3]):
        for b in rows:
            expected = members[:, b] - members[:, rows].mean(axis=1)
            assert answer.results[b].members == pytest.approx(expected, abs=1e-12)
            assert answer.results[b].std == pytest.approx(np.std(expected, ddof=1), abs=1e-12)
    assert answer.center == "group"


def test_a_prompt_as_a_string_and_as_one_user_turn_is_the_same_group() -> None:
    turns = [{"role": "user", "content": "p"}]
    inputs = [pair("a", "p"), ScoreItem.model_validate({"prompt": turns, "response": "b"})]
    assert all(result.error is None for result in score(ScoreRequest(inputs=inputs, center="group")).results)
    other = [
        pair("a", "p"),
        ScoreItem.model_validate({"prompt": [{"role": "system", "content": "p"}], "response": "b"}),
    ]
    with pytest.raises(InvalidRequest, match="at least 2"):
        score(ScoreRequest(inputs=other, center="group"))


def test_texts_and_token_ids_are_grouped_by_what_they_say() -> None:
    inputs = [
        ScoreItem(text="a", group="p"),
        ScoreItem(text="b", group="q"),
        ScoreItem(text="cc", group="p"),
        ScoreItem(text="dd", group="q"),
        pair("e", "p"),  # a prompt of that name is not that group
        pair("f", "p"),
    ]
    answer = score(ScoreRequest(inputs=inputs, center="group"))
    members = calibrated(["|a", "|b", "|cc", "|dd", "p|e", "p|f"])
    for rows in ([0, 2], [1, 3], [4, 5]):
        for b in rows:
            expected = members[:, b] - members[:, rows].mean(axis=1)
            assert answer.results[b].members == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    "inputs",
    [
        [pair("a")],
        [pair("a"), pair("b"), pair("c", "q")],
        [pair("a"), pair("b"), ScoreItem(text="t")],
        [pair("a", "p"), pair("b", "p"), ScoreItem(text="t", group="p")],
    ],
)
def test_group_centring_needs_two_of_every_prompt(inputs: list[ScoreItem]) -> None:
    with pytest.raises(InvalidRequest, match="center 'group'"):
        prepare_score(make_context(), ScoreRequest(inputs=inputs, center="group"))


def test_the_last_of_a_group_that_can_be_scored_has_no_centred_score() -> None:
    answer = score(ScoreRequest(inputs=[pair("a"), pair(" "), pair("c", "q"), pair("d", "q")], center="group"))
    codes = [result.error and result.error.code for result in answer.results]
    assert codes == ["group_too_small", "empty_text", None, None]


def test_reference_centring_subtracts_each_members_score_of_the_reference() -> None:
    inputs = [pair("a", reference="r"), pair("bb", reference="r"), pair("c", "q", reference="ss")]
    prepared = prepare_score(make_context(), ScoreRequest(inputs=inputs, center="reference"))
    assert len(prepared.sequences) == 5
    assert prepared.prompt_tokens == 3 + 4 + 3 + 3 + 4  # the shared reference is encoded once
    answer = score(ScoreRequest(inputs=inputs, center="reference"))
    own, references = calibrated(["p|a", "p|bb", "q|c"]), calibrated(["p|r", "p|r", "q|ss"])
    for b in range(3):
        assert answer.results[b].members == pytest.approx(own[:, b] - references[:, b], abs=1e-12)
    raw = score(ScoreRequest(inputs=inputs, center="reference", normalize=False)).results[1].members
    assert raw == pytest.approx((own[:, 1] - references[:, 1]) * SCALES, abs=1e-12)


def test_reference_centring_needs_a_reference_that_can_be_scored() -> None:
    with pytest.raises(InvalidRequest, match="reference"):
        prepare_score(make_context(), ScoreRequest(inputs=[pair("a", reference="r"), pair("b")], center="reference"))
    with pytest.raises(InvalidRequest, match="prompt and a response"):
        prepare_score(make_context(), ScoreRequest(inputs=[ScoreItem(text="t")], center="reference"))
    inputs = [pair("a", reference=" "), pair("b", reference="r")]
    error = score(ScoreRequest(inputs=inputs, center="reference")).results[0].error
    assert error is not None
    assert (error.code, error.message) == ("empty_text", "reference: the text is empty or blank")
    request = ScoreRequest(inputs=[pair("a", reference="r")], center="reference")
    raw = raw_of(prepare_score(make_context(), request).sequences)
    for column in (0, 1):
        broken = raw.copy()
        broken[2, column] = np.nan
        result = score(request, raw=broken).results[0]
        assert result.error is not None
        assert result.error.code == "non_finite_score"


def test_references_are_neither_needed_nor_computed_without_their_centring() -> None:
    prepared = prepare_score(make_context(), ScoreRequest(inputs=[pair("a", reference="r")]))
    assert len(prepared.sequences) == 1


# /rank


def test_rank_orders_by_centred_score_with_ties_in_request_order() -> None:
    candidates = ["a", "b", "a", "dd", "a"]
    answer = rank(RankRequest(prompt="p", candidates=candidates, mode="lcb"))
    members = calibrated([f"p|{text}" for text in candidates])
    expected = aggregate(members - members.mean(axis=1, keepdims=True), "lcb")
    assert [result.score for result in answer.results] == pytest.approx(expected, abs=1e-12)
    assert answer.order == sorted(range(5), key=lambda b: (-round(expected[b], 9), b))
    assert answer.best == answer.order[0]
    assert answer.center == "group"
    places = [answer.order.index(b) for b in (0, 2, 4)]
    assert places == sorted(places)


def test_rank_puts_what_has_no_score_last() -> None:
    request = RankRequest(prompt="p", candidates=["a", " ", "c", "", "e"])
    raw = raw_of(prepare_rank(make_context(), request).sequences)
    raw[0, 1] = np.nan  # candidate "c"
    answer = rank(request, raw=raw)
    assert answer.order[2:] == [1, 2, 3]
    assert set(answer.order) == {0, 1, 2, 3, 4}
    assert answer.results[answer.best].score is not None


def test_rank_of_one_candidate_is_not_centred() -> None:
    answer = rank(RankRequest(prompt="p", candidates=["a"]))
    assert (answer.center, answer.best, answer.order) == ("none", 0, [0])
    assert answer.results[0].members == pytest.approx(calibrated(["p|a"])[:, 0], rel=CLOSE)
    with pytest.raises(InvalidRequest, match="center 'group'"):
        rank(RankRequest(prompt="p", candidates=["a"], center="group"))


def test_rank_of_one_candidate_that_can_be_scored_has_a_best_unless_group_was_asked_for() -> None:
    answer = rank(RankRequest(prompt="p", candidates=[" ", "a"]))
    assert (answer.center, answer.best, answer.order) == ("none", 1, [1, 0])
    with pytest.raises(InvalidRequest):
        rank(RankRequest(prompt="p", candidates=[" ", "a"], center="group"))


def test_rank_without_any_score_is_an_error() -> None:
    for request in (
        RankRequest(prompt="p", candidates=["a", "b"]),
        RankRequest(prompt="p", candidates=["a", " ", "b"], center="group"),
    ):
        with pytest.raises(InternalError, match="not finite"):
            rank(request, raw=np.full((3, 2), np.nan, np.float32))


def test_rank_without_any_score_for_an_absurd_beta_is_the_requests_error() -> None:
    raw = np.array([[0, 90], [50, 0], [90, 30]], np.float32)  # beta * std is beyond double precision
    with pytest.raises(InvalidRequest) as caught:
        rank(RankRequest(prompt="p", candidates=["a", "b"], mode="lcb", beta=1e308, center="none"), raw=raw)
    assert caught.value.code == "non_finite_score"


def test_rank_by_a_reference() -> None:
    answer = rank(RankRequest(prompt="p", candidates=["a", "bb"], reference="r", center="reference"))
    members = calibrated(["p|a", "p|bb"]) - calibrated(["p|r"])
    assert [result.members for result in answer.results] == [pytest.approx(members[:, b], abs=1e-12) for b in (0, 1)]
    with pytest.raises(InvalidRequest, match="reference"):
        rank(RankRequest(prompt="p", candidates=["a", "bb"], center="reference"))


# /compare


def test_compare_by_hand() -> None:
    answer = compare(CompareRequest(prompt="p", a="x", b="yy"))
    assert isinstance(answer, CompareResponse)
    members = calibrated(["p|x", "p|yy"])
    margins = members[:, 0] - members[:, 1]
    assert answer.members == pytest.approx(margins, rel=CLOSE)
    assert answer.margin is not None
    assert answer.margin.mean == pytest.approx(margins.mean(), rel=CLOSE)
    assert answer.margin.std == pytest.approx(np.std(margins, ddof=1), rel=CLOSE)
    assert answer.probability == pytest.approx(1 / (1 + math.exp(-TAU * margins.mean())), rel=CLOSE)
    assert answer.usage.prompt_tokens == 7


def test_compare_lists_answer_each_pair_and_its_mirror() -> None:
    pairs = [
        {"prompt": "p", "a": "x", "b": "yy"},
        {"prompt": "p", "a": "yy", "b": "x"},
        {"prompt": "p", "a": "x", "b": "x"},
    ]
    answer = compare(CompareRequest.model_validate({"pairs": pairs}))
    assert isinstance(answer, CompareListResponse)
    first, mirror, same = answer.results
    assert first.probability is not None
    assert mirror.probability == pytest.approx(1 - first.probability, abs=1e-12)
    assert (same.probability, same.members) == (0.5, [0.0, 0.0, 0.0])


@given(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=3))
def test_compare_does_not_see_what_a_member_adds_to_a_prompt(offsets: list[float]) -> None:
    request = CompareRequest(prompt="p", a="x", b="yy")
    raw = raw_of(prepare_compare(make_context(), request).sequences).astype(np.float64)
    plain = compare(request, raw=raw)
    shifted = compare(request, raw=raw + np.array(offsets)[:, None])
    assert isinstance(plain, CompareResponse)
    assert isinstance(shifted, CompareResponse)
    assert shifted.probability == pytest.approx(plain.probability, abs=1e-9)  # offsets of 1e3 cost 1e-13 each
    assert shifted.members == pytest.approx(plain.members, abs=1e-9)


def test_compare_errors_stay_with_their_pair() -> None:
    pairs = [
        {"prompt": "p", "a": "x", "b": " "},
        {"prompt": "p", "a": "x", "b": "z"},
        {"prompt": "p", "a": "n", "b": "z"},
    ]
    request = CompareRequest.model_validate({"pairs": pairs})
    context = make_context()
    raw = raw_of(prepare_compare(context, request).sequences)
    raw[2, 2] = np.nan  # "n"
    answer = compare(request, context, raw)
    assert isinstance(answer, CompareListResponse)
    rejected, good, broken = answer.results
    assert rejected.error is not None
    assert (rejected.error.code, rejected.error.message) == ("empty_text", "b: the text is empty or blank")
    assert good.error is None
    assert broken.error is not None
    assert broken.error.code == "non_finite_score"
    assert (broken.probability, broken.margin, broken.members) == (None, None, None)
    for bad in (np.nan, np.inf):  # inf - inf must not even warn
        with pytest.raises(InternalError, match="not finite"):
            compare(CompareRequest(prompt="p", a="n", b="z"), raw=np.full((3, 2), bad, np.float32))


def test_compare_with_one_member_has_no_std() -> None:
    answer = compare(CompareRequest(prompt="p", a="x", b="yy"), make_context(1))
    assert isinstance(answer, CompareResponse)
    assert answer.margin is not None
    assert answer.margin.std is None
    assert answer.probability is not None


def test_compare_says_when_a_side_was_cut() -> None:
    answer = compare(CompareRequest(prompt="p", a="x", b="y" * 60))
    assert isinstance(answer, CompareResponse)
    assert answer.truncated
