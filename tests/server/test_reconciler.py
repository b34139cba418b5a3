"""Changes of what serves, over a fake pool: swapped in one step, kept in the file, and nothing lost when they fail."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quorum_client.errors import EnsembleNotFound, InvalidRequest, NotReady, QuorumError
from quorum_model.bundle.read import Bundle, read_bundle, resolve_bundle
from quorum_model.errors import BundleCorrupt, BundleError
from quorum_server.allowed_sources import SourceNotAllowed
from quorum_server.desired import Desired, StateFile, StateNotWritten, StateUnreadable
from quorum_server.engine.messages import EngineLost, Loaded
from quorum_server.events import Observer
from quorum_server.follow import StateFollower
from quorum_server.reconciler import Reconciler
from quorum_server.watch import Watcher
from quorum_server.wishes import Conflict
from tests.server.fake_engine import FakePool
from tests.server.tiny_bundle import make_fake_bundle


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three versions of one ensemble, told apart by their number of members."""
    folder = tmp_path_factory.mktemp("bundles")
    return [make_fake_bundle(folder / f"v{number}", num_members=number).path for number in (1, 2, 3)]


class Server:
    """A reconciler, its pool, and its state file."""

    def __init__(self, folder: Path, pool: FakePool | None = None) -> None:
        self.pool = pool or FakePool()
        self.file = folder / "state.json"
        self.swaps: list[tuple[str, str | None, str | None]] = []
        outer = self

        class Recorder(Observer):
            def swap_finished(self, ensemble: str, version: str | None, elapsed_s: float, error: str | None) -> None:
                outer.swaps.append((ensemble, version, error))

        self.reconciler = Reconciler(self.pool, resolve_bundle, StateFile(self.file), Recorder())

    def kept(self) -> dict[str, Any]:
        ensembles: dict[str, Any] = json.loads(self.file.read_text())["ensembles"]
        return ensembles

    def num_members(self, name: str = "tiny") -> int:
        return len(self.reconciler.registry.get(name).manifest.members)

    async def settle(self) -> None:
        while self.reconciler._tasks:
            await asyncio.gather(*self.reconciler._tasks, return_exceptions=True)


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path)


async def test_seeds_serve_under_their_own_names_and_are_kept(server: Server, bundles: list[Path]) -> None:
    await server.reconciler.restore([str(bundles[0])])
    assert server.num_members() == 1
    source = str(bundles[0])
    assert server.kept() == {"tiny": {"source": source, "last_good": source, "by_request": False, "change": ""}}
    (status,) = server.reconciler.statuses()
    assert (status.state, status.source, status.error) == ("serving", str(bundles[0]), None)
    assert status.version == server.reconciler.registry.get("tiny").version


async def test_two_seeds_of_one_name_are_refused(server: Server, bundles: list[Path]) -> None:
    with pytest.raises(InvalidRequest, match="same name"):
        await server.reconciler.restore([str(bundles[0]), str(bundles[1])])


async def test_a_put_swaps_and_frees_the_old(server: Server, bundles: list[Path]) -> None:
    await server.reconciler.restore([str(bundles[0])])
    old = server.reconciler.registry.get("tiny").version
    with server.reconciler.registry.use("tiny") as held:
        new = await server.reconciler.put("tiny", str(bundles[1]))
        assert new is not None
        assert server.num_members() == 2
        assert held.version == old
        await server.settle()
        assert set(server.pool.engine.members) == {old, new.version}  # in use until the request lets go
    await server.settle()
    assert set(server.pool.engine.members) == {new.version}
    assert server.swaps == [("tiny", old, None), ("tiny", new.version, None)]


async def test_a_name_need_not_be_the_bundles(server: Server, bundles: list[Path]) -> None:
    ensemble = await server.reconciler.put("production", str(bundles[0]))
    assert ensemble is not None
    assert ensemble.info().name == "production"
    again = await server.reconciler.put("canary", str(bundles[0]))
    assert again is not None
    assert again.version == ensemble.version
    assert server.pool.num_loads == 1  # the engine holds it already


