"""`quorum score` from its command line: what is read, asked, written and shown, and how a stopped run goes on."""

from __future__ import annotations

import gzip
import json
import os
import threading
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from quorum_client import Client, cli
from quorum_client.commands import score as command
from quorum_client.errors import InvalidRequest
from quorum_client.types import ScoreRequest, ScoreResponse
from tests.clients.fake_server import answer, error_body, respond, result_of

Handler = Callable[[httpx.Request], httpx.Response]
RECORDS = [{"id": i, "prompt": "p", "response": "x" * i} for i in range(1, 11)]


def jsonl(records: list[Any]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


INPUT = jsonl(RECORDS)


class Server:
    """In place of the network: answers by `respond` unless told otherwise, and remembers what it was asked."""

    def __init__(self) -> None:
        self.handler: Handler = respond
        self.requests: list[httpx.Request] = []
        self.addresses: list[tuple[str, str | None]] = []
        self.deadlines_s: list[float] = []

    def handle(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return self.handler(request)

    def client(self, base_url: str, *, api_key: str | None, deadline_s: float) -> Client:
        self.deadlines_s.append(deadline_s)
        self.addresses.append((base_url, api_key))
        http = httpx.Client(transport=httpx.MockTransport(self.handle))
        return Client(base_url, api_key=api_key, http_client=http, max_retries=0)

    def bodies(self) -> list[Any]:
        return [json.loads(request.content) for request in self.requests]

    def fail_from(self, first: int, response: Callable[[], httpx.Response]) -> None:
        """Answer requests that hold an item with id >= first (a response that long) by `response`."""

        def handler(request: httpx.Request) -> httpx.Response:
            longest = max(len(item["response"]) for item in json.loads(request.content)["inputs"])
            return response() if longest >= first else respond(request)

        self.handler = handler


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()
    monkeypatch.setattr(command, "Client", server.client)
    monkeypatch.setattr(
        cli, "entry_points", lambda group: [EntryPoint("score", "quorum_client.commands.score:score", group)]
    )
    return server


def run(*args: object, input: bytes = INPUT) -> Result:  # noqa: A002 - CliRunner's own name
    return CliRunner().invoke(cli.app, ["score", *map(str, args)], input=input)


def records_in(data: bytes | str) -> list[Any]:
    return [json.loads(line) for line in data.splitlines()]


def expected(records: list[Any], **changes: Any) -> list[Any]:
    head = {"ensemble": {"name": "default", "version": "0123456789ab"}, "mode": "mean", "beta": None, "center": "none"}
    tail = {"truncated": False, "error": None, "normalize": True, "truncate": None}
    return [{**r, "quorum": {**result_of(r["response"]), **tail, **head, **changes}} for r in records]


def unavailable() -> httpx.Response:
    return httpx.Response(503, json=error_body("not_ready", "the engine is starting", retryable=True))


def test_stdin_to_stdout(server: Server) -> None:
    result = run("--batch-size", 3)
    assert result.exit_code == 0, result.stderr
    assert records_in(result.stdout) == expected(RECORDS)
    assert sorted(len(body["inputs"]) for body in server.bodies()) == [1, 3, 3, 3]
    assert server.addresses == [("http://127.0.0.1:8000", None)]


def test_options_reach_the_server(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUORUM_API_KEY", "KEY")
    options = ["--mode", "lcb", "--beta", "0.5", "--center", "reference", "--ensemble", "e@1", "--truncate", "right"]
    result = run("--url", "http://h", "--no-normalize", *options)
    assert result.exit_code == 0, result.stderr
    (body,) = server.bodies()
    assert {name: value for name, value in body.items() if name != "inputs"} == {
        "mode": "lcb",
        "beta": 0.5,
        "center": "reference",
        "ensemble": "e@1",
        "truncate": "right",
        "normalize": False,
    }
    assert body["inputs"] == [{"prompt": r["prompt"], "response": r["response"]} for r in RECORDS]
    assert server.addresses == [("http://h", "KEY")]
    assert records_in(result.stdout) == expected(
        RECORDS, mode="lcb", beta=0.5, center="reference", normalize=False, truncate="right"
    )


def test_files_and_gzip_by_suffix(server: Server, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl.gz").write_bytes(gzip.compress(INPUT))
    result = run("--in", tmp_path / "in.jsonl.gz", "--out", tmp_path / "out.jsonl.gz", input=b"")
    assert (result.exit_code, result.stdout) == (0, "")
    assert records_in(gzip.decompress((tmp_path / "out.jsonl.gz").read_bytes())) == expected(RECORDS)


def test_summary_goes_to_stderr(server: Server) -> None:
    result = run()
    assert result.stderr.startswith("10 items scored by default@0123456789ab, 0 errors, ")
    assert result.stderr.rstrip().endswith("items/s")


def test_json_summary_is_the_last_line_of_stdout(server: Server, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    summary = json.loads(run("--json", "--out", out).stdout.splitlines()[-1])
    assert summary.pop("seconds") >= 0
    assert summary.pop("items_per_s") > 0
    assert summary == {"items": 10, "kept": 0, "errors": 0, "ensembles": ["default@0123456789ab"], "out": str(out)}


def test_item_error_is_written_and_counted(server: Server) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        body = answer("POST", "/score", json.loads(request.content))
        body["results"][1] = {"error": {"code": "empty_text", "message": "the response is empty"}}
        return httpx.Response(200, json=body)

    server.handler = handler
    result = run()
    assert result.exit_code == 0
    assert records_in(result.stdout)[1]["quorum"]["score"] is None
    assert records_in(result.stdout)[1]["quorum"]["error"]["code"] == "empty_text"
    assert ", 1 errors, " in result.stderr


def test_malformed_line_is_named_and_what_came_before_is_kept(server: Server, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    broken = jsonl(RECORDS[:4]) + b'{"prompt": "p"\n' + jsonl(RECORDS[5:])
    result = run("--out", out, "--batch-size", 3, input=broken)
    assert result.exit_code == 1
    assert "error: bad_line: line 5: not JSON" in result.stderr
    assert records_in(out.read_bytes()) == expected(RECORDS[:4])
    # Put right, the same command goes on from there.
    server.requests.clear()
    result = run("--out", out, "--batch-size", 3)
    assert result.exit_code == 0, result.stderr
    assert "6 items scored" in result.stderr
    assert "4 kept from before" in result.stderr
    assert records_in(out.read_bytes()) == expected(RECORDS)
    assert sum(len(body["inputs"]) for body in server.bodies()) == 6


def test_server_error_stops_with_whole_lines_and_goes_on_later(server: Server, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    server.fail_from(6, unavailable)
    result = run("--out", out, "--batch-size", 2)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == "error: not_ready: the engine is starting"
    assert records_in(out.read_bytes()) == expected(RECORDS[:4])
    server.handler = respond
    assert run("--out", out, "--batch-size", 2).exit_code == 0
    assert records_in(out.read_bytes()) == expected(RECORDS)


def test_interrupt_keeps_what_is_done(server: Server, tmp_path: Path) -> None:
    def interrupt() -> httpx.Response:
        raise KeyboardInterrupt

    out = tmp_path / "out.jsonl"
    server.fail_from(6, interrupt)
    result = run("--out", out, "--batch-size", 2)
    assert result.exit_code == 130
    assert "4 items scored" in result.stderr
    assert records_in(out.read_bytes()) == expected(RECORDS[:4])


def test_half_line_is_cut_off_and_scored_again(server: Server, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run("--out", out)
    whole = out.read_bytes()
    out.write_bytes(whole[:-30])
    assert run("--out", out).exit_code == 0
    assert out.read_bytes() == whole


def test_finished_run_asks_nothing(server: Server, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run("--out", out)
    server.requests.clear()
    result = run("--out", out)
    assert result.exit_code == 0
    assert server.requests == []
    assert "0 items scored, 10 kept from before" in result.stderr


def test_output_of_another_input_is_refused_and_unchanged(server: Server, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run("--out", out, input=jsonl(RECORDS[3:]))
    before = out.read_bytes()
    result = run("--out", out)
    assert result.exit_code == 1
    assert "error: cannot_resume: " in result.stderr
    assert out.read_bytes() == before


def test_output_of_another_mode_is_refused_and_unchanged(server: Server, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run("--out", out, input=jsonl(RECORDS[:3]))
    before = out.read_bytes()
    result = run("--out", out, "--mode", "min")
    assert result.exit_code == 1
    assert "was scored with" in result.stderr
    assert out.read_bytes() == before
    assert run("--out", out, "--mode", "min", "--overwrite").exit_code == 0
    assert records_in(out.read_bytes()) == expected(RECORDS, mode="min")


def test_groups_are_asked_for_whole(server: Server) -> None:
    records = [{"prompt": letter, "response": "r" * i} for i, letter in enumerate("aaabbacc")]
    result = run("--center", "group", "--batch-size", 2, input=jsonl(records))
    assert result.exit_code == 0, result.stderr
    groups = sorted("".join(item["prompt"] for item in body["inputs"]) for body in server.bodies())
    assert groups == ["a", "aaa", "bb", "cc"]
    assert [r["response"] for r in records_in(result.stdout)] == [r["response"] for r in records]


@pytest.mark.parametrize(
    "args",
    [
        ["--url", "http://h", "--bundle", "b"],
        ["--dtype", "float32"],
        ["--bundle", "b", "--deadline", "5"],
        ["--json"],
        ["--in", "no-such-file.jsonl"],
        ["--in", "."],
        ["--out", "."],
        ["--out", "no-such-folder/out.jsonl"],
        ["--mode", "max"],
        ["--beta", "-1"],
        ["--center", "pair"],
        ["--batch-size", "0"],
    ],
)
def test_wrong_usage_is_exit_code_2_and_asks_nothing(server: Server, args: list[str]) -> None:
    result = run(*args)
    assert result.exit_code == 2, result.stderr
    assert server.requests == []


def test_input_is_not_overwritten_by_output(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(INPUT)
    assert run("--in", path, "--out", tmp_path / "." / "data.jsonl", "--overwrite").exit_code == 2
    assert path.read_bytes() == INPUT


def test_file_errors_are_one_line(server: Server) -> None:
    # Every write to this device fails as on a full disk.
    result = run("--out", "/dev/full")
    assert result.exit_code == 1
    assert "error: file_failed: " in result.stderr
    assert "No space left on device" in result.stderr


def test_empty_input_gives_an_empty_output(server: Server, tmp_path: Path) -> None:
    result = run("--out", tmp_path / "out.jsonl", input=b"\n")
    assert result.exit_code == 0
    assert (tmp_path / "out.jsonl").read_bytes() == b""
    assert server.requests == []


def test_nothing_but_results_on_stdout(server: Server) -> None:
    server.fail_from(1, unavailable)
    result = run()
    assert (result.exit_code, result.stdout) == (1, "")


def refused_item(item: dict[str, Any]) -> dict[str, str] | None:
    text = item.get("response") or item.get("text") or ""
    return None if text.strip() else {"code": "empty_text", "message": f"blank: {len(text)} characters"}


def as_a_server(body: Any) -> tuple[int, Any]:
    """As the real server: a blank item has an error, and a request of nothing else is refused."""
    errors = [refused_item(item) for item in body["inputs"]]
    if body.get("center") == "group" and len(errors) < 2:
        return 422, error_body("invalid_request", "one candidate is no group")
    if all(errors):
        return 422, error_body(errors[0]["code"], errors[0]["message"])  # type: ignore[index]
    content = answer("POST", "/score", body)
    results = zip(content["results"], errors, strict=True)
    content["results"] = [{"error": error} if error else result for result, error in results]
    return 200, content


def refuse_blanks(request: httpx.Request) -> httpx.Response:
    status, body = as_a_server(json.loads(request.content))
    return httpx.Response(status, json=body)


BLANKS: list[list[Any]] = [
    [*RECORDS[:3], {"prompt": "p", "response": " "}],
    [{"prompt": "p", "response": " "}, {"prompt": "p", "response": "   "}, *RECORDS[:3]],
    [{"prompt": "p", "response": " "}, {"prompt": "p", "response": "  "}],
]


@pytest.mark.parametrize("source", [["--url", "http://h"], ["--bundle", "b"]])
@pytest.mark.parametrize("records", BLANKS)
def test_errors_do_not_depend_on_how_lines_fall_into_batches(
    server: Server, local: type[LocalScorer], records: list[Any], source: list[str]
) -> None:
    server.handler = refuse_blanks
    for batch_size in (1, 2, 3, 32):
        result = run(*source, "--batch-size", batch_size, input=jsonl(records))
        assert result.exit_code == 0, result.stderr
        written = [record["quorum"] for record in records_in(result.stdout)]
        assert [one["error"] for one in written] == [refused_item(record) for record in records]
        assert [one["score"] for one in written] == [
            None if refused_item(record) else result_of(record["response"])["score"] for record in records
        ]


def test_a_refused_group_has_each_item_s_own_error(server: Server) -> None:
    server.handler = refuse_blanks
    groups = [{"prompt": "a", "response": " "}, {"prompt": "a", "response": "  "}]
    groups += [{"prompt": "b", "response": "x"}, {"prompt": "b", "response": "xx"}]
    result = run("--center", "group", "--batch-size", 2, input=jsonl(groups))
    assert result.exit_code == 0, result.stderr
    written = [record["quorum"] for record in records_in(result.stdout)]
    assert [one["error"] for one in written] == [refused_item(record) for record in groups]


def test_run_goes_on_after_a_refused_line(server: Server, tmp_path: Path) -> None:
    server.handler = refuse_blanks
    out = tmp_path / "out.jsonl"
    records = BLANKS[0] + RECORDS[3:]
    assert run("--out", out, "--batch-size", 1, input=jsonl(records[:4])).exit_code == 0
    result = run("--out", out, "--batch-size", 1, input=jsonl(records))
    assert result.exit_code == 0, result.stderr
    assert "4 kept from before" in result.stderr
    # The refused line says nothing of the ensemble; the lines before it still hold the run to theirs.
    out.write_bytes(b"".join(out.read_bytes().splitlines(keepends=True)[:4]))
    assert run("--out", out, "--mode", "min", input=jsonl(records)).exit_code == 1


def test_other_refusals_stop_the_run(server: Server) -> None:
    server.handler = lambda request: httpx.Response(422, json=error_body("invalid_request"))
    assert run().exit_code == 1
    assert len(server.requests) == 1


@pytest.mark.parametrize("option", [["--no-normalize"], ["--truncate", "right"]])
def test_output_of_other_options_is_refused_and_unchanged(server: Server, tmp_path: Path, option: list[str]) -> None:
    out = tmp_path / "out.jsonl"
    run("--out", out, input=jsonl(RECORDS[:3]))
    out.write_bytes(out.read_bytes()[:-10])
    before = out.read_bytes()
    result = run("--out", out, *option)
    assert result.exit_code == 1
    assert "error: cannot_resume: " in result.stderr
    assert out.read_bytes() == before


def test_version_that_changes_within_a_run_is_refused(server: Server, tmp_path: Path) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        content = answer("POST", "/score", body)
        if len(body["inputs"][0]["response"]) > 4:
            content["ensemble"] = {"name": "default", "version": "fedcba987654"}
        return httpx.Response(200, json=content)

    server.handler = handler
    out = tmp_path / "out.jsonl"
    result = run("--out", out, "--batch-size", 2)
    assert result.exit_code == 1
    assert "0123456789ab" in result.stderr.splitlines()[-1]
    assert "fedcba987654" in result.stderr.splitlines()[-1]
    assert records_in(out.read_bytes()) == expected(RECORDS[:4])


def test_pipe_is_read_once_though_a_terminal_watches(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, out = tmp_path / "pipe", tmp_path / "out.jsonl"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(INPUT,), daemon=True)
    writer.start()
    # CliRunner replaces sys.stderr, so it is the command's own view of it that is a terminal here.
    monkeypatch.setattr(command, "_is_watched", lambda: True)
    result = run("--in", pipe, "--out", out, input=b"")
    assert result.exit_code == 0, result.stderr
    assert records_in(out.read_bytes()) == expected(RECORDS)


def test_deadline_is_the_client_s_unless_told(server: Server) -> None:
    run()
    run("--deadline", 5)
    assert server.deadlines_s == [60.0, 5.0]


class LocalScorer:
    """In place of a bundle: the server's rule, in this process."""

    opened: list[tuple[str, str]] = []  # noqa: RUF012 - reset by the fixture
    requests: list[ScoreRequest] = []  # noqa: RUF012

    @classmethod
    def open(cls, source: str, *, dtype: str) -> LocalScorer:
        if source == "broken":
            raise InvalidRequest("no such bundle")
        cls.opened.append((source, dtype))
        return cls()

    def score(self, request: ScoreRequest) -> ScoreResponse:
        self.requests.append(request)
        status, body = as_a_server(request.model_dump(exclude_none=True))
        if status != 200:
            refusal = InvalidRequest(body["error"]["message"])
            refusal.code = body["error"]["code"]
            raise refusal
        return ScoreResponse.model_validate(body)


@pytest.fixture
def local(server: Server, monkeypatch: pytest.MonkeyPatch) -> type[LocalScorer]:
    monkeypatch.setattr(LocalScorer, "opened", [])
    monkeypatch.setattr(LocalScorer, "requests", [])
    entry_point = EntryPoint("bundle", f"{__name__}:LocalScorer", command.LOCAL_GROUP)
    monkeypatch.setattr(EntryPoint, "load", _load_here)
    monkeypatch.setattr(command, "entry_points", lambda group, name: [entry_point] if name == "bundle" else [])
    return LocalScorer


_load = EntryPoint.load


def _load_here(entry_point: EntryPoint) -> Any:
    # pytest's importlib mode does not put this file into sys.modules under a name that can be imported again.
    return LocalScorer if entry_point.attr == "LocalScorer" else _load(entry_point)


def test_bundle_is_scored_in_this_process(server: Server, local: type[LocalScorer]) -> None:
    result = run("--bundle", "default", "--dtype", "float32", "--mode", "min", "--batch-size", 4)
    assert result.exit_code == 0, result.stderr
    assert records_in(result.stdout) == expected(RECORDS, mode="min", dtype="float32")
    assert local.opened == [("default", "float32")]
    assert [len(request.inputs) for request in local.requests] == [4, 4, 2]
    assert server.requests == []


def test_bundle_takes_its_own_precision_unless_told(local: type[LocalScorer]) -> None:
    assert run("--bundle", "b").exit_code == 0
    assert local.opened == [("b", "auto")]


def test_bundle_that_cannot_be_opened_is_one_line(local: type[LocalScorer]) -> None:
    result = run("--bundle", "broken")
    assert (result.exit_code, result.stderr) == (1, "error: invalid_request: no such bundle\n")


@pytest.mark.parametrize("registered", [True, False])
def test_bundle_without_the_model_extra_names_it(
    server: Server, monkeypatch: pytest.MonkeyPatch, registered: bool
) -> None:
    def missing(entry_point: EntryPoint) -> Any:
        if entry_point.group == command.LOCAL_GROUP:
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
        return _load(entry_point)

    found = [EntryPoint("bundle", "quorum_model.local:LocalScorer", command.LOCAL_GROUP)] if registered else []
    monkeypatch.setattr(EntryPoint, "load", missing)
    monkeypatch.setattr(command, "entry_points", lambda group, name: found)
    result = run("--bundle", "b")
    assert result.exit_code == 1
    assert result.stderr.startswith(
        "error: missing_extra: quorum score --bundle needs the model extra: pip install 'quorum-rm[model]'"
    )
