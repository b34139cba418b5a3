"""`quorum bench prefix`: shared tokens are those of the prompt, the limit is counted, a changed score is refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from quorum_client.cli import app
from quorum_model.benchmark.flops import LayerShape
from quorum_model.benchmark.prefix import draw_responses, flop_limit
from quorum_model.member_scorer import MemberScorer, MemberScores

PROMPT = 80  # longer than the blocks that an engine keeps between passes
SMALL = ("--layers", "2", "--hidden", "16", "--ffn", "24", "--heads", "4", "--key-heads", "2", "--members", "2",
         "--rank", "2", "--prompt", str(PROMPT), "--responses", "3", "--response", "5", "--rounds", "2",
         "--dtype", "float32", "--device", "cpu", "--json")  # fmt: skip


def run() -> Any:
    return CliRunner().invoke(app, ["bench", "prefix", *SMALL])


def test_figures() -> None:
    result = run()
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout.strip().splitlines()[-1])
    assert found["computed_tokens"] == {"sharing_on": PROMPT + 3 * 5, "sharing_off": 3 * (PROMPT + 5)}
    assert found["largest_difference"] < 1e-4
    on, off = found["seconds"]["sharing_on"], found["seconds"]["sharing_off"]
    assert found["ratio_sharing"] == pytest.approx((off[0] / on[0] + off[1] / on[1]) / 2)
    assert 1 < found["flop_limit"] < 3
    assert found["dtype"] == "float32"


def test_every_round_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt that was kept from an earlier round would be a figure of memory, not of sharing."""
    computed: list[int] = []
    right = MemberScorer.score

    def counted(self: MemberScorer, ids: list[list[int]]) -> MemberScores:
        found = right(self, ids)
        if len(ids) == 3 and len(ids[0]) == PROMPT + 5:
            computed.append(found.computed_tokens)
        return found

    monkeypatch.setattr(MemberScorer, "score", counted)
    assert run().exit_code == 0
    assert sorted(computed) == [PROMPT + 3 * 5] * 4 + [3 * (PROMPT + 5)] * 4  # agreement, warm-up, two rounds


def test_a_score_that_sharing_changes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    right = MemberScorer.score

    def planted(self: MemberScorer, *args: Any) -> MemberScores:
        found = right(self, *args)
        changed = found.computed_tokens == PROMPT + 3 * 5
        return MemberScores(found.raw + np.float32(0.1 * changed), found.computed_tokens)

    monkeypatch.setattr(MemberScorer, "score", planted)
    result = run()
    assert result.exit_code == 1
    assert "contestants_disagree: sharing_on" in result.output


def test_responses_share_the_prompt_and_no_more() -> None:
    drawn = draw_responses(1000, prompt=6, responses=50, response=3)
    assert {tuple(ids[:6]) for ids in drawn} == {tuple(drawn[0][:6])}
    assert len({ids[6] for ids in drawn}) == 50
    assert {len(ids) for ids in drawn} == {9}


def test_the_limit_by_hand() -> None:
    layers = [LayerShape(query=0, keys_and_values=1, rest=0, attention=0)] * 2
    assert flop_limit(layers, prompt=512, responses=[128] * 16, members=5) == pytest.approx(10240 / 2560)
    layers = [LayerShape(query=0, keys_and_values=0, rest=0, attention=1)] * 2
    whole, last = 3 * (6 * 7 // 2), 3 * 6  # below, every token sees those before it; above, the last one alone
    shared = 4 * 5 // 2 + 3 * (4 * 2 + 2 * 3 // 2)
    expected = (whole + last) / (shared + last)
    assert flop_limit(layers, prompt=4, responses=[2] * 3, members=5) == pytest.approx(expected)
