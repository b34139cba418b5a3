"""What a request's `ensemble` finds."""

from __future__ import annotations

from pathlib import Path

import pytest

from quorum_client.errors import EnsembleNotFound, InvalidRequest, NotReady
from quorum_model.errors import BundleCorrupt
from quorum_server.engine.messages import Loaded
from quorum_server.registry import Ensemble, Registry, load_ensemble
from tests.server.fake_engine import FakePool
from tests.server.tiny_bundle import make_fake_bundle


async def load(path: Path) -> Ensemble:
    return await load_ensemble(str(path), FakePool())


async def test_by_name_by_version_and_by_default(fake_bundle: Path, tmp_path: Path) -> None:
    registry = Registry()
    with pytest.raises(NotReady):
        registry.get("tiny")
    tiny = await load(fake_bundle)
    registry.put(tiny)
    assert registry.get(None) is registry.get("tiny") is registry.get(f"tiny@{tiny.version}") is tiny
    for unknown in ("other", "tiny@000000000000", f"other@{tiny.version}", "@", f"@{tiny.version}", "tiny@"):
        with pytest.raises(EnsembleNotFound):
            registry.get(unknown)

    other = await load(make_fake_bundle(tmp_path / "other", name="other").path)
    registry.put(other)
    assert registry.get("other") is other
    assert registry.list() == [other, tiny]
    with pytest.raises(InvalidRequest, match="several"):
        registry.get(None)


async def test_a_new_version_takes_the_name_over(fake_bundle: Path, tmp_path: Path) -> None:
    registry = Registry()
    old = await load(fake_bundle)
    registry.put(old)
    new = await load(make_fake_bundle(tmp_path / "new", num_members=2).path)
    registry.put(new)
    assert old.version != new.version
    assert registry.get("tiny") is new
    with pytest.raises(EnsembleNotFound):
        registry.get(f"tiny@{old.version}")


async def test_a_bundle_that_changes_while_it_is_loaded_is_refused(fake_bundle: Path) -> None:
    class OtherPool:
        async def load(self, path: Path) -> Loaded:
            return Loaded(0, "000000000000", 3, "cpu", "float32", "packed")

    with pytest.raises(BundleCorrupt, match="changed"):
        await load_ensemble(str(fake_bundle), OtherPool())