async def test_a_bad_bundle_leaves_the_old_one_serving_and_says_why(
    server: Server, bundles: list[Path], tmp_path: Path
) -> None:
    await server.reconciler.restore([str(bundles[0])])
    bad = make_fake_bundle(tmp_path / "bad").path
    (bad / "golden.json").write_text("[]")
    with pytest.raises(BundleCorrupt):
        await server.reconciler.put("tiny", str(bad))
    assert server.num_members() == 1
    (status,) = server.reconciler.statuses()
    assert (status.state, status.source) == ("failed", str(bad))
    assert status.error is not None
    assert status.error.code == "bundle_corrupt"
    assert status.version == server.reconciler.registry.get("tiny").version
    # A restart asks for the desired one, and serves the last good one meanwhile.
    restarted = Server(server.file.parent)
    await restarted.reconciler.restore(["ignored, since the file rules"])
    assert restarted.num_members() == 1
    (status,) = restarted.reconciler.statuses()
    assert (status.state, status.source) == ("failed", str(bad))
    (bad / "golden.json").unlink()
    bad.rename(tmp_path / "away")
    make_fake_bundle(bad)
    healed = Server(server.file.parent)
    await healed.reconciler.restore([])
    assert healed.num_members() == 3


async def test_a_restart_serves_what_was_put(server: Server, bundles: list[Path]) -> None:
    await server.reconciler.restore([str(bundles[0])])
    await server.reconciler.put("tiny", str(bundles[1]))
    await server.reconciler.put("other", str(bundles[2]))
    server.reconciler.remove("tiny")
    restarted = Server(server.file.parent)
    await restarted.reconciler.restore([str(bundles[0])])
    assert [ensemble.name for ensemble in restarted.reconciler.registry.list()] == ["other"]
    assert restarted.num_members("other") == 3


async def test_when_nothing_of_the_file_can_be_loaded_the_start_fails(server: Server, tmp_path: Path) -> None:
    StateFile(server.file).edit({"tiny": Desired(source=str(tmp_path / "gone"))}, {})
    with pytest.raises(BundleError, match="gone"):
        await server.reconciler.restore([])


async def test_remove_frees_and_forgets(server: Server, bundles: list[Path]) -> None:
    await server.reconciler.restore([str(bundles[0])])
    server.reconciler.remove("tiny")
    with pytest.raises(NotReady):
        server.reconciler.registry.get("tiny")
    with pytest.raises(EnsembleNotFound):
        server.reconciler.remove("tiny")
    await server.settle()
    assert server.pool.engine.members == {}
    assert server.kept() == {}


async def test_a_later_change_wins_and_the_earlier_one_is_told(server: Server, bundles: list[Path]) -> None:
    server.pool.gate.clear()
    first = asyncio.create_task(server.reconciler.put("tiny", str(bundles[0])))
    await server.pool.has_begun.wait()
    second = asyncio.create_task(server.reconciler.put("tiny", str(bundles[1])))
    third = asyncio.create_task(server.reconciler.put("tiny", str(bundles[2])))
    await asyncio.sleep(0)
    server.pool.gate.set()
    for earlier in (first, second):
        with pytest.raises(Conflict):
            await earlier
    await third
    assert server.num_members() == 3
    await server.settle()
    assert len(server.pool.engine.members) == 1


async def test_a_caller_that_leaves_does_not_stop_the_change(server: Server, bundles: list[Path]) -> None:
    server.pool.gate.clear()
    change = asyncio.create_task(server.reconciler.put("tiny", str(bundles[0])))
    await server.pool.has_begun.wait()
    assert server.reconciler.status("tiny").state == "loading"
    change.cancel()
    await asyncio.wait({change})
    server.pool.gate.set()
    await server.settle()
    assert server.num_members() == 1


async def test_an_engine_lost_while_it_loads_is_asked_once_more(tmp_path: Path, bundles: list[Path]) -> None:
    class LosingPool(FakePool):
        losses = 1

        async def load(self, path: Path) -> Loaded:
            if self.losses:
                self.losses -= 1
                raise EngineLost("planted")
            return await super().load(path)

    server = Server(tmp_path, LosingPool())
    await server.reconciler.put("tiny", str(bundles[0]))
    server.pool.losses = 2  # type: ignore[attr-defined]
    with pytest.raises(NotReady):
        await server.reconciler.put("tiny", str(bundles[1]))
    assert server.num_members() == 1


async def test_a_version_that_an_engine_lost_is_said_to_have_failed(server: Server, bundles: list[Path]) -> None:
    await server.reconciler.restore([str(bundles[0])])
    version = server.reconciler.registry.get("tiny").version
    server.pool.gone[version] = BundleError("is not there any more")
    (status,) = server.reconciler.statuses()
    assert (status.state, status.version) == ("failed", version)
    assert status.error is not None
    assert status.error.message == "is not there any more"
    server.pool.gone.clear()
    assert server.reconciler.status("tiny").state == "serving"


