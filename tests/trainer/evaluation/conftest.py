"""One token budget for all: what is tried at load depends on how busy the machine is, and so would the last bits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="package", autouse=True)
def _fixed_token_budget() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("quorum_model.loading.choose_token_budget", lambda _seconds_of: 1024)
        yield
