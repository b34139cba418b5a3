"""An engine that dies or hangs comes back with what it held; on a simulated clock, with engines of this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from quorum_client.errors import NotReady
from quorum_model.errors import BundleError
from quorum_server.engine.messages import EngineLost, Loaded, TokenIds
from quorum_server.engine.pool import EnginePool
from quorum_server.engine.supervised import SupervisedEngine
from quorum_server.events import Observer, RestartReason
from tests.server.fake_engine import FakeEngine, fake_raw
from tests.server.simulated_clock import run_simulated
from tests.server.tiny_bundle import make_fake_bundle

SEQUENCES: list[TokenIds] = [np.array([10, 11], dtype=np.int32)]


class DyingEngine(FakeEngine):
    """Whoever waits for it when it is killed is told, as `EngineProcess` does."""

    async def score(self, version, sequences):  # type: ignore[no-untyped-def]
        if version not in self.members:
            raise KeyError(version)
        scoring = asyncio.ensure_future(super().score(version, sequences))
        ending = asyncio.ensure_future(self.ended.wait())
        await asyncio.wait({scoring, ending}, return_when=asyncio.FIRST_COMPLETED)
        ending.cancel()
        if scoring.done():
            return scoring.result()
        scoring.cancel()
        raise EngineLost("planted")

    async def ping(self) -> None:
        await self.gate.wait()


class Supervision:
    """A supervised engine, the engines that it made, and what was observed."""

    def __init__(self) -> None:
        self.made: list[DyingEngine] = []
        self.restarts: list[RestartReason] = []
        self.changes = 0
        self.refuse_starts = 0
        outer = self

        class Recorder(Observer):
            def engine_restarted(self, engine: int, reason: RestartReason) -> None:
                outer.restarts.append(reason)

        self.engine = SupervisedEngine(
            0, self.make, device="cpu", dtype="auto", token_budget=64, pass_timeout_s=5.0, observer=Recorder()
        )

        def count() -> None:
            self.changes += 1

        self.engine.on_change = count

    def make(self) -> DyingEngine:
        outer = self

        class Engine(DyingEngine):
            async def start(self) -> None:
                await asyncio.sleep(0.1)
                if outer.refuse_starts:
                    outer.refuse_starts -= 1
                    raise NotReady("planted")
                await super().start()

        self.made.append(Engine())
        return self.made[-1]

    @property
    def current(self) -> DyingEngine:
        return self.made[-1]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        await self.engine.start()
        task = asyncio.create_task(self.engine.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})
            await self.engine.stop()


def test_a_dead_engine_is_replaced_and_holds_what_it_held(fake_bundle: Path) -> None:
    async def scenario() -> None:
        supervision = Supervision()
        engine = supervision.engine
        async with supervision.running():
            loaded = await engine.load(fake_bundle)
            supervision.current.gate.clear()
            waiting = asyncio.create_task(engine.score(loaded.version, SEQUENCES))
            await supervision.current.has_begun.wait()
            supervision.current.kill()
            with pytest.raises(EngineLost):
                await waiting
            assert not engine.is_ready
            with pytest.raises(EngineLost):
                await engine.score(loaded.version, SEQUENCES)
            await asyncio.sleep(1)
            assert engine.is_ready
            scores = await engine.score(loaded.version, SEQUENCES)
            np.testing.assert_array_equal(scores.raw, fake_raw([[10, 11]], 3))
        assert supervision.restarts == ["died"]
        assert len(supervision.made) == 2

    run_simulated(scenario())


def test_a_pass_beyond_its_time_ends_the_engine(fake_bundle: Path) -> None:
    async def scenario() -> None:
        supervision = Supervision()
        engine = supervision.engine
        async with supervision.running():
            loaded = await engine.load(fake_bundle)
            supervision.current.gate.clear()
            loop = asyncio.get_running_loop()
            sent_s = loop.time()
            passes = [asyncio.create_task(engine.score(loaded.version, SEQUENCES)) for _ in range(2)]
            with pytest.raises(EngineLost):
                await passes[0]
            # 5 s, and 2 tokens at 0.01 s while nothing is measured; the pass behind it falls with it.
            assert loop.time() - sent_s == pytest.approx(5.02)
            with pytest.raises(EngineLost):
                await passes[1]
            await asyncio.sleep(1)
            assert engine.is_ready
        assert supervision.restarts == ["hung"]

    run_simulated(scenario())


def test_a_pass_has_the_time_of_the_one_before_it_and_a_large_one_more(fake_bundle: Path) -> None:
    async def scenario() -> None:
        supervision = Supervision()
        engine = supervision.engine
        async with supervision.running():
            loaded = await engine.load(fake_bundle)
            supervision.current.gate.clear()
            loop = asyncio.get_running_loop()
            first = asyncio.create_task(engine.score(loaded.version, [np.zeros(1000, dtype=np.int32)]))
            second = asyncio.create_task(engine.score(loaded.version, SEQUENCES))
            loop.call_later(14.9, supervision.current.gate.set)  # 5 s + 1,000 tokens at 0.01 s
            await asyncio.gather(first, second)
        assert supervision.restarts == []

    run_simulated(scenario())


def test_an_idle_engine_that_hangs_is_found(fake_bundle: Path) -> None:
    async def scenario() -> None:
        supervision = Supervision()
        async with supervision.running():
            await supervision.engine.load(fake_bundle)
            supervision.current.gate.clear()  # a ping waits there too
            await asyncio.sleep(16)
            assert supervision.restarts == ["hung"]
            assert supervision.engine.is_ready
            assert supervision.current.members

    run_simulated(scenario())


def test_a_bundle_that_is_gone_at_the_restart_is_missing_alone_and_comes_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        supervision = Supervision()
        engine = supervision.engine
        paths = [make_fake_bundle(tmp_path / name, name=name).path for name in ("one", "two")]
        async with supervision.running():
            versions = [(await engine.load(path)).version for path in paths]
            hidden = paths[0].rename(tmp_path / "hidden")
            supervision.current.kill()
            await asyncio.sleep(1)
            assert engine.is_ready
            with pytest.raises(NotReady, match="could not be loaded again"):
                await engine.score(versions[0], SEQUENCES)
            assert (await engine.score(versions[1], SEQUENCES)).raw.shape == (3, 1)
            pool = EnginePool([engine])
            assert pool.missing(versions[0]) is not None
            assert pool.missing(versions[1]) is None
            hidden.rename(paths[0])
            await asyncio.sleep(11)
            assert (await engine.score(versions[0], SEQUENCES)).raw.shape == (3, 1)
            assert pool.missing(versions[0]) is None

    run_simulated(scenario())


def test_a_bundle_that_has_changed_at_the_restart_is_not_served_as_what_it_was(tmp_path: Path) -> None:
    async def scenario() -> None:
        supervision = Supervision()
        engine = supervision.engine
        path = make_fake_bundle(tmp_path / "one").path
        async with supervision.running():
            version = (await engine.load(path)).version
            path.rename(tmp_path / "old")
            make_fake_bundle(path, num_members=2)
            supervision.current.kill()
            await asyncio.sleep(1)
            with pytest.raises(NotReady):
                await engine.score(version, SEQUENCES)
            assert supervision.current.members == {}

    run_simulated(scenario())


def test_an_engine_that_cannot_be_started_is_tried_again_ever_more_slowly(fake_bundle: Path) -> None:
    async def scenario() -> None:
        supervision = Supervision()
        engine = supervision.engine
        async with supervision.running():
            version = (await engine.load(fake_bundle)).version
            supervision.refuse_starts = 3
            supervision.current.kill()
            await asyncio.sleep(0.5)
            assert engine.has_failed
            with pytest.raises(NotReady, match="cannot be started"):
                await engine.load(fake_bundle)
            await asyncio.sleep(1 + 2 + 4)
            assert not engine.has_failed
            assert (await engine.score(version, SEQUENCES)).raw.shape == (3, 1)
        assert len(supervision.made) == 5

    run_simulated(scenario())


def test_what_was_unloaded_or_never_loaded_is_not_loaded_again(fake_bundle: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        supervision = Supervision()
        engine = supervision.engine
        async with supervision.running():
            loaded: Loaded = await engine.load(fake_bundle)
            await engine.unload(loaded.version)
            with pytest.raises(BundleError):
                await engine.load(tmp_path)
            supervision.current.kill()
            await asyncio.sleep(1)
            assert supervision.current.members == {}

    run_simulated(scenario())
