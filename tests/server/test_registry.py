"""What a request's `ensemble` finds, and when a version is set free."""

from __future__ import annotations

from pathlib import Path

import pytest

from quorum_client.errors import EnsembleNotFound, InvalidRequest, NotReady
from quorum_server.registry import Ensemble, Registry
from tests.server.fake_engine import load_with_fake
from tests.server.tiny_bundle import make_fake_bundle


async def test_by_name_by_version_and_by_default(fake_bundle: Path, tmp_path: Path) -> None:
    registry = Registry([].append)
    with pytest.raises(NotReady):
        registry.get("tiny")
    tiny = await load_with_fake(fake_bundle)
    registry.put(tiny)
    assert registry.get(None) is registry.get("tiny") is registry.get(f"tiny@{tiny.version}") is tiny
    for unknown in ("other", "tiny@000000000000", f"other@{tiny.version}", "@", f"@{tiny.version}", "tiny@"):
        with pytest.raises(EnsembleNotFound):
            registry.get(unknown)

    other = await load_with_fake(make_fake_bundle(tmp_path / "other", name="other").path, "other")
    registry.put(other)
    assert registry.get("other") is other
    assert registry.list() == [other, tiny]
    with pytest.raises(InvalidRequest, match="several"):
        registry.get(None)


@pytest.fixture
async def versions(fake_bundle: Path, tmp_path: Path) -> tuple[Ensemble, Ensemble]:
    new = make_fake_bundle(tmp_path / "new", num_members=2).path
    return await load_with_fake(fake_bundle), await load_with_fake(new)


async def test_a_new_version_takes_the_name_over_and_the_old_one_is_free(versions: tuple[Ensemble, Ensemble]) -> None:
    freed: list[str] = []
    registry = Registry(freed.append)
    old, new = versions
    registry.put(old)
    registry.put(new)
    assert old.version != new.version
    assert registry.get("tiny") is new
    with pytest.raises(EnsembleNotFound):
        registry.get(f"tiny@{old.version}")
    assert freed == [old.version]


async def test_a_version_in_use_is_free_when_its_last_user_lets_go(versions: tuple[Ensemble, Ensemble]) -> None:
    freed: list[str] = []
    registry = Registry(freed.append)
    old, new = versions
    registry.put(old)
    with registry.use("tiny") as first:
        with registry.use(None) as second:
            registry.put(new)
            assert first is second is old
        assert freed == []
        registry.remove("tiny")
        assert freed == [new.version]
    assert freed == [new.version, old.version]


async def test_a_version_under_two_names_stays_until_both_are_gone(fake_bundle: Path) -> None:
    freed: list[str] = []
    registry = Registry(freed.append)
    registry.put(await load_with_fake(fake_bundle, "one"))
    registry.put(await load_with_fake(fake_bundle, "two"))
    registry.remove("one")
    assert freed == []
    registry.remove("two")
    registry.remove("two")
    assert len(freed) == 1
