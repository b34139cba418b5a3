"""The output file: continued only if it is a beginning of this run, cut at a line's end, never half-written."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorum_client.commands.score_lines import BadLine, Line, read_lines, scored_lines
from quorum_client.commands.score_output import CannotResume, OutputFile, Resumed, open_lines, resume
from quorum_client.commands.score_parts import ScoredPart, score_parts
from quorum_client.types import ScoreItem, ScoreResponse
from tests.clients.fake_server import answer

SUFFIXES = ["jsonl", "jsonl.gz"]


def score(lines: list[Line], mode: str = "mean", **asked_for: object) -> list[ScoredPart]:
    items = [line.item.model_dump(exclude_none=True) for line in lines]
    whole = ScoreResponse.model_validate(answer("POST", "/score", {"inputs": items, "mode": mode}))
    return score_parts([line.item for line in lines], lambda *_: whole, "none", asked_for)


def make_lines(letters: str = "aabbc") -> list[Line]:
    records = ({"id": i, "prompt": letter, "response": "x" * i} for i, letter in enumerate(letters))
    return list(read_lines(json.dumps(record).encode() for record in records))


def written(lines: list[Line]) -> list[bytes]:
    return scored_lines(lines, score(lines))


def write(path: Path, content: bytes) -> None:
    with open_lines(path, "wb") as file:
        file.write(content)


def read(path: Path) -> bytes:
    with open_lines(path, "rb") as file:
        return file.read()


def numbers(resumed: Resumed) -> list[int]:
    return [line.number for line in resumed.rest]


def go_on(path: Path, resumed: Resumed, lines: list[Line] | None = None) -> None:
    """Write what is left to score, or `lines` in its place."""
    with OutputFile(path, append=True, keep_lines=resumed.num_kept if resumed.is_torn else None) as output:
        output.write(written(list(resumed.rest) if lines is None else lines))


@pytest.fixture(params=SUFFIXES)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / f"out.{request.param}"


def test_missing_file_starts_at_the_first_line(path: Path) -> None:
    resumed = resume(path, iter(make_lines()), by_prompt=False)
    assert (resumed.num_kept, numbers(resumed)) == (0, [1, 2, 3, 4, 5])
    assert not path.exists()


def test_complete_lines_are_kept(path: Path) -> None:
    lines = make_lines()
    write(path, b"".join(written(lines)[:3]))
    before = path.read_bytes()
    resumed = resume(path, iter(lines), by_prompt=False)
    assert (resumed.num_kept, numbers(resumed)) == (3, [4, 5])
    assert path.read_bytes() == before


def test_finished_file_has_nothing_left(path: Path) -> None:
    lines = make_lines()
    write(path, b"".join(written(lines)))
    resumed = resume(path, iter(lines), by_prompt=True)
    assert (resumed.num_kept, numbers(resumed)) == (5, [])


@given(cut=st.integers(0, 700))
def test_file_cut_anywhere_is_continued_to_the_same_whole(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("cut") / "out.jsonl"
    lines = make_lines()
    whole = b"".join(written(lines))
    path.write_bytes(whole[:cut])
    resumed = resume(path, iter(lines), by_prompt=False)
    assert path.read_bytes() == whole[:cut]
    go_on(path, resumed)
    assert read(path) == whole
    assert list(path.parent.iterdir()) == [path]


def test_gzip_cut_anywhere_is_continued_to_the_same_whole(tmp_path: Path) -> None:
    lines = make_lines()
    path = tmp_path / "out.jsonl.gz"
    with OutputFile(path, append=False) as output:
        for line in written(lines[:3]):
            output.write([line])
    num_first_run = path.stat().st_size
    with OutputFile(path, append=True) as output:
        output.write(written(lines[3:]))
    stored = path.read_bytes()
    kept = []
    for cut in range(len(stored)):
        path.write_bytes(stored[:cut])
        if cut in (1, num_first_run + 1):
            # One byte of a gzip header could be anything: refused rather than cut off.
            with pytest.raises(CannotResume, match="gzip"):
                resume(path, iter(lines), by_prompt=False)
            continue
        resumed = resume(path, iter(lines), by_prompt=False)
        kept.append(resumed.num_kept)
        go_on(path, resumed)
        assert read(path) == b"".join(written(lines)), cut
    # What was flushed before the cut is not lost: the count rises to all five.
    assert kept == sorted(kept)
    assert set(kept) >= {0, 1, 2, 3, 5}


def test_half_line_of_something_else_is_not_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    path.write_bytes(b"not ours, and without a newline")
    with pytest.raises(CannotResume, match="line 1"):
        resume(path, iter(make_lines()), by_prompt=False)
    assert path.read_bytes() == b"not ours, and without a newline"


@pytest.mark.parametrize("by_prompt", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        lambda lines: written(lines)[1:],  # begins with another line
        lambda lines: [written(lines)[0], written(lines)[2]],  # one is missing
        lambda lines: [*written(lines), written(lines)[0]],  # more than the input
        lambda lines: [*written(lines), b'{"id"'],  # half a line more than the input
        lambda lines: [line.text + b"\n" for line in lines],  # the input itself
        lambda lines: [written(lines)[0], b"\n"],
        lambda lines: [written(lines)[0].replace(b'"score": ', b'"score" '), written(lines)[1]],
    ],
)
def test_file_that_is_not_a_beginning_is_left_alone(path: Path, change: object, by_prompt: bool) -> None:
    lines = make_lines()
    write(path, b"".join(change(lines)))  # type: ignore[operator]
    before = path.read_bytes()
    with pytest.raises(CannotResume, match="--overwrite"):
        resume(path, iter(lines), by_prompt=by_prompt)
    assert path.read_bytes() == before


def test_bad_line_in_what_was_scored_changes_nothing(path: Path) -> None:
    lines = make_lines()
    write(path, b"".join(written(lines)[:3]) + b'{"id"')
    before = path.read_bytes()

    def broken() -> Iterator[Line]:
        yield lines[0]
        raise BadLine("line 2: not JSON")

    with pytest.raises(BadLine):
        resume(path, broken(), by_prompt=False)
    assert path.read_bytes() == before


def test_what_is_not_gzip_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl.gz"
    path.write_bytes(b"plain text\n")
    with pytest.raises(CannotResume, match="gzip"):
        resume(path, iter(make_lines()), by_prompt=False)
    assert path.read_bytes() == b"plain text\n"


@pytest.mark.parametrize(
    ("num_written", "num_kept", "rest"),
    [
        # Prompts a a b b c: a run that goes on in the input is scored again as a whole.
        (1, 0, [1, 2, 3, 4, 5]),
        (2, 2, [3, 4, 5]),
        (3, 2, [3, 4, 5]),
        (4, 4, [5]),
        (5, 5, []),
    ],
)
def test_half_a_group_is_scored_again(path: Path, num_written: int, num_kept: int, rest: list[int]) -> None:
    lines = make_lines("aabbc")
    write(path, b"".join(written(lines)[:num_written]))
    resumed = resume(path, iter(lines), by_prompt=True)
    assert (resumed.num_kept, numbers(resumed)) == (num_kept, rest)
    go_on(path, resumed, lines=[])
    assert read(path) == b"".join(written(lines)[:num_kept])


def test_two_ways_of_scoring_are_not_mixed(path: Path) -> None:
    lines = make_lines()
    write(path, b"".join(written(lines)[:2]))
    resumed = resume(path, iter(lines), by_prompt=False)
    resumed.check(score(lines[2:]))
    with pytest.raises(CannotResume, match="was scored with"):
        resumed.check(score(lines[2:], mode="min"))
    Resumed(None, iter(lines)).check(score(lines, mode="min"))


def test_output_goes_through_a_link_to_the_file_behind_it(tmp_path: Path) -> None:
    lines = make_lines()
    target, link = tmp_path / "target.jsonl", tmp_path / "link.jsonl"
    target.write_bytes(written(lines)[0] + b'{"id": 1')
    target.chmod(0o640)
    link.symlink_to(target)
    resumed = resume(link, iter(lines), by_prompt=False)
    assert resumed.num_kept == 1
    go_on(link, resumed, lines=[])
    assert link.is_symlink()
    assert target.read_bytes() == written(lines)[0]
    assert target.stat().st_mode & 0o777 == 0o640


def test_every_batch_is_on_disk_before_the_next(path: Path) -> None:
    lines = make_lines()
    with OutputFile(path, append=False) as output:
        for num_done, line in enumerate(written(lines), start=1):
            output.write([line])
            kept = resume_copy(path, lines)
            assert kept == num_done


def resume_copy(path: Path, lines: list[Line]) -> int:
    copy = path.with_name(f"copy-{path.name}")
    copy.write_bytes(path.read_bytes())
    return resume(copy, iter(lines), by_prompt=False).num_kept


def test_run_that_fails_before_its_first_batch_destroys_nothing(path: Path) -> None:
    path.write_bytes(b"precious")
    with pytest.raises(RuntimeError), OutputFile(path, append=False):
        raise RuntimeError
    assert path.read_bytes() == b"precious"


def test_run_over_an_empty_input_leaves_an_empty_file(path: Path) -> None:
    with OutputFile(path, append=False):
        pass
    assert read(path) == b""


def test_gzip_is_by_suffix(tmp_path: Path) -> None:
    with OutputFile(tmp_path / "a.jsonl.gz", append=False) as output:
        output.write([b"x\n"])
    assert gzip.decompress((tmp_path / "a.jsonl.gz").read_bytes()) == b"x\n"
    assert isinstance(make_lines()[0].item, ScoreItem)


def test_torn_file_is_cut_only_when_something_is_written(path: Path) -> None:
    lines = make_lines()
    write(path, b"".join(written(lines)[:2]) + lines[2].opening)
    before = path.read_bytes()
    resumed = resume(path, iter(lines), by_prompt=False)
    with pytest.raises(RuntimeError), OutputFile(path, append=True, keep_lines=resumed.num_kept):
        raise RuntimeError
    assert path.read_bytes() == before
    go_on(path, resumed)
    assert read(path) == b"".join(written(lines))


def test_what_was_asked_for_belongs_to_the_origin(path: Path) -> None:
    lines = make_lines()
    write(path, b"".join(scored_lines(lines[:2], score(lines[:2], normalize=True, truncate=None))))
    resumed = resume(path, iter(lines), by_prompt=False)
    resumed.check(score(lines[2:], normalize=True, truncate=None))
    for other in ({"normalize": False, "truncate": None}, {"normalize": True, "truncate": "left"}):
        with pytest.raises(CannotResume, match="was scored with"):
            resumed.check(score(lines[2:], **other))


@pytest.mark.parametrize(
    ("asked", "option"),
    [({"mode": "lcb"}, "mode"), ({"center": "group"}, "center"), ({"ensemble": "other"}, "ensemble"),
     ({"ensemble": "default@000000000000"}, "ensemble"), ({"dtype": "bfloat16"}, "dtype")],
)  # fmt: skip
def test_another_way_of_scoring_is_refused_though_nothing_is_left_to_score(
    path: Path, asked: dict[str, object], option: str
) -> None:
    lines = make_lines()
    write(path, b"".join(scored_lines(lines, score(lines, dtype="auto"))))
    resumed = resume(path, iter(make_lines()), by_prompt=False)
    ensemble = resumed.last_scores["ensemble"]  # type: ignore[index]
    resumed.check_asked({"mode": "mean", "center": "none", "ensemble": ensemble["name"], "dtype": "auto"})  # type: ignore[index]
    with pytest.raises(CannotResume, match=f"was scored with {option}"):
        resumed.check_asked(asked)
    assert next(resumed.rest, None) is None
