"""The scheduler over fake engines: nothing lost, nothing answered twice, budget kept, bounded waiting."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorum_client.errors import NotReady, Overloaded, RequestTooLarge
from quorum_server.admission import Admission
from quorum_server.engine.messages import EngineLost, Scores, TokenIds
from quorum_server.events import Observer, PassReport
from quorum_server.jobs import JobScores
from quorum_server.packing import cut_units
from quorum_server.scheduler import Scheduler
from tests.server.fake_engine import NAN_ID, RAISE_ID, FakeEngine, fake_raw
from tests.server.simulated_clock import run_simulated

RATE = 100.0
"""Tokens a second of the simulated engines."""


def ids(*sequences: Sequence[int]) -> list[TokenIds]:
    return [np.array(sequence, dtype=np.int32) for sequence in sequences]


class Queue:
    """A scheduler, and the budget that its units are cut for."""

    def __init__(
        self,
        *engines: Any,
        token_budget: int = 10,
        max_queued_tokens: int = 10_000,
        observer: Observer | None = None,
        shares_prefixes: bool = False,
    ) -> None:
        self.token_budget = token_budget
        self.shares_prefixes = shares_prefixes
        self.admission = Admission(max_tokens=max_queued_tokens, max_bytes=1, observer=observer)
        self.scheduler = Scheduler(engines, admission=self.admission, observer=observer)

    async def submit(self, version: str, *sequences: Sequence[int]) -> JobScores:
        arrays = ids(*sequences)
        units = cut_units(arrays, self.token_budget, shares_prefixes=self.shares_prefixes)
        return await self.scheduler.submit(version, arrays, units, self.token_budget)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.scheduler.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})


async def settle() -> None:
    """Let every task that can run do so until it waits for something: a few turns of the loop suffice here."""
    for _ in range(10):
        await asyncio.sleep(0)


@dataclass
class TimedEngine:
    """One pass at a time, at `RATE`; the passes of the numbers in `lost` take their time and are lost."""

    lost: frozenset[int] = frozenset()
    is_ready: bool = True
    has_failed: bool = False
    passes: list[tuple[str, list[list[int]]]] = field(default_factory=list)
    log: list[tuple[str, int]] = field(default_factory=list)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def score(self, version: str, sequences: Sequence[TokenIds]) -> Scores:
        some = [sequence.tolist() for sequence in sequences]
        number = len(self.passes)
        self.passes.append((version, some))
        self.log.append(("sent", number))
        async with self.turn:
            await asyncio.sleep(sum(map(len, some)) / RATE)
        self.log.append(("back", number))
        if number in self.lost:
            raise EngineLost("planted")
        return Scores(0, fake_raw(some, 3), sum(map(len, some)))


@dataclass(frozen=True)
class Arrival:
    """A request of the simulation. leaves_after_s: when its caller goes, None for never."""

    after_s: float
    version: str
    sequences: list[list[int]]
    leaves_after_s: float | None


arrivals = st.lists(
    st.builds(
        Arrival,
        after_s=st.sampled_from([0.0, 0.0, 0.01, 0.05, 0.3]),
        version=st.sampled_from("ab"),
        sequences=st.lists(st.lists(st.integers(10, 99), min_size=1, max_size=12), min_size=1, max_size=12),
        leaves_after_s=st.sampled_from([None, None, None, 0.0, 0.02, 0.2]),
    ),
    min_size=1,
    max_size=10,
)


async def simulate(
    arrivals: Sequence[Arrival], engines: Sequence[TimedEngine], budget: int
) -> list[JobScores | BaseException]:
    queue = Queue(*engines, token_budget=budget)

    async def call(arrival: Arrival, at_s: float) -> JobScores:
        await asyncio.sleep(at_s)
        async with asyncio.timeout(arrival.leaves_after_s):
            return await queue.submit(arrival.version, *arrival.sequences)

    async with queue.running():
        calls = [
            asyncio.create_task(call(arrival, at_s))
            for arrival, at_s in zip(arrivals, accumulate(a.after_s for a in arrivals), strict=True)
        ]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        await asyncio.sleep(60)  # what callers left behind in the engines
        assert queue.admission.held_tokens == queue.scheduler.num_jobs == queue.scheduler._waiting_tokens == 0
    return answers


@settings(max_examples=80, deadline=None)
@given(
    arrivals=arrivals,
    budget=st.integers(1, 40),
    lost=st.lists(st.frozensets(st.integers(0, 6)), min_size=1, max_size=3),
)
def test_nothing_is_lost_or_answered_twice_within_the_budget(
    arrivals: list[Arrival], budget: int, lost: list[frozenset[int]]
) -> None:
    async def scenario() -> None:
        engines = [TimedEngine(numbers) for numbers in lost]
        answers = await simulate(arrivals, engines, budget)
        for answer, arrival in zip(answers, arrivals, strict=True):
            if isinstance(answer, TimeoutError):
                assert arrival.leaves_after_s is not None
            elif isinstance(answer, NotReady):
                assert any(lost)  # lost twice
            else:
                assert isinstance(answer, JobScores), answer
                assert any(lost) or not answer.failed  # lost alone, too
                expected = fake_raw(arrival.sequences, 3)
                expected[:, list(answer.failed)] = np.nan
                np.testing.assert_array_equal(answer.raw, expected if len(answer.raw) else expected[:0])
                scored = [s for n, s in enumerate(arrival.sequences) if n not in answer.failed]
                assert answer.computed_tokens == sum(map(len, scored))
        for engine in engines:
            for _, one_pass in engine.passes:
                assert len(one_pass) == 1 or sum(map(len, one_pass)) <= budget
        if not any(lost):
            sent = sorted(tuple(s) for engine in engines for _, one_pass in engine.passes for s in one_pass)
            asked = sorted(tuple(s) for arrival in arrivals for s in arrival.sequences)
            stayed = [s for a in arrivals if a.leaves_after_s is None for s in map(tuple, a.sequences)]
            assert not set(sent) - set(asked)
            for one in set(sent) | set(stayed):
                assert stayed.count(one) <= sent.count(one) <= asked.count(one)  # each sequence at most once

    run_simulated(scenario())


@settings(max_examples=60, deadline=None)
@given(arrivals=arrivals, budget=st.integers(4, 40), num_engines=st.integers(1, 3))
def test_waiting_is_bounded_by_what_came_before(arrivals: list[Arrival], budget: int, num_engines: int) -> None:
    """Every second pass moves the oldest request, by more than half a pass on average; so whoever comes later, a
    request has been sent after as many passes as the tokens before it and its own need, and as many for others.
    """

    async def scenario() -> None:
        engines = [TimedEngine() for _ in range(num_engines)]
        queue = Queue(*engines, token_budget=budget)
        under_way: dict[int, Arrival] = {}

        def count() -> int:
            return sum(len(engine.passes) for engine in engines)

        async def call(number: int, arrival: Arrival, at_s: float) -> None:
            await asyncio.sleep(at_s)
            under_way[number] = arrival
            works = [sum(map(len, one.sequences)) for one in under_way.values()]
            allowed = 2 * sum(math.ceil(2 * work / budget) + 1 for work in works) + 2 * num_engines
            before = count()
            await queue.submit(arrival.version, *arrival.sequences)
            del under_way[number]
            assert count() - before <= allowed + 2 * num_engines  # those are sent ahead while the last one runs

        times = accumulate(arrival.after_s for arrival in arrivals)
        async with queue.running():
            await asyncio.gather(*(call(n, a, t) for n, (a, t) in enumerate(zip(arrivals, times, strict=True))))

    run_simulated(scenario())


def test_a_request_of_10_000_items_does_not_hold_up_single_ones() -> None:
    async def scenario() -> None:
        engine = TimedEngine()
        queue = Queue(engine, token_budget=100, max_queued_tokens=10**6)
        loop = asyncio.get_running_loop()
        waits = []
        async with queue.running():
            big = asyncio.create_task(queue.submit("a", *([10 + n % 80, n] * 5 for n in range(10_000))))
            for number in range(50):
                await asyncio.sleep(3.3)
                sent_s = loop.time()
                await queue.submit("ab"[number % 2], [20] * 10)
                waits.append(loop.time() - sent_s)
            assert not big.done()
            # A full pass takes 1 s; two are at the engine, one more may go by arrival, then comes the single one.
            assert max(waits) <= 4.2
            await big
        assert loop.time() <= 10_000 * 10 / RATE + 50 * 0.1 + 10  # and hardly hold the big one up

    run_simulated(scenario())


def test_a_large_request_moves_on_however_many_small_ones_come() -> None:
    async def scenario() -> None:
        queue = Queue(TimedEngine(), token_budget=100, max_queued_tokens=10**6)

        small: list[asyncio.Task[JobScores]] = []

        async def flood() -> None:
            while True:  # twice what the engine can do
                small.append(asyncio.create_task(queue.submit("a", [20] * 10)))
                await asyncio.sleep(0.05)

        async with queue.running():
            flooding = asyncio.create_task(flood())
            await asyncio.sleep(5)
            sent_s = asyncio.get_running_loop().time()
            waiting_before = queue.admission.held_tokens
            await queue.submit("a", *([30 + n] * 50 for n in range(20)))
            elapsed_s = asyncio.get_running_loop().time() - sent_s
            flooding.cancel()
        await asyncio.gather(*small, return_exceptions=True)
        # Every second pass goes by arrival.
        assert elapsed_s <= 2 * (waiting_before + 1000) / RATE + 4

    run_simulated(scenario())


async def test_a_lone_request_waits_for_nobody() -> None:
    engine = FakeEngine()
    queue = Queue(engine)
    async with queue.running():
        await queue.submit("v", [1, 2])
    assert engine.passes == [[[1, 2]]]


async def test_requests_that_wait_together_meet_in_one_pass() -> None:
    engine = FakeEngine()
    queue = Queue(engine)
    async with queue.running():
        engine.gate.clear()
        first = asyncio.create_task(queue.submit("v", [1]))
        await engine.has_begun.wait()
        others = [asyncio.create_task(queue.submit("v", [number])) for number in (2, 3, 4)]
        await settle()
        engine.gate.set()
        await asyncio.gather(first, *others)
    assert engine.passes == [[[1]], [[2], [3], [4]]]


async def test_a_full_pass_is_sent_ahead_and_no_third_one() -> None:
    engine = FakeEngine()
    queue = Queue(engine, token_budget=4)
    async with queue.running():
        engine.gate.clear()
        tasks = [asyncio.create_task(queue.submit("v", [number] * 3)) for number in range(10, 16)]
        await settle()
        assert len(engine.passes) == 2
        engine.gate.set()
        await asyncio.gather(*tasks)
    assert engine.most_under_way == 2
    assert len(engine.passes) == 6


async def test_idle_engines_share_what_waits_before_any_gets_a_second_pass() -> None:
    engines = [FakeEngine() for _ in range(3)]
    for engine in engines:
        engine.gate.clear()
    queue = Queue(*engines, token_budget=4)
    async with queue.running():
        tasks = [asyncio.create_task(queue.submit("v", [number] * 3)) for number in range(10, 15)]
        await settle()
        assert [len(engine.passes) for engine in engines] == [2, 1, 1]  # the last one does not fill a pass
        for engine in engines:
            engine.gate.set()
        await asyncio.gather(*tasks)


async def test_candidates_of_one_prompt_go_to_one_engine_in_one_pass() -> None:
    engines = [FakeEngine() for _ in range(2)]
    queue = Queue(*engines, token_budget=20)
    prompts = [[n] * 4 for n in range(10, 14)]
    async with queue.running():
        await queue.submit("v", *([*prompt, 90 + n] for n in range(3) for prompt in prompts))
    passes = [one for engine in engines for one in engine.passes]
    assert len(passes) == 4
    assert all(len({tuple(sequence[:4]) for sequence in one}) == 1 for one in passes)
    assert all(engine.passes for engine in engines)


async def test_a_request_beyond_the_budget_is_split_and_put_together_again() -> None:
    engine = FakeEngine()
    queue = Queue(engine, token_budget=4)
    job = [[10 + i] * 3 for i in range(5)]
    async with queue.running():
        scores = await queue.submit("v", *job)
    assert len(engine.passes) == 5
    np.testing.assert_array_equal(scores.raw, fake_raw(job, 3))


async def test_a_pass_holds_one_version_only() -> None:
    engine = FakeEngine()
    queue = Queue(engine)
    async with queue.running():
        engine.gate.clear()
        first = asyncio.create_task(queue.submit("a", [8]))
        await engine.has_begun.wait()
        tasks = [asyncio.create_task(queue.submit(version, [8])) for version in "bba"]
        await settle()
        engine.gate.set()
        await asyncio.gather(first, *tasks)
    assert list(zip(engine.versions, map(len, engine.passes), strict=True)) == [("a", 1), ("b", 2), ("a", 1)]


async def test_who_leaves_before_its_pass_is_never_sent() -> None:
    engine = FakeEngine()
    queue = Queue(engine)
    async with queue.running():
        engine.gate.clear()
        first = asyncio.create_task(queue.submit("v", [1]))
        await engine.has_begun.wait()
        gone = asyncio.create_task(queue.submit("v", [2, 2]))
        stays = asyncio.create_task(queue.submit("v", [3]))
        await settle()
        assert queue.admission.held_tokens == 4
        gone.cancel()
        await settle()
        assert queue.admission.held_tokens == 2
        engine.gate.set()
        await asyncio.gather(first, stays)
    assert engine.passes == [[[1]], [[3]]]


async def test_a_caller_that_leaves_in_the_turn_of_its_answer_does_not_stop_the_queue() -> None:
    engine = FakeEngine()
    queue = Queue(engine)
    async with queue.running():
        engine.gate.clear()
        gone = asyncio.create_task(queue.submit("v", [1]))
        await engine.has_begun.wait()
        engine.gate.set()
        gone.cancel()  # before the scheduler or the caller have run again
        assert (await queue.submit("v", [2])).raw.shape == (3, 1)


async def test_an_item_at_which_the_engine_raises_fails_alone() -> None:
    engine = FakeEngine()
    queue = Queue(engine, token_budget=100)
    job = [[10 + n] for n in range(16)]
    job[5] = [RAISE_ID]
    async with queue.running():
        engine.gate.clear()
        blocker = asyncio.create_task(queue.submit("v", [1]))
        await engine.has_begun.wait()
        neighbour = asyncio.create_task(queue.submit("v", [50], [51]))
        bad = asyncio.create_task(queue.submit("v", *job))
        await settle()
        engine.gate.set()
        scores = await bad
        expected = fake_raw(job, 3)
        expected[:, 5] = np.nan
        np.testing.assert_array_equal(scores.raw, expected)
        assert scores.failed == {5}
        assert (await neighbour).failed == frozenset()
        np.testing.assert_array_equal((await neighbour).raw, fake_raw([[50], [51]], 3))
        await blocker


async def test_a_request_of_which_nothing_can_be_scored_is_told_so_whatever_its_companions() -> None:
    """No error of the request's, which its client would send again."""
    engine = FakeEngine()
    queue = Queue(engine, token_budget=100)
    async with queue.running():
        for companions in ([], [[10], [11]]):
            engine.gate.clear()
            engine.has_begun.clear()
            blocker = asyncio.create_task(queue.submit("v", [1]))
            await engine.has_begun.wait()
            others = [asyncio.create_task(queue.submit("v", one)) for one in companions]
            bad = asyncio.create_task(queue.submit("v", [RAISE_ID], [RAISE_ID, 2]))
            await settle()
            engine.gate.set()
            assert (await bad).failed == {0, 1}
            await asyncio.gather(blocker, *others)


