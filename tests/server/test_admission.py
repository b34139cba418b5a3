"""Bounds in tokens and bytes, and the time that Retry-After says."""

from __future__ import annotations

import pytest

from quorum_client.errors import NotReady, RequestTooLarge
from quorum_server.admission import Admission, QueueFull
from quorum_server.events import Observer, Rejection


class Recorder(Observer):
    def __init__(self) -> None:
        self.reasons: list[Rejection] = []

    def rejected(self, reason: Rejection) -> None:
        self.reasons.append(reason)


def test_tokens_are_held_until_they_are_answered() -> None:
    recorder = Recorder()
    admission = Admission(max_tokens=10, max_bytes=1, observer=recorder)
    with admission.hold_tokens(6):
        with pytest.raises(QueueFull) as refused, admission.hold_tokens(5):
            pass
        assert refused.value.reason == "queue_tokens"
        with admission.hold_tokens(4):
            assert admission.held_tokens == 10
            with pytest.raises(QueueFull):
                admission.check_room()  # full: not even a request whose tokens are not known yet
    assert admission.held_tokens == 0
    with pytest.raises(RequestTooLarge):
        admission.check_room(11)
    assert recorder.reasons == ["too_large"]  # what is full is counted where a client is told


def test_bytes_are_held_as_they_come_and_let_go_together() -> None:
    admission = Admission(max_tokens=10, max_bytes=100)
    with admission.hold_bytes() as hold:
        hold(60)
        hold(40)
        with admission.hold_bytes() as other, pytest.raises(QueueFull) as refused:
            other(1)
        assert refused.value.reason == "queue_bytes"
        assert admission.held_bytes == 100
    assert admission.held_bytes == 0


def test_retry_after_is_the_time_that_the_queue_needs() -> None:
    admission = Admission(max_tokens=1000, max_bytes=1)
    with admission.hold_tokens(1000):
        assert admission.estimate_wait_s() == 1.0  # nothing is measured yet
        admission.measure(10, 1.0, num_engines=2)
        assert admission.estimate_wait_s() == 50.0  # 1,000 tokens at 20 a second
        for _ in range(200):
            admission.measure(1, 1.0)
        assert admission.estimate_wait_s() == 60.0  # never longer
    with admission.hold_tokens(2):
        assert admission.estimate_wait_s() == 2.0


def test_a_server_that_ends_takes_nothing() -> None:
    recorder = Recorder()
    admission = Admission(max_tokens=10, max_bytes=10, observer=recorder)
    assert not admission.is_draining
    admission.start_draining()
    assert admission.is_draining
    admission.check_room(1)  # of requests that it took on before
    with pytest.raises(NotReady) as refused:
        admission.check_open()
    assert refused.value.retry_after_s is not None
    assert recorder.reasons == ["draining"]