async def test_a_bundle_that_changes_while_it_is_loaded_is_refused_and_freed(
    server: Server, bundles: list[Path], tmp_path: Path
) -> None:
    await server.reconciler.restore([str(bundles[0])])
    changing = make_fake_bundle(tmp_path / "changing").path
    server.pool.gate.clear()
    server.pool.has_begun.clear()
    change = asyncio.create_task(server.reconciler.put("tiny", str(changing)))
    await server.pool.has_begun.wait()
    changing.rename(tmp_path / "before")
    bundles[1].rename(changing)
    server.pool.gate.set()
    with pytest.raises(BundleCorrupt, match="changed while it was loaded"):
        await change
    changing.rename(bundles[1])
    assert server.num_members() == 1
    assert len(server.pool.engine.members) == 1


@pytest.mark.parametrize("operation", ["mkstemp", "fsync", "replace"])
async def test_a_full_disk_changes_nothing(
    server: Server, bundles: list[Path], monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    await server.reconciler.restore([str(bundles[0])])
    before = server.file.read_bytes()

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(f"{'tempfile' if operation == 'mkstemp' else 'os'}.{operation}", refuse)
        with pytest.raises(StateNotWritten, match="No space left"):
            await server.reconciler.put("tiny", str(bundles[1]))
        with pytest.raises(StateNotWritten):
            server.reconciler.remove("tiny")
    assert server.num_members() == 1
    assert server.file.read_bytes() == before
    assert list(server.file.parent.glob(".state*")) == []
    assert server.reconciler.status("tiny").source == str(bundles[0])
    await server.reconciler.put("tiny", str(bundles[1]))  # and when there is room again it works
    assert server.num_members() == 2


@pytest.mark.parametrize(
    "text", ["", "{", '{"ensembles": {"a b": {"source": "x"}}}', '{"schema_version": 2, "ensembles": {}}']
)
def test_a_file_that_is_no_state_is_an_error_and_not_an_empty_state(tmp_path: Path, text: str) -> None:
    path = tmp_path / "state.json"
    path.write_text(text)
    with pytest.raises(StateUnreadable):
        StateFile(path).read()


async def test_the_newest_bundle_of_a_watched_folder_serves(
    server: Server, bundles: list[Path], tmp_path: Path
) -> None:
    folder = tmp_path / "watched"
    folder.mkdir()
    await server.reconciler.restore([])
    watcher = Watcher(folder, server.reconciler, 1.0)
    await watcher.look()
    assert server.reconciler.registry.list() == []

    def publish(number: int, name: str, *, at_s: int) -> Path:
        path = make_fake_bundle(folder / name, num_members=number).path
        os.utime(path / "manifest.json", (at_s, at_s))
        return path

    publish(1, "a", at_s=100)
    publish(2, "b", at_s=200)
    await watcher.look()
    assert server.num_members() == 2
    assert server.pool.num_loads == 1
    newest = publish(3, "c", at_s=300)
    (newest / "golden.json").rename(tmp_path / "golden.json")  # still being copied
    await watcher.look()
    await watcher.look()
    assert server.num_members() == 2
    assert server.reconciler.status("tiny").state == "failed"
    (tmp_path / "golden.json").rename(newest / "golden.json")
    await watcher.look()
    assert server.num_members() == 3
    newest.rename(tmp_path / "away")  # back to the one before
    await watcher.look()
    assert server.num_members() == 2
    folder.rename(tmp_path / "unmounted")
    await watcher.look()
    assert server.num_members() == 2
    assert server.kept() == {}  # a restart looks into the folder again
    for change in (
        lambda: server.reconciler.put("tiny", "x"),
        lambda: asyncio.to_thread(server.reconciler.remove, "tiny"),
    ):
        with pytest.raises(Conflict, match="watched"):
            await change()


async def test_at_the_start_an_older_watched_bundle_serves_where_the_newest_is_bad(
    server: Server, tmp_path: Path
) -> None:
    folder = tmp_path / "watched"
    folder.mkdir()
    make_fake_bundle(folder / "a", num_members=2)
    bad = make_fake_bundle(folder / "b").path
    (bad / "golden.json").write_text("[]")
    (folder / ".half").mkdir()
    (folder / "notes").mkdir()
    (folder / "other").mkdir()
    (folder / "other" / "manifest.json").write_text('{"name": 3}')
    await server.reconciler.restore([])
    await Watcher(folder, server.reconciler, 1.0).look()
    assert server.num_members() == 2


def test_every_error_of_a_change_has_a_status_of_its_own() -> None:
    errors: list[type[QuorumError]] = [Conflict, StateNotWritten]
    assert [(error.code, error.status) for error in errors] == [("conflict", 409), ("state_not_written", 503)]


async def test_what_a_request_names_stands_on_an_allowed_backbone_also_after_a_restart(
    bundles: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def read(source: str, _: object) -> Bundle:
        bundle = read_bundle(Path(source))
        reference = bundle.manifest.backbone.model_copy(update={"source": str(bundles[0] / "backbone")})
        return replace(bundle, manifest=bundle.manifest.model_copy(update={"backbone": reference}))

    server = Server(tmp_path)
    monkeypatch.setattr("quorum_server.reconciler.read_source", read)
    with pytest.raises(SourceNotAllowed):
        await server.reconciler.put("tiny", str(bundles[0]), by_request=True)
    assert server.reconciler.registry.list() == []
    again = Server(tmp_path)
    with pytest.raises(SourceNotAllowed):
        await again.reconciler.restore([])
    again.reconciler._roots = (Path("/"),)
    await again.reconciler.put("tiny", str(bundles[0]), by_request=True)
    assert again.num_members() == 1
    (tmp_path / "own").mkdir()
    own = Server(tmp_path / "own")
    await own.reconciler.put("tiny", str(bundles[1]))  # the operator's own
    assert own.num_members() == 2


async def test_servers_that_share_a_file_serve_the_same(bundles: list[Path], tmp_path: Path) -> None:
    """Each change is made at one of them; the other one follows at its next look, and undoes nothing."""
    one, two = Server(tmp_path), Server(tmp_path)
    await one.reconciler.restore([str(bundles[0])])
    await two.reconciler.restore(["not looked at"])
    followers = [StateFollower(StateFile(server.file), server.reconciler, 1.0) for server in (one, two)]
    await one.reconciler.put("tiny", str(bundles[1]))
    await two.reconciler.put("other", str(bundles[2]))  # before it has heard of that
    assert set(two.kept()) == {"tiny", "other"}
    assert two.kept()["tiny"]["source"] == str(bundles[1])
    for follower in followers:
        await follower.look()
    for server in (one, two):
        assert [server.num_members(name) for name in ("tiny", "other")] == [2, 3]
        assert server.kept()["other"]["last_good"] == str(bundles[2])
    loads = [server.pool.num_loads for server in (one, two)]
    for follower in followers:
        await follower.look()  # its own change is none
    assert [server.pool.num_loads for server in (one, two)] == loads
    two.reconciler.remove("other")
    await followers[0].look()
    with pytest.raises(EnsembleNotFound):
        one.reconciler.registry.get("other")


async def test_a_source_that_has_changed_itself_is_followed_too(bundles: list[Path], tmp_path: Path) -> None:
    source = tmp_path / "here"
    shutil.copytree(bundles[0], source)
    one, two = Server(tmp_path), Server(tmp_path)
    await one.reconciler.restore([str(source)])
    await two.reconciler.restore([])
    shutil.rmtree(source)
    shutil.copytree(bundles[2], source)
    await one.reconciler.put("tiny", str(source))
    await StateFollower(StateFile(two.file), two.reconciler, 1.0).look()
    assert two.num_members() == 3


async def test_what_cannot_be_followed_is_said_and_tried_again(
    bundles: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = Server(tmp_path), Server(tmp_path)
    await one.reconciler.restore([str(bundles[0])])
    await two.reconciler.restore([])
    follower = StateFollower(StateFile(two.file), two.reconciler, 1.0)
    moved = tmp_path / "moved"
    shutil.copytree(bundles[1], moved)
    await one.reconciler.put("tiny", str(moved))
    moved.rename(tmp_path / "not yet here")
    await follower.look()
    assert two.num_members() == 1
    assert two.reconciler.status("tiny").state == "failed"
    (tmp_path / "not yet here").rename(moved)
    for _ in range(12):
        await follower.look()
    assert two.num_members() == 2
    assert two.reconciler.status("tiny").state == "serving"
    two.file.write_text("{")
    await follower.look()
    two.file.unlink()
    await follower.look()
    assert two.num_members() == 2
    assert caplog.text.count("cannot be followed") == 2