async def test_an_engine_that_fails_at_everything_is_not_tried_for_each_item() -> None:
    engine = FakeEngine()
    engine.error = OSError(5, "planted")
    queue = Queue(engine, token_budget=10_000)
    async with queue.running():
        scores = await queue.submit("v", *([10 + n % 80, n] for n in range(1000)))
    assert len(scores.failed) == 1000
    assert len(engine.passes) < 140


async def test_a_score_that_is_no_number_is_delivered_as_it_is() -> None:
    queue = Queue(FakeEngine(), token_budget=100)
    async with queue.running():
        scores = await queue.submit("v", [NAN_ID], [20])
    np.testing.assert_array_equal(scores.raw, fake_raw([[NAN_ID], [20]], 3))
    assert scores.failed == frozenset()  # the engine did score it; what to make of it is not the scheduler's


async def test_each_job_of_a_failed_pass_has_an_exception_of_its_own() -> None:
    """One object raised in several tasks would gather all their tracebacks."""
    engine = FakeEngine()
    engine.error = planted = NotReady("planted", retry_after_s=3.0)
    queue = Queue(engine)
    async with queue.running():
        first, second = await asyncio.gather(queue.submit("v", [1]), queue.submit("v", [2]), return_exceptions=True)
    assert len(engine.passes) == 1
    assert first is not second
    for error in (first, second):
        assert isinstance(error, NotReady)
        assert error.__cause__ is planted
        assert error.retry_after_s == 3.0


