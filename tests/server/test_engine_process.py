"""The real child process with a fake scorer inside: answers, failures, death, and an event loop that stays free."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from quorum_client.errors import InternalError, NotReady
from quorum_model.bundle.read import read_bundle
from quorum_model.errors import BundleError
from quorum_server.engine.messages import EngineLost, Score, TokenIds
from quorum_server.engine.process import EngineProcess
from tests.integration.server_process import environment
from tests.server.conftest import serving
from tests.server.fake_engine import CRASH_ID, DEVICE_ERROR_ID, FAKE_LOADER, RAISE_ID, fake_raw
from tests.server.tiny_bundle import make_fake_bundle


def ids(*sequences: list[int]) -> list[TokenIds]:
    return [np.array(sequence, dtype=np.int32) for sequence in sequences]


async def load(engine: EngineProcess, path: Path) -> str:
    return (await engine.load(path, device="cpu", dtype="auto", token_budget=64)).version


@pytest.fixture
async def engine() -> AsyncIterator[EngineProcess]:
    process = EngineProcess(loader=FAKE_LOADER, num_threads=1)
    await process.start()
    yield process
    await process.stop()


def test_packing_for_the_pipe_loses_nothing() -> None:
    sequences = [[1, 2, 3], [4], [5, 6]]
    message = Score.pack(7, "v", ids(*sequences))
    assert message.unpack() == sequences
    assert (message.job_id, message.version) == (7, "v")


async def test_load_and_score(engine: EngineProcess, fake_bundle: Path) -> None:
    loaded = await engine.load(fake_bundle, device="cpu", dtype="auto", token_budget=64)
    assert (loaded.version, loaded.num_members) == (read_bundle(fake_bundle).version, 3)
    sequences = [[10, 11], [12], [13, 14, 15]]
    scores = await engine.score(loaded.version, ids(*sequences))
    np.testing.assert_array_equal(scores.raw, fake_raw(sequences, 3))
    assert scores.computed_tokens == 6


async def test_answers_reach_the_caller_that_asked(engine: EngineProcess, fake_bundle: Path) -> None:
    version = await load(engine, fake_bundle)
    answers = await asyncio.gather(*(engine.score(version, ids([10 + n])) for n in range(30)))
    assert [float(answer.raw[0, 0]) for answer in answers] == [10 + n for n in range(30)]


async def test_a_bundle_that_cannot_be_used_is_a_typed_error(engine: EngineProcess, tmp_path: Path) -> None:
    broken = make_fake_bundle(tmp_path / "broken")
    (broken.path / "golden.json").write_text("[]")
    with pytest.raises(BundleError, match=r"golden\.json") as failure:
        await load(engine, broken.path)
    assert failure.value.code == "bundle_corrupt"
    assert engine.is_alive


async def test_a_failure_is_an_error_and_the_engine_goes_on(engine: EngineProcess, fake_bundle: Path) -> None:
    version = await load(engine, fake_bundle)
    with pytest.raises(InternalError, match="told to fail"):
        await engine.score(version, ids([RAISE_ID]))
    with pytest.raises(InternalError):
        await engine.score("another version", ids([10]))
    assert (await engine.score(version, ids([10]))).raw.shape == (3, 1)


async def test_a_loader_that_is_not_there_is_an_error() -> None:
    process = EngineProcess(loader="tests.server.fake_engine:no_such_loader")
    await process.start()
    try:
        with pytest.raises(InternalError, match="no_such_loader"):
            await load(process, Path(__file__).parent)
    finally:
        await process.stop()


async def test_death_answers_everyone_who_waits(engine: EngineProcess, fake_bundle: Path) -> None:
    version = await load(engine, fake_bundle)
    waiting = [asyncio.create_task(engine.score(version, ids(sequence))) for sequence in ([CRASH_ID], [10], [11])]
    for task in waiting:
        with pytest.raises(NotReady):
            await task
    assert not engine.is_alive
    with pytest.raises(NotReady):
        await engine.score(version, ids([10]))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_to_the_group_is_left_to_the_parent(
    engine: EngineProcess, fake_bundle: Path, number: signal.Signals
) -> None:
    version = await load(engine, fake_bundle)
    assert engine.pid is not None
    os.kill(engine.pid, number)
    assert (await engine.score(version, ids([10]))).computed_tokens == 1


async def test_the_child_has_the_threads_it_was_given(fake_bundle: Path) -> None:
    process = EngineProcess(loader="tests.server.fake_engine:make_load_thread_counter", num_threads=7)
    await process.start()
    try:
        loaded = await process.load(fake_bundle, device="cpu", dtype="auto", token_budget=64)
        assert loaded.device == "threads=7 torch=False"  # else it would have read another number
    finally:
        await process.stop()


async def test_beside_a_loaded_ensemble_no_budget_is_tried(fake_bundle: Path, tmp_path: Path) -> None:
    other = make_fake_bundle(tmp_path / "other", name="other")
    process = EngineProcess(loader="tests.server.fake_engine:make_load_with_trial")
    await process.start()
    try:
        options: Any = {"device": "cpu", "dtype": "auto"}
        first = await process.load(fake_bundle, **options, token_budget=None)
        second = await process.load(other.path, **options, token_budget=None)
        third = await process.load(fake_bundle, **options, token_budget=50)
        assert [one.token_budget for one in (first, second, third)] == [700, 700, 50]
    finally:
        await process.stop()


async def test_stop_ends_the_child_even_if_it_hangs(fake_bundle: Path) -> None:
    process = EngineProcess(loader=FAKE_LOADER, stop_timeout_s=0.1)
    await process.start()
    version = await load(process, fake_bundle)
    pid = process.pid
    assert pid is not None
    child = psutil.Process(pid)
    child.suspend()
    waiting = asyncio.create_task(process.score(version, ids([10])))
    await asyncio.sleep(0)
    await process.stop()
    with pytest.raises(NotReady):
        await waiting
    assert not psutil.pid_exists(pid)


async def test_stop_lets_the_child_end_by_itself(fake_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = EngineProcess(loader=FAKE_LOADER, stop_timeout_s=60)
    await process.start()
    await load(process, fake_bundle)
    exit_codes: list[int | None] = []
    monkeypatch.setattr(SpawnProcess, "close", lambda child: exit_codes.append(child.exitcode))
    await process.stop()
    assert exit_codes == [0]


async def test_an_answer_that_cannot_be_read_ends_the_engine(
    fake_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    process = EngineProcess(loader="tests.server.fake_engine:make_load_unreadable_scorer")
    await process.start()
    version = await load(process, fake_bundle)
    with pytest.raises(NotReady):
        await process.score(version, ids([10]))
    assert not process.is_alive
    assert "cannot be read" in caplog.text
    await process.stop()


@pytest.mark.parametrize("log_level", ["info", "warning"])
async def test_the_child_logs_at_the_servers_level(
    fake_bundle: Path, capfd: pytest.CaptureFixture[str], log_level: str
) -> None:
    process = EngineProcess(loader="tests.server.fake_engine:make_load_logging_scorer", log_level=log_level)
    await process.start()
    await load(process, fake_bundle)
    await process.stop()
    records = [json.loads(line) for line in capfd.readouterr().err.splitlines() if "planted" in line]
    assert [(record["level"], record["logger"], record["process"], record["message"]) for record in records] == [
        (level.upper(), "quorum_model", "quorum-engine", f"planted {level}")
        for level in ("info", "warning")
        if level == "warning" or log_level == "info"
    ]


def test_a_parent_that_forgets_to_stop_it_still_ends() -> None:
    """Python ends its daemons by SIGTERM, which the child ignores, and waits for them."""
    script = (
        "import asyncio; from pathlib import Path; from quorum_server.engine.process import EngineProcess\n"
        f"engine = EngineProcess(loader={FAKE_LOADER!r})\n"
        "async def main():\n"
        "    await engine.start()\n"
        "    try: await engine.load(Path('nowhere'), device='cpu', dtype='auto', token_budget=1)\n"
        "    except Exception as error: print(engine.pid, type(error).__name__)  # it runs, its signals are set\n"
        "asyncio.run(main())"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr
    pid, error = ended.stdout.split()
    assert error == "BundleError"
    assert not psutil.pid_exists(int(pid))


async def test_an_engine_that_cannot_start_is_a_typed_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object) -> None:
        raise OSError(11, "no more processes")

    monkeypatch.setattr("multiprocessing.context.SpawnProcess.start", refuse)
    process = EngineProcess(loader=FAKE_LOADER)
    with pytest.raises(NotReady, match="no more processes"):
        await process.start()
    assert not process.is_alive
    await process.stop()


async def test_an_engine_that_hangs_does_not_hold_the_event_loop(fake_bundle: Path) -> None:
    """The child is stopped, and the message to it is larger than the pipe: a send on the loop would never return."""
    engine = EngineProcess(loader=FAKE_LOADER)
    async with serving(fake_bundle, engine, token_budget=4_000_000) as service:
        assert engine.pid is not None
        child = psutil.Process(engine.pid)
        child.suspend()
        # 4,000 different sequences, 1.3 MB of token ids
        sequences = [{"token_ids": [10 + n % 50, 10 + n // 50] * 40} for n in range(4000)]
        waiting = asyncio.create_task(service.http.post("/score", json={"inputs": sequences}))
        admission = service.runtime.admission
        while admission.held_tokens == 0:  # noqa: ASYNC110 - until it is on its way to the engine
            await asyncio.sleep(0)
        for path in ("/healthz", "/readyz", "/v1/ensembles"):
            assert (await service.http.get(path)).status_code == 200
        assert not waiting.done()
        child.resume()
        assert (await waiting).status_code == 200


async def test_an_unloaded_version_is_gone_and_its_neighbour_is_not(
    engine: EngineProcess, fake_bundle: Path, tmp_path: Path
) -> None:
    first = await load(engine, fake_bundle)
    second = await load(engine, make_fake_bundle(tmp_path / "second", num_members=2).path)
    await engine.unload(first)
    with pytest.raises(InternalError):
        await engine.score(first, ids([10]))
    assert (await engine.score(second, ids([10]))).raw.shape == (2, 1)
    await engine.unload(first)  # once more is nothing


async def test_passes_are_scored_while_a_bundle_is_loaded(fake_bundle: Path, tmp_path: Path) -> None:
    engine = EngineProcess(loader="tests.server.fake_engine:make_load_slowly")
    await engine.start()
    try:
        version = await load(engine, fake_bundle)
        second = make_fake_bundle(tmp_path / "slow", name="slow").path
        loading = asyncio.create_task(load(engine, second))
        await engine.ping()
        assert (await engine.score(version, ids([10]))).raw.shape == (3, 1)
        assert not loading.done()
        (second.parent / "go").touch()
        await loading
    finally:
        await engine.stop()


async def test_a_bundle_that_changes_while_it_is_loaded_is_refused(fake_bundle: Path, tmp_path: Path) -> None:
    engine = EngineProcess(loader="tests.server.fake_engine:make_load_slowly")
    await engine.start()
    try:
        slow = make_fake_bundle(tmp_path / "slow", name="slow")
        loading = asyncio.create_task(load(engine, slow.path))
        # The child has hashed the bundle when it waits in its loader: beside it lies a file by then.
        while not (tmp_path / "waits").exists():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        heads = bytearray((slow.path / "heads.safetensors").read_bytes())
        heads[-1] ^= 1
        (slow.path / "heads.safetensors").write_bytes(heads)
        (tmp_path / "go").touch()
        with pytest.raises(BundleError, match=r"heads\.safetensors"):
            await loading
        with pytest.raises(InternalError):
            await engine.score(slow.version, ids([10]))
    finally:
        await engine.stop()


async def test_a_bundle_without_room_in_memory_says_so(fake_bundle: Path, tmp_path: Path) -> None:
    engine = EngineProcess(loader="tests.server.fake_engine:make_load_without_room")
    await engine.start()
    try:
        with pytest.raises(BundleError, match="not enough memory"):
            await load(engine, fake_bundle)
        assert engine.is_alive
    finally:
        await engine.stop()


async def test_a_killed_child_is_noticed(engine: EngineProcess) -> None:
    await engine.ping()
    engine.kill()
    await engine.wait_ended()
    assert not engine.is_alive
    with pytest.raises(EngineLost):
        await engine.ping()


async def test_a_device_error_ends_the_child(fake_bundle: Path) -> None:
    """After it a CUDA device refuses everything: only another process can go on."""
    engine = EngineProcess(loader=FAKE_LOADER)
    await engine.start()
    version = await load(engine, fake_bundle)
    with pytest.raises(EngineLost):
        await engine.score(version, ids([DEVICE_ERROR_ID]))
    assert not engine.is_alive
    await engine.stop()
