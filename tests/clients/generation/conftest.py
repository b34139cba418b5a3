"""A fake generator for the tests here, as good as new for each of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.clients.generation.fake_generator import Behaviour, FakeGenerator, serve


@pytest.fixture(scope="session")
def served_generator() -> Iterator[FakeGenerator]:
    """One server a session."""
    with serve(FakeGenerator()) as fake:
        yield fake


@pytest.fixture
def fake(served_generator: FakeGenerator) -> FakeGenerator:
    """The server with a fresh behaviour."""
    served_generator.behaviour = Behaviour()
    return served_generator
