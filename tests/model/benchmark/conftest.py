"""Benchmarks load many models: each tries its token budget for a second, which is not what is tested here."""

from __future__ import annotations

import pytest

TOKEN_BUDGET = 256


@pytest.fixture(autouse=True)
def _fixed_token_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quorum_model.loading.choose_token_budget", lambda _seconds_of: TOKEN_BUDGET)