async def test_a_part_whose_engine_is_lost_goes_once_more_and_alone() -> None:
    engine = TimedEngine(lost=frozenset({0}))
    queue = Queue(engine, token_budget=100)
    async with queue.running():
        answers = await asyncio.gather(*(queue.submit("v", [10 + n]) for n in range(3)))
    for n, answer in enumerate(answers):
        np.testing.assert_array_equal(answer.raw, fake_raw([[10 + n]], 3))
    assert [some for _, some in engine.passes] == [[[10], [11], [12]], [[10]], [[11]], [[12]]]


async def test_behind_a_part_that_was_lost_nothing_is_sent() -> None:
    """If it ends the engine again, nobody else falls with it."""
    engine = TimedEngine(lost=frozenset({0}))
    queue = Queue(engine, token_budget=4)
    async with queue.running():
        first = asyncio.create_task(queue.submit("v", [10]))
        await settle()
        await asyncio.gather(first, *(queue.submit("v", [20 + n] * 4) for n in range(4)))
    again = max(number for number, (_, some) in enumerate(engine.passes) if some == [[10]])
    place = engine.log.index(("sent", again))
    assert again > 0
    assert engine.log[place + 1] == ("back", again)


async def test_a_text_that_ends_its_engine_alone_is_at_fault_and_its_companions_are_scored() -> None:
    """It is not answered 503: its client would send it again, to the next engine."""
    engine = TimedEngine(lost=frozenset({0, 2}))
    queue = Queue(engine, token_budget=100)
    async with queue.running():
        first, second, third = await asyncio.gather(*(queue.submit("v", [10 + n]) for n in range(3)))
    assert (first.failed, second.failed, third.failed) == (frozenset(), {0}, frozenset())
    assert len(engine.passes) == 4


