"""What `quorum_client` exports is what it says: complete, unique, and all of it usable."""

from __future__ import annotations

import inspect

import pytest

import quorum_client
from quorum_client import errors, types


def test_all_is_unique_and_resolves() -> None:
    assert len(set(quorum_client.__all__)) == len(quorum_client.__all__)
    for name in quorum_client.__all__:
        assert hasattr(quorum_client, name), name


def test_nothing_public_is_left_out() -> None:
    imported = {
        name for name, value in vars(quorum_client).items() if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert imported == set(quorum_client.__all__) - {"__version__"}


def test_every_error_is_exported() -> None:
    tree = {name for name, value in vars(errors).items() if inspect.isclass(value)}
    assert tree <= set(quorum_client.__all__)


@pytest.mark.parametrize("name", ["ScoreRequest", "RankRequest", "CompareRequest", "ScoreResponse", "RankResponse"])
def test_wire_types_are_the_same_objects(name: str) -> None:
    assert getattr(quorum_client, name) is getattr(types, name)
