"""The scheduler over a fake engine: nothing lost, nothing answered twice, order and budget kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorum_client.errors import InternalError, NotReady, Overloaded, RequestTooLarge
from quorum_server.engine.messages import Scores, TokenIds
from quorum_server.scheduler import JobScores, Scheduler
from tests.server.fake_engine import FakeEngine, fake_raw


def ids(*sequences: Sequence[int]) -> list[TokenIds]:
    return [np.array(sequence, dtype=np.int32) for sequence in sequences]


def new_scheduler(engine: FakeEngine, token_budget: int = 10, max_queued_tokens: int = 10_000) -> Scheduler:
    return Scheduler(engine, token_budget=token_budget, max_queued_tokens=max_queued_tokens)


@asynccontextmanager
async def running(scheduler: Scheduler) -> AsyncIterator[None]:
    task = asyncio.create_task(scheduler.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


async def settle() -> None:
    """Let every task that can run do so until it waits for something: a few turns of the loop suffice here."""
    for _ in range(10):
        await asyncio.sleep(0)


sequences = st.lists(st.lists(st.integers(10, 99), min_size=1, max_size=12), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(
    jobs=st.lists(st.tuples(sequences, st.booleans()), min_size=1, max_size=8),
    budget=st.integers(1, 30),
    late=st.integers(0, 8),
)
def test_every_job_gets_its_own_scores_once_in_order_within_the_budget(
    jobs: list[tuple[list[list[int]], bool]], budget: int, late: int
) -> None:
    async def scenario() -> None:
        engine = FakeEngine()
        scheduler = new_scheduler(engine, budget)
        async with running(scheduler):
            engine.gate.clear()
            tasks = [asyncio.create_task(scheduler.submit("v", ids(*job))) for job, _ in jobs[:late]]
            await settle()  # these wait behind the first pass; the rest comes while it runs
            tasks += [asyncio.create_task(scheduler.submit("v", ids(*job))) for job, _ in jobs[late:]]
            await settle()
            for task, (_, is_cancelled) in zip(tasks, jobs, strict=True):
                if is_cancelled:
                    task.cancel()
            engine.gate.set()
            answers = await asyncio.gather(*tasks, return_exceptions=True)

        for answer, (job, is_cancelled) in zip(answers, jobs, strict=True):
            if is_cancelled:
                assert isinstance(answer, asyncio.CancelledError)
                continue
            assert isinstance(answer, JobScores)
            np.testing.assert_array_equal(answer.raw, fake_raw(job, engine.num_members))
            assert answer.computed_tokens == sum(map(len, job))
        for one_pass in engine.passes:
            assert len(one_pass) == 1 or sum(map(len, one_pass)) <= budget
        # Strictly in order of arrival, each sequence once: what was sent is the jobs' own sequence of sequences, but
        # for what cancelled jobs had not sent yet.
        sent = [sequence for one_pass in engine.passes for sequence in one_pass]
        kept = [sequence for job, is_cancelled in jobs for sequence in job if not is_cancelled]
        everything = [sequence for job, _ in jobs for sequence in job]
        assert is_subsequence(kept, sent)
        assert is_subsequence(sent, everything)
        assert scheduler.queued_tokens == 0

    asyncio.run(scenario())


def is_subsequence(part: list[list[int]], whole: list[list[int]]) -> bool:
    rest = iter(whole)
    return all(any(item == other for other in rest) for item in part)


async def test_a_lone_request_waits_for_nobody() -> None:
    engine = FakeEngine()
    scheduler = new_scheduler(engine)
    async with running(scheduler):
        await scheduler.submit("v", ids([1, 2]))
    assert engine.passes == [[[1, 2]]]


async def test_requests_that_wait_together_meet_in_one_pass() -> None:
    engine = FakeEngine()
    scheduler = new_scheduler(engine)
    async with running(scheduler):
        engine.gate.clear()
        first = asyncio.create_task(scheduler.submit("v", ids([1])))
        await engine.has_begun.wait()
        others = [asyncio.create_task(scheduler.submit("v", ids([number]))) for number in (2, 3, 4)]
        await settle()
        engine.gate.set()
        await asyncio.gather(first, *others)
    assert engine.passes == [[[1]], [[2], [3], [4]]]


async def test_a_request_beyond_the_budget_is_split_and_put_together_again() -> None:
    engine = FakeEngine()
    scheduler = new_scheduler(engine, token_budget=4)
    job = [[10 + i] * 3 for i in range(5)]
    async with running(scheduler):
        scores = await scheduler.submit("v", ids(*job))
    assert len(engine.passes) == 5
    np.testing.assert_array_equal(scores.raw, fake_raw(job, 3))


async def test_a_pass_holds_one_version_only() -> None:
    engine = FakeEngine()
    scheduler = new_scheduler(engine)
    async with running(scheduler):
        engine.gate.clear()
        tasks = [asyncio.create_task(scheduler.submit(version, ids([8]))) for version in "abba"]
        await settle()
        engine.gate.set()
        await asyncio.gather(*tasks)
    assert list(zip(engine.versions, map(len, engine.passes), strict=True)) == [("a", 1), ("b", 2), ("a", 1)]


async def test_who_leaves_before_its_pass_is_never_sent() -> None:
    engine = FakeEngine()
    scheduler = new_scheduler(engine)
    async with running(scheduler):
        engine.gate.clear()
        first = asyncio.create_task(scheduler.submit("v", ids([1])))
        await engine.has_begun.wait()
        gone = asyncio.create_task(scheduler.submit("v", ids([2, 2])))
        stays = asyncio.create_task(scheduler.submit("v", ids([3])))
        await settle()
        assert scheduler.queued_tokens == 4
        gone.cancel()
        await settle()
        assert scheduler.queued_tokens == 2
        engine.gate.set()
        await asyncio.gather(first, stays)
    assert engine.passes == [[[1]], [[3]]]


async def test_a_caller_that_leaves_in_the_turn_of_its_answer_does_not_stop_the_queue() -> None:
    engine = FakeEngine()
    scheduler = new_scheduler(engine)
    async with running(scheduler):
        engine.gate.clear()
        gone = asyncio.create_task(scheduler.submit("v", ids([1])))
        await engine.has_begun.wait()
        engine.gate.set()
        gone.cancel()  # before the scheduler or the caller have run again
        assert (await scheduler.submit("v", ids([2]))).raw.shape == (3, 1)


async def test_a_failing_pass_fails_its_own_jobs_only() -> None:
    engine = FakeEngine()
    scheduler = new_scheduler(engine)
    async with running(scheduler):
        engine.error = InternalError("planted")
        failed = await asyncio.gather(
            scheduler.submit("v", ids([1])), scheduler.submit("v", ids([2], [3])), return_exceptions=True
        )
        assert [type(answer) for answer in failed] == [InternalError, InternalError]
        engine.error = None
        assert (await scheduler.submit("v", ids([4]))).computed_tokens == 1
    assert scheduler.queued_tokens == 0


@pytest.mark.parametrize("planted", [NotReady("planted", retry_after_s=3.0), OSError(5, "planted")])
async def test_each_job_of_a_failed_pass_has_an_exception_of_its_own(planted: Exception) -> None:
    """One object raised in several tasks would gather all their tracebacks."""
    engine = FakeEngine()
    scheduler = new_scheduler(engine)
    async with running(scheduler):
        engine.error = planted
        first, second = await asyncio.gather(
            scheduler.submit("v", ids([1])), scheduler.submit("v", ids([2])), return_exceptions=True
        )
    assert len(engine.passes) == 1
    assert first is not second
    for error in (first, second):
        assert isinstance(error, NotReady if isinstance(planted, NotReady) else InternalError)
        assert error.__cause__ is planted
        assert "planted" in error.message
        assert error.retry_after_s == getattr(planted, "retry_after_s", None)


@pytest.mark.parametrize("sequences", [[], [[]], [[1], []]])
async def test_a_job_without_work_is_refused_and_does_not_spin(sequences: list[list[int]]) -> None:
    scheduler = new_scheduler(FakeEngine())
    async with running(scheduler):
        with pytest.raises(ValueError, match="at least one"):
            await scheduler.submit("v", ids(*sequences))
        assert (await scheduler.submit("v", ids([2]))).raw.shape == (3, 1)


async def test_a_plan_that_leaves_everything_waiting_is_a_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quorum_server.scheduler.plan_pass", lambda *_: [])
    scheduler = new_scheduler(FakeEngine())
    waiting = asyncio.create_task(scheduler.submit("v", ids([1])))
    await settle()
    with pytest.raises(AssertionError, match="for ever"):
        await scheduler.step()
    waiting.cancel()


async def test_scores_of_another_number_of_sequences_are_no_scores() -> None:
    class ShortEngine(FakeEngine):
        async def score(self, version: str, sequences: Sequence[TokenIds]) -> Scores:
            scores = await super().score(version, sequences)
            return Scores(0, scores.raw[:, :-1], scores.computed_tokens)

    scheduler = new_scheduler(ShortEngine())
    async with running(scheduler):
        with pytest.raises(InternalError, match="shape"):
            await scheduler.submit("v", ids([1], [2]))


async def test_shared_work_is_divided_without_losing_a_token() -> None:
    class SharingEngine(FakeEngine):
        async def score(self, version: str, sequences: Sequence[TokenIds]) -> Scores:
            return Scores(0, (await super().score(version, sequences)).raw, 7)

    engine = SharingEngine()
    scheduler = new_scheduler(engine, token_budget=100)
    async with running(scheduler):
        engine.gate.clear()
        blocker = asyncio.create_task(scheduler.submit("v", ids([1])))
        await engine.has_begun.wait()
        tasks = [asyncio.create_task(scheduler.submit("v", ids([2] * size))) for size in (3, 5, 2)]
        await settle()
        engine.gate.set()
        shares = [scores.computed_tokens for scores in await asyncio.gather(*tasks)]
        await blocker
    # By hand: 7 of 10 tokens computed; cumulated 2.1, 5.6, 7.0, rounded 2, 6, 7.
    assert list(accumulate(shares)) == [2, 6, 7]


async def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    engine = FakeEngine()
    scheduler = new_scheduler(engine, max_queued_tokens=5)
    with pytest.raises(RequestTooLarge, match="6 tokens"):
        await scheduler.submit("v", ids([1] * 6))
    async with running(scheduler):
        engine.gate.clear()
        first = asyncio.create_task(scheduler.submit("v", ids([1] * 4)))
        await engine.has_begun.wait()
        scheduler.check_room(1)
        with pytest.raises(Overloaded) as refused:
            await scheduler.submit("v", ids([1, 2]))
        assert refused.value.retry_after_s is not None
        assert refused.value.retry_after_s >= 1
        engine.gate.set()
        await first
        await scheduler.submit("v", ids([1, 2]))


async def test_the_wait_is_estimated_from_the_measured_rate() -> None:
    scheduler = new_scheduler(FakeEngine(), max_queued_tokens=100)
    scheduler._measure(10, 1.0)
    scheduler._queued_tokens = 100
    with pytest.raises(Overloaded) as refused:
        scheduler.check_room(1)
    assert refused.value.retry_after_s == 10.0  # 100 tokens at 10 a second


async def test_who_waits_at_the_end_is_told() -> None:
    engine = FakeEngine()
    engine.gate.clear()
    scheduler = new_scheduler(engine)
    async with running(scheduler):
        tasks = [asyncio.create_task(scheduler.submit("v", ids([n] * 8))) for n in (1, 2)]
        await engine.has_begun.wait()
    for task in tasks:
        with pytest.raises(NotReady):
            await task