class Fragile(FakeEngine):
    """Lost with every pass that holds the token."""

    def __init__(self, token: int) -> None:
        super().__init__()
        self.token = token

    async def score(self, version: str, sequences: Sequence[TokenIds]) -> Scores:
        scores = await super().score(version, sequences)
        if any(self.token in sequence for sequence in sequences):
            raise EngineLost("planted")
        return scores


@pytest.mark.parametrize("prefix", [[], [20] * 40])
async def test_a_text_that_ends_its_engine_is_found_among_those_of_its_request(prefix: list[int]) -> None:
    engine = Fragile(99)
    queue = Queue(engine, token_budget=10_000, shares_prefixes=True)
    texts = [[*prefix, 30 + n] for n in range(32)]
    texts[13] = [*prefix, 99]
    async with queue.running():
        scores = await queue.submit("v", *texts)
    assert scores.failed == {13}
    expected = fake_raw(texts, 3)
    expected[:, 13] = np.nan
    np.testing.assert_array_equal(scores.raw, expected)
    assert sum(any(99 in text for text in some) for some in engine.passes) == 2 + 5  # together, alone, 16, 8, 4, 2, 1
    assert queue.scheduler._waiting_tokens == 0


async def test_where_every_text_ends_its_engine_the_engines_are_at_fault() -> None:
    engine = Fragile(20)
    queue = Queue(engine, token_budget=10_000)
    async with queue.running():
        with pytest.raises(EngineLost):
            await queue.submit("v", *([20, 30 + n] for n in range(64)))
    assert len(engine.passes) < 20
    assert queue.scheduler._waiting_tokens == 0


