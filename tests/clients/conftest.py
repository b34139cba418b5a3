"""What the client's tests share: a clean environment and answers that follow from the request by a simple rule."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy or key of the machine reaches the client under test."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "QUORUM_API_KEY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
