"""Lines: what is an item and what is not, how they are batched, and that nothing of a line is lost."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorum_client.commands.score_lines import (
    BadLine,
    Line,
    batched,
    read_lines,
    score_in_order,
    scored_lines,
    scores_of,
)
from quorum_client.commands.score_parts import ScoredPart, score_parts
from quorum_client.errors import NotReady
from quorum_client.types import ScoreItem, ScoreResponse
from tests.clients.fake_server import answer


def lines_of(*records: Any) -> list[Line]:
    return list(read_lines(json.dumps(record).encode() + b"\n" for record in records))


def prompts(letters: str) -> list[Line]:
    return lines_of(*({"prompt": letter, "response": str(i)} for i, letter in enumerate(letters)))


def score(items: list[ScoreItem]) -> list[ScoredPart]:
    body = {"inputs": [item.model_dump(exclude_none=True) for item in items]}
    whole = ScoreResponse.model_validate(answer("POST", "/score", body))
    return score_parts(items, lambda *_: whole, "none", {})


def shape(batches: Iterable[list[Line]]) -> list[str]:
    return ["".join(str(line.item.prompt) for line in batch) for batch in batches]


def test_further_keys_are_no_part_of_the_item() -> None:
    (line,) = lines_of({"id": 7, "prompt": "p", "response": "r", "meta": {"prompt": "x"}})
    assert line.item == ScoreItem(prompt="p", response="r")


def test_blank_lines_are_skipped_and_counted() -> None:
    lines = list(read_lines([b'\xef\xbb\xbf{"text": "a"}\r\n', b"\n", b"  \n", b'{"text": "b"}']))
    assert [(line.number, line.item.text) for line in lines] == [(1, "a"), (4, "b")]


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b"{", "not JSON"),
        (b"text", "not JSON"),
        (b'{"text": "a"} {"text": "b"}', "not JSON"),
        (b"[1]", "not a JSON object"),
        (b"\xff", "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"prompt": "p"}', "prompt and response go together"),
        (b'{"id": 1}', "give exactly one of"),
        (b'{"text": 3}', "text"),
        (b'{"text": "a", "quorum": {}}', "has a key 'quorum' already"),
    ],
)
def test_bad_line_is_named_by_its_number(raw: bytes, problem: str) -> None:
    lines = read_lines([b'{"text": "a"}\n', raw + b"\n"])
    assert next(lines).number == 1
    with pytest.raises(BadLine, match=f"^line 2: .*{problem}"):
        next(lines)


def test_damaged_gzip_is_a_bad_line() -> None:
    whole = gzip.compress(b'{"text": "a"}\n' * 3)
    with gzip.open(io.BytesIO(whole[:-4])) as file, pytest.raises(BadLine, match="damaged gzip"):
        list(read_lines(file))


@given(st.lists(st.sampled_from("abc"), max_size=12).map("".join), st.integers(1, 5), st.booleans())
def test_batches_keep_everything_in_order(letters: str, batch_size: int, by_prompt: bool) -> None:
    batches = list(batched(prompts(letters), batch_size, by_prompt=by_prompt))
    assert [line.number for batch in batches for line in batch] == list(range(1, len(letters) + 1))
    assert all(batches)
    if not by_prompt:
        assert all(len(batch) == batch_size for batch in batches[:-1])


@given(st.lists(st.sampled_from("ab"), max_size=12).map("".join))
def test_groups_do_not_depend_on_the_batch_size(letters: str) -> None:
    # The server's groups are the lines of one prompt within a request.
    def groups(batch_size: int) -> set[tuple[int, ...]]:
        return {
            tuple(line.number for line in batch if line.item.prompt == prompt)
            for batch in batched(prompts(letters), batch_size, by_prompt=True)
            for prompt in {line.item.prompt for line in batch}
        }

    assert groups(1) == groups(3) == groups(100)


@pytest.mark.parametrize(
    ("batch_size", "expected"),
    [(1, ["aa", "bbb", "a", "c"]), (3, ["aa", "bbb", "ac"]), (5, ["aabbb", "ac"]), (99, ["aabbb", "ac"])],
)
def test_runs_of_a_prompt_stay_whole_and_apart(batch_size: int, expected: list[str]) -> None:
    assert shape(batched(prompts("aabbbac"), batch_size, by_prompt=True)) == expected


def test_dialogues_are_compared_by_content() -> None:
    dialogue = [{"role": "user", "content": "Hi"}]
    other = [{"role": "user", "content": "Ho"}]
    lines = lines_of(*({"prompt": p, "response": "r"} for p in (dialogue, dialogue, other)))
    assert [len(batch) for batch in batched(lines, 1, by_prompt=True)] == [2, 1]


@pytest.mark.parametrize(
    ("by_prompt", "expected"),
    # Of the run "bb", more lines may follow in the corrected input: it is left for then.
    [(False, ["aab", "b"]), (True, ["aa"])],
)
def test_what_comes_before_a_bad_line_is_handed_out(by_prompt: bool, expected: list[str]) -> None:
    def lines() -> Iterator[Line]:
        yield from prompts("aabb")
        raise BadLine("line 5: not JSON")

    got: list[list[Line]] = []
    with pytest.raises(BadLine, match="line 5"):
        got.extend(batched(lines(), 3, by_prompt=by_prompt))
    assert shape(got) == expected


def test_scores_come_in_the_order_of_the_input() -> None:
    # The first batch is held until the last of the window has been scored.
    others_done = threading.Event()
    batches = [[line] for line in prompts("abcd")]

    def reversed_score(items: list[ScoreItem]) -> list[ScoredPart]:
        if items[0].prompt == "a":
            assert others_done.wait(30)
        if items[0].prompt == "d":
            others_done.set()
        return score(items)

    done = list(score_in_order(batches, reversed_score, num_in_flight=4))
    assert [batch[0].number for batch, _ in done] == [1, 2, 3, 4]


def test_no_more_than_the_window_is_in_flight() -> None:
    lock = threading.Lock()
    running, most = 0, 0
    both = threading.Barrier(2, timeout=30)

    def counting(items: list[ScoreItem]) -> list[ScoredPart]:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        both.wait()
        with lock:
            running -= 1
        return score(items)

    assert len(list(score_in_order([[line] for line in prompts("abcdefgh")], counting, num_in_flight=2))) == 8
    assert most == 2


def test_batches_before_a_failing_one_are_handed_out() -> None:
    def failing(items: list[ScoreItem]) -> list[ScoredPart]:
        if items[0].prompt == "c":
            raise NotReady("starting")
        return score(items)

    done = []
    with pytest.raises(NotReady):
        done.extend(batch[0].number for batch, _ in score_in_order([[p] for p in prompts("abcd")], failing, 2))
    assert done == [1, 2]


def test_everything_before_a_bad_line_is_scored() -> None:
    def batches() -> Iterator[list[Line]]:
        yield from ([line] for line in prompts("abc"))
        raise BadLine("line 4: not JSON")

    done = []
    with pytest.raises(BadLine, match="line 4"):
        done.extend(batch[0].number for batch, _ in score_in_order(batches(), score, 4))
    assert done == [1, 2, 3]


@pytest.mark.parametrize(
    "text",
    [
        b'{"id": 7, "text": "abc"}',
        b'{"text":"abc"  }',
        b'{"big": 12345678901234567890.1234567890, "text": "abc", "s": "\\u00e9 \xc3\xa9", "n": 1e400, "d": 1, "d": 2}',
    ],
)
def test_line_comes_out_as_it_went_in_with_its_scores(text: bytes) -> None:
    (line,) = read_lines([text])
    (scored,) = scored_lines([line], score([line.item]))
    assert scored.startswith(text[:-1].rstrip())
    assert json.loads(scored)["quorum"] == {
        "score": 4.0,
        "mean": 4.0,
        "std": 1.0,
        "members": [3.0, 4.0, 5.0],
        "num_tokens": 3,
        "truncated": False,
        "error": None,
        "ensemble": {"name": "default", "version": "0123456789ab"},
        "mode": "mean",
        "beta": None,
        "center": "none",
    }
    assert scores_of(line, scored) == json.loads(scored)["quorum"]


def test_scores_of_another_line_are_not_taken() -> None:
    one, other = lines_of({"text": "abc"}, {"text": "abcd"})
    (scored,) = scored_lines([one], score([one.item]))
    assert scores_of(other, scored) is None
    for wrong in (scored[:-1], scored[:-2], scored[:-3] + b"\n", one.text + b"\n", one.opening + b"3}\n"):
        assert scores_of(one, wrong) is None


INTERRUPTED = """
import threading
from quorum_client.commands.score_lines import read_lines, score_in_order

lines = list(read_lines([b'{"text": "first"}', b'{"text": "never answered"}']))
others_began = threading.Event()

def score(items):
    if items[0].text == "first":
        others_began.wait()
        raise KeyboardInterrupt
    others_began.set()
    threading.Event().wait()

try:
    list(score_in_order(([line] for line in lines), score, 2))
except KeyboardInterrupt:
    print("interrupted")
"""


def test_interrupt_ends_the_process_without_waiting_for_what_is_in_flight() -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stdout) == (0, "interrupted\n"), ended.stderr