async def test_an_engine_that_is_not_ready_gets_nothing_and_the_others_go_on() -> None:
    gone, there = FakeEngine(), FakeEngine()
    gone.is_ready = False
    queue = Queue(gone, there)
    async with queue.running():
        await asyncio.gather(*(queue.submit("v", [10 + n]) for n in range(5)))
        assert gone.passes == []
        there.is_ready = False
        waiting = asyncio.create_task(queue.submit("v", [20]))
        await settle()
        assert not waiting.done()
        gone.is_ready = True
        queue.scheduler.wake()
        await waiting
    assert gone.passes == [[[20]]]


async def test_when_no_engine_can_be_started_whoever_waits_is_told() -> None:
    engine = FakeEngine()
    engine.is_ready = False
    queue = Queue(engine)
    async with queue.running():
        waiting = asyncio.create_task(queue.submit("v", [20]))
        await settle()
        engine.has_failed = True  # type: ignore[misc]
        queue.scheduler.wake()
        with pytest.raises(NotReady, match="no engine"):
            await waiting


@pytest.mark.parametrize("sequences", [[], [[]], [[1], []]])
async def test_a_job_without_work_is_refused_and_does_not_spin(sequences: list[list[int]]) -> None:
    queue = Queue(FakeEngine())
    async with queue.running():
        with pytest.raises(ValueError, match="at least one"):
            await queue.scheduler.submit("v", ids(*sequences), [], 10)
        assert (await queue.submit("v", [2])).raw.shape == (3, 1)


async def test_scores_of_another_number_of_sequences_are_no_scores() -> None:
    class ShortEngine(FakeEngine):
        async def score(self, version: str, sequences: Sequence[TokenIds]) -> Scores:
            scores = await super().score(version, sequences)
            return Scores(0, scores.raw[:, :-1], scores.computed_tokens)

    queue = Queue(ShortEngine())
    async with queue.running():
        scores = await queue.submit("v", [1], [2])
    assert scores.failed == {0, 1}


async def test_shared_work_is_divided_without_losing_a_token() -> None:
    class SharingEngine(FakeEngine):
        async def score(self, version: str, sequences: Sequence[TokenIds]) -> Scores:
            return Scores(0, (await super().score(version, sequences)).raw, 7)

    engine = SharingEngine()
    queue = Queue(engine, token_budget=100)
    async with queue.running():
        engine.gate.clear()
        blocker = asyncio.create_task(queue.submit("v", [1]))
        await engine.has_begun.wait()
        tasks = [asyncio.create_task(queue.submit("v", [2] * size)) for size in (3, 5, 2)]
        await settle()
        engine.gate.set()
        shares = [scores.computed_tokens for scores in await asyncio.gather(*tasks)]
        await blocker
    # By hand: 7 of 10 tokens computed; cumulated 2.1, 5.6, 7.0, rounded 2, 6, 7.
    assert list(accumulate(shares)) == [2, 6, 7]


async def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    engine = FakeEngine()
    queue = Queue(engine, max_queued_tokens=5)
    with pytest.raises(RequestTooLarge, match="6 tokens"):
        await queue.submit("v", [1] * 6)
    async with queue.running():
        engine.gate.clear()
        first = asyncio.create_task(queue.submit("v", [1] * 4))
        await engine.has_begun.wait()
        queue.admission.check_room(1)
        with pytest.raises(Overloaded) as refused:
            await queue.submit("v", [1, 2])
        assert refused.value.retry_after_s == 1.0
        engine.gate.set()
        await first
        await queue.submit("v", [1, 2])


async def test_who_waits_at_the_end_is_told() -> None:
    engine = FakeEngine()
    engine.gate.clear()
    queue = Queue(engine)
    async with queue.running():
        tasks = [asyncio.create_task(queue.submit("v", [n] * 8)) for n in (1, 2)]
        await engine.has_begun.wait()
    for task in tasks:
        with pytest.raises(NotReady):
            await task
    with pytest.raises(NotReady):  # and who was still tokenising
        await queue.submit("v", [3])


def test_the_observer_hears_of_passes_and_waits() -> None:
    class Recorder(Observer):
        def __init__(self) -> None:
            self.waits: list[float] = []
            self.passes: list[PassReport] = []

        def left_queue(self, waited_s: float) -> None:
            self.waits.append(waited_s)

        def pass_finished(self, report: PassReport) -> None:
            self.passes.append(report)

    async def scenario() -> Recorder:
        recorder = Recorder()
        queue = Queue(TimedEngine(), token_budget=100, observer=recorder)
        async with queue.running():
            first = asyncio.create_task(queue.submit("v", [10] * 50))
            await asyncio.sleep(0.2)
            await asyncio.gather(first, queue.submit("v", [11] * 20, [12] * 10))
        return recorder

    recorder = run_simulated(scenario())
    assert recorder.waits == [0.0, pytest.approx(0.3)]  # the first pass takes 50 tokens at 100 a second
    assert [(p.engine, p.version, p.num_sequences, p.submitted_tokens, p.computed_tokens) for p in recorder.passes] == [
        (0, "v", 1, 50, 50),
        (0, "v", 2, 30, 30),
    ]
    assert [p.elapsed_s for p in recorder.passes] == [pytest.approx(0.5), pytest.approx(0.3)]
