"""GET /metrics after scripted requests: counts exact, sums by numpy, labels bounded, what is gone removed."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from quorum_client.errors import NotReady
from quorum_model.bundle.manifest import ReferenceStats
from quorum_server.events import PassReport
from quorum_server.metrics import Metrics
from quorum_server.tallies import MAX_RUNS, RunLabels, RunTally
from tests.server.conftest import Service, serving
from tests.server.fake_engine import NAN_ID, FakeEngine
from tests.server.test_app import PAIR, calibrated
from tests.server.test_keys import ADMIN_KEY, LISTED, SCORE_KEY
from tests.server.test_uncertainty import disagreement_by_hand
from tests.server.tiny_bundle import encode_by_hand, make_fake_bundle

TEXTS = ["Hello", "Go away", "a", "zz", "Hello there", "no"]
MAX_STD = 15.0


def read(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


class Page:
    """One answer of /metrics."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.samples = read(text)

    def __call__(self, name: str, **labels: str) -> float | None:
        """A sample by its labels, all of them; None where there is none."""
        return self.samples.get((name, frozenset(labels.items())))

    def names(self) -> set[str]:
        return {name for name, _ in self.samples}

    def values_of(self, label: str) -> set[str]:
        return {value for _, labels in self.samples for name, value in labels if name == label}

    def buckets(self, name: str, **labels: str) -> dict[float, float]:
        found = {}
        for (sample, pairs), value in self.samples.items():
            own = dict(pairs)
            if sample == f"{name}_bucket" and {k: v for k, v in own.items() if k != "le"} == labels:
                found[float(own["le"])] = value
        return found


async def scrape(service: Service, **headers: str) -> Page:
    reply = await service.http.get("/metrics", headers=headers)
    assert reply.status_code == 200
    return Page(reply.text)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    reference = ReferenceStats(
        std_quantiles={"0.99": MAX_STD}, score_edges=[0.0, 10.0, 20.0, 30.0, 40.0], score_counts=[1, 2, 3, 4]
    )
    return make_fake_bundle(tmp_path / "tiny", reference_stats=reference, default_mode="lcb", default_beta=2.0).path


@pytest.fixture
async def measured(bundle: Path) -> AsyncIterator[Service]:
    async with serving(bundle, FakeEngine()) as running:
        yield running


def check_histogram(page: Page, name: str, values: Any, **labels: str) -> None:
    """Count, sum and every bucket, of what numpy says that the values are."""
    values = np.asarray(values, float)
    if name == "quorum_calibrated_score":
        assert page(f"{name}_positive_total", **labels) == pytest.approx(values[values > 0].sum())
        assert page(f"{name}_negative_total", **labels) == pytest.approx(-values[values < 0].sum())
    else:
        assert page(f"{name}_count", **labels) == len(values)
        assert page(f"{name}_sum", **labels) == pytest.approx(values.sum())
    buckets = page.buckets(name, **labels)
    assert len(buckets) > 5
    for edge, count in buckets.items():
        assert count == (values <= edge).sum()


async def test_the_uncertainty_is_that_of_the_scripted_requests(measured: Service) -> None:
    """Two runs and every way to ask; the requests' own normalisation and centring matter to penalties alone."""
    version = measured.runtime.registry.get(None).version
    inputs = [{"prompt": "Hi", "response": text} for text in TEXTS]
    spread = calibrated(*(("Hi", text) for text in TEXTS))
    centred = spread - spread.mean(axis=1, keepdims=True)

    async def post(path: str, run: str, **body: Any) -> None:
        reply = await measured.http.post(path, json=body, headers={"X-Quorum-Run": run})
        assert reply.status_code == 200

    await post("/score", "ppo/1", inputs=inputs)  # the bundle's lcb, beta 2
    await post("/score", "ppo/1", inputs=inputs[:2], mode="lcb", beta=0.5)
    await post("/score", "ppo/1", inputs=inputs[:3], mode="uwo", beta=7.0)
    await post("/score", "ppo/1", inputs=inputs[:2], normalize=False)
    await post("/score", "ppo/1", inputs=inputs, center="group", mode="mean")
    await post("/rank", "bon", prompt="Hi", candidates=TEXTS, mode="lcb", beta=3.0)
    await post("/compare", "bon", prompt="Hi", a=TEXTS[0], b=TEXTS[1])

    page = await scrape(measured)
    own = {"ensemble": "tiny", "version": version}
    ppo, bon = own | {"run": "ppo/1"}, own | {"run": "bon"}
    counts = [6, 2, 3, 2, 6]
    asked = np.concatenate([spread[:, :count] for count in counts], axis=1)
    stds = asked.std(axis=0, ddof=1)
    check_histogram(page, "quorum_calibrated_score", asked.mean(axis=0), **ppo)
    check_histogram(page, "quorum_score_std", stds, **ppo)
    own_std = spread.std(axis=0, ddof=1)
    # beta 2 is the bundle's: also of a request for another mode; raw scores have none.
    penalties = [2 * own_std, 0.5 * own_std[:2], 2 * own_std[:3], 2 * centred.std(axis=0, ddof=1)]
    check_histogram(page, "quorum_lcb_penalty", np.concatenate(penalties), **ppo)
    distances = [disagreement_by_hand(spread[:, :count]) for count in counts]
    check_histogram(page, "quorum_rank_disagreement", distances, **ppo)
    assert page("quorum_std_checked_items_total", **ppo) == 19
    assert page("quorum_std_exceeded_items_total", **ppo) == (stds > MAX_STD).sum()
    assert 0 < (stds > MAX_STD).sum() < 19

    both = np.concatenate([spread, spread[:, :2]], axis=1)
    check_histogram(page, "quorum_calibrated_score", both.mean(axis=0), **bon)
    check_histogram(page, "quorum_score_std", both.std(axis=0, ddof=1), **bon)
    check_histogram(page, "quorum_lcb_penalty", 3 * centred.std(axis=0, ddof=1), **bon)
    distances = [disagreement_by_hand(spread), disagreement_by_hand(spread[:, :2])]
    check_histogram(page, "quorum_rank_disagreement", distances, **bon)
    assert page.values_of("run") == {"ppo/1", "bon"}

    tokens = [len(encode_by_hand("Hi", text)) for text in TEXTS]
    submitted = sum(sum(tokens[:count]) for count in [*counts, 6, 2])
    assert page("quorum_submitted_tokens_total", **own) == submitted
    assert page("quorum_computed_tokens_total", **own) == submitted
    info = {"kind": "linear", "members": "3", "dtype": "float32", "device": "cpu", "attention": "packed"}
    assert page("quorum_ensemble_info", **own, **info) == 1


async def test_duplicates_are_submitted_and_computed_once(measured: Service) -> None:
    await measured.http.post("/score", json={"inputs": [PAIR] * 3})
    page, tokens = await scrape(measured), len(encode_by_hand("Hi", "Hello"))
    own = {"ensemble": "tiny", "version": measured.runtime.registry.get(None).version}
    assert page("quorum_submitted_tokens_total", **own) == 3 * tokens
    assert page("quorum_computed_tokens_total", **own) == tokens
    assert page("quorum_score_std_count", **own, run="") == 3
    assert page("quorum_batch_tokens_sum", engine="0") == tokens


async def test_an_item_without_a_score_counts_nowhere(measured: Service) -> None:
    inputs = [PAIR, {"prompt": "Hi", "response": " "}, {"token_ids": [NAN_ID, 20]}]
    assert (await measured.http.post("/score", json={"inputs": inputs})).status_code == 200
    page = await scrape(measured)
    own = {"ensemble": "tiny", "version": measured.runtime.registry.get(None).version, "run": ""}
    check_histogram(page, "quorum_calibrated_score", calibrated(("Hi", "Hello")).mean(axis=0), **own)
    assert page("quorum_lcb_penalty_count", **own) == 1
    assert page("quorum_std_checked_items_total", **own) == 1
    assert page("quorum_rank_disagreement_count", **own) == 0


async def test_drift_appears_with_enough_items(measured: Service) -> None:
    texts = ["".join(letters) for letters in itertools.product("abcdefgh", repeat=3)]  # 512
    own = {"ensemble": "tiny", "version": measured.runtime.registry.get(None).version}

    async def score(some: list[str]) -> None:
        inputs = [{"prompt": "Hi", "response": text} for text in some]
        assert (await measured.http.post("/score", json={"inputs": inputs})).status_code == 200

    await score(texts[:-1])
    assert (await scrape(measured))("quorum_score_drift", **own) is None
    await score(texts[-1:])
    means = calibrated(*(("Hi", text) for text in texts)).mean(axis=0)
    expected = np.array([0, 0.1, 0.3, 0.6, 1])
    found = np.array([(means < edge).mean() for edge in (0, 10, 20, 30, 40)])
    drift = (await scrape(measured))("quorum_score_drift", **own)
    assert drift == pytest.approx(np.abs(found - expected).max())


async def test_requests_are_counted_by_route_method_status_and_ensemble(measured: Service) -> None:
    ask = measured.http.request
    for _ in range(3):
        await ask("POST", "/score", json={"inputs": [PAIR]})
    await ask("POST", "/rank", json={"prompt": "Hi", "candidates": ["a", "b"]})
    for body in ("{", '{"inputs": []}'):
        await ask("POST", "/score", content=body)
    measured.engine.error = NotReady("planted")
    await ask("POST", "/score", json={"inputs": [PAIR]})
    for number in range(5):
        await ask("GET", f"/made/up/{number}")
        await ask("GET", f"/v1/ensembles/made-up-{number}")
        await ask(f"MADEUP{number}", "/score")
    await ask("GET", "/v1/ensembles/tiny")
    await scrape(measured)
    page = await scrape(measured)
    expected = {
        ("/score", "POST", "200", "tiny"): 3,
        ("/rank", "POST", "200", "tiny"): 1,
        ("/score", "POST", "400", ""): 1,
        ("/score", "POST", "422", ""): 1,
        ("/score", "POST", "503", "tiny"): 1,
        ("none", "GET", "404", ""): 5,
        ("/v1/ensembles/{name}", "GET", "404", ""): 5,
        ("/v1/ensembles/{name}", "GET", "200", ""): 1,
        ("/score", "other", "405", ""): 5,
        ("/metrics", "GET", "200", ""): 1,
    }
    found = {
        tuple(dict(labels)[name] for name in ("route", "method", "status", "ensemble")): value
        for (name, labels), value in page.samples.items()
        if name == "quorum_requests_total"
    }
    assert found == expected
    assert page("quorum_request_seconds_count", route="/score") == 11
    assert page("quorum_tokenize_seconds_count", ensemble="tiny") == 5
    assert page("quorum_queue_seconds_count") == 5
    assert page("quorum_forward_seconds_count", engine="0") == 4  # one pass failed


async def test_phases_hold_the_time_that_was_spent(measured: Service) -> None:
    """What waits at the engine's gate is in flight, and its tokens are queued; then every phase has its share."""
    measured.engine.gate.clear()
    asking = [asyncio.create_task(measured.http.post("/score", json={"inputs": [PAIR]}))]
    await measured.engine.has_begun.wait()
    asking += [asyncio.create_task(measured.http.post("/score", json={"inputs": [PAIR]})) for _ in range(2)]
    tokens = len(encode_by_hand("Hi", "Hello"))
    while (page := await scrape(measured))("quorum_queued_tokens") != 3 * tokens:  # noqa: ASYNC110 - no event says so
        await asyncio.sleep(0)
    assert page("quorum_requests_in_flight") == 3
    assert page("quorum_forward_seconds_count", engine="0") is None
    await asyncio.sleep(0.06)  # a timer may ring a tick of the clock early
    measured.engine.gate.set()
    await asyncio.gather(*asking)
    page = await scrape(measured)
    assert (page("quorum_requests_in_flight"), page("quorum_queued_tokens")) == (0, 0)
    assert page("quorum_forward_seconds_count", engine="0") == page("quorum_batch_tokens_count", engine="0") == 2
    assert page("quorum_batch_tokens_sum", engine="0") == 3 * tokens
    assert page("quorum_forward_seconds_sum", engine="0") >= 0.05
    assert page("quorum_request_seconds_sum", route="/score") >= 3 * 0.05
    assert page("quorum_queue_seconds_sum") >= 2 * 0.05  # two waited for the first one's pass


async def test_what_is_turned_away_is_counted_by_its_reason(bundle: Path) -> None:
    async with serving(bundle, FakeEngine(), api_keys=LISTED, max_body_bytes=1000, max_text_chars=100) as service:
        for headers in ({}, {"authorization": "Bearer wrong"}):
            await service.http.post("/score", headers=headers)
        score = {"authorization": f"Bearer {SCORE_KEY}"}
        for _ in range(3):
            await service.http.put("/v1/ensembles/tiny", headers=score)
        await service.http.post("/score", content=b" " * 2000, headers=score)
        await service.http.post("/score", json={"inputs": [{"text": "a" * 101}]}, headers=score)
        page = await scrape(service, authorization=f"Bearer {ADMIN_KEY}")
    found = {
        dict(labels)["reason"]: value
        for (name, labels), value in page.samples.items()
        if name == "quorum_rejections_total"
    }
    assert {reason: count for reason, count in found.items() if count} == {
        "unauthorized": 2,
        "forbidden": 3,
        "too_large": 2,
    }
    assert found["queue_tokens"] == 0  # there from the start, so that the first one is an increase
    assert page("quorum_requests_total", route="none", method="POST", status="401", ensemble="") == 2


def page_of(metrics: Metrics) -> Page:
    return Page(metrics.exposition("")[0].decode())


def test_events_of_engines_and_swaps() -> None:
    metrics = Metrics()
    metrics.watch(lambda: 7, lambda: [loaded("a", "v1")], lambda: {0: os.getpid(), 1: 2**22 + 1})
    for tokens, elapsed_s in ((100, 0.02), (300, 0.2)):
        metrics.pass_finished(PassReport(1, "v1", 2, tokens, tokens // 2, elapsed_s))
    metrics.engine_restarted(1, "hung")
    metrics.engine_restarted(1, "hung")
    metrics.engine_restarted(0, "died")
    metrics.swap_finished("a", "v1", 2.0, None)
    metrics.swap_finished("a", None, 1.0, "bundle_corrupt")
    metrics.swap_finished("never-loaded", None, 0.5, "invalid_bundle")
    metrics.left_queue(0.5)
    metrics.rejected("queue_tokens")
    page = page_of(metrics)
    check_histogram(page, "quorum_forward_seconds", [0.02, 0.2], engine="1")
    check_histogram(page, "quorum_batch_tokens", [100, 300], engine="1")
    assert page("quorum_engine_restarts_total", engine="1", reason="hung") == 2
    assert page("quorum_engine_restarts_total", engine="0", reason="died") == 1
    check_histogram(page, "quorum_swap_seconds", [2.0], ensemble="a", result="ok")
    check_histogram(page, "quorum_swap_seconds", [1.0], ensemble="a", result="bundle_corrupt")
    check_histogram(page, "quorum_swap_seconds", [0.5], ensemble="other", result="invalid_bundle")
    check_histogram(page, "quorum_queue_seconds", [0.5])
    resident = psutil.Process().memory_info().rss
    assert page("quorum_engine_resident_bytes", engine="0") == pytest.approx(resident, rel=0.1)
    assert 'quorum_engine_resident_bytes{engine="1"}' not in metrics.exposition("")[0].decode()  # no such process
    assert page("quorum_rejections_total", reason="queue_tokens") == 1
    assert page("quorum_queued_tokens") == 7


def loaded(name: str, version: str) -> Any:
    """Of a registered ensemble what the metrics look at."""
    about = SimpleNamespace(num_members=2, dtype="float32", device="cpu", attention="packed")
    manifest = SimpleNamespace(kind="lora", name=name, reference_stats=None)
    return SimpleNamespace(name=name, version=version, manifest=manifest, loaded=about)


async def test_a_version_that_is_gone_is_exported_once_more(measured: Service) -> None:
    """So that its last requests are seen; then it goes, with its name where no other version has it."""
    await measured.http.post("/score", json={"inputs": [PAIR]}, headers={"X-Quorum-Run": "r"})
    await measured.http.get("/healthz")
    version = measured.runtime.registry.get(None).version
    measured.runtime.registry._ensembles.clear()
    last = await scrape(measured)
    assert last("quorum_score_std_count", ensemble="tiny", version=version, run="r") == 1
    assert "quorum_ensemble_info" not in last.names()
    after = await scrape(measured)
    assert version not in after.text
    assert "tiny" not in after.text
    assert after("quorum_requests_total", route="/healthz", method="GET", status="200", ensemble="") == 1


def test_swaps_that_nobody_scrapes_leave_nothing_behind() -> None:
    metrics = Metrics()
    now = [loaded("a", "v0")]
    metrics.watch(lambda: 0, lambda: now, dict)
    for number in range(50):
        now[:] = [loaded("a", f"v{number}")]
        metrics._tallies.of(SimpleNamespace(manifest=now[0].manifest, version=f"v{number}"))  # type: ignore[arg-type]
        assert len(metrics.by_version()) == 1


def test_runs_are_bounded_and_idle_ones_make_room() -> None:
    clock = [0.0]
    labels = RunLabels(lambda: clock[0])

    def label(header: str) -> str:
        return labels.label(header)[0]

    names = [f"run-{number}" for number in range(MAX_RUNS)]
    for name in names:
        clock[0] += 1
        assert label(name) == name
    assert [label(name) for name in ("one-more", "another")] == ["other", "other"]
    assert label("run-0") == "run-0"  # used again, so that run-1 is the idlest
    clock[0] = 2 + 24 * 3600 - 1
    assert label("one-more") == "other"
    clock[0] += 1
    assert labels.label("one-more") == ("one-more", "run-1")
    assert label("run-1") == "other"
    assert label("run-0") == "run-0"


@pytest.mark.parametrize(("header", "label"), [("", ""), ("a b", "other"), ("x" * 65, "other"), ("Ü", "other")])
def test_a_header_that_names_no_run(header: str, label: str) -> None:
    assert RunLabels(lambda: 0.0).label(header) == (label, None)


def test_what_an_evicted_run_counted_goes_with_it() -> None:
    clock = [0.0]
    tallies = Metrics(clock=lambda: clock[0])._tallies
    tally = tallies.of(SimpleNamespace(manifest=loaded("a", "v").manifest, version="v"))  # type: ignore[arg-type]
    for number in range(MAX_RUNS):
        tally.runs[tallies.label_run(f"run-{number}")] = RunTally()
        clock[0] += 1
    clock[0] += 24 * 3600
    assert tallies.label_run("new") == "new"
    assert "run-0" not in tally.runs
    assert "run-1" in tally.runs


async def test_an_unanswered_request_takes_no_runs_place(bundle: Path) -> None:
    """Else whoever has no key could use up the labels."""
    async with serving(bundle, FakeEngine(), api_keys=LISTED) as service:
        for number in range(MAX_RUNS):
            await service.http.post("/score", json={"inputs": [PAIR]}, headers={"X-Quorum-Run": f"bad-{number}"})
        headers = {"authorization": f"Bearer {SCORE_KEY}", "X-Quorum-Run": "good"}
        await service.http.post("/score", json={"inputs": [PAIR]}, headers=headers)
        page = await scrape(service, authorization=f"Bearer {SCORE_KEY}")
    assert page.values_of("run") == {"good"}


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [("", "text/plain"), ("application/openmetrics-text;version=1.0.0", "application/openmetrics-text")],
)
async def test_both_formats(measured: Service, accept: str, content_type: str) -> None:
    await measured.http.post("/score", json={"inputs": [PAIR]})
    reply = await measured.http.get("/metrics", headers={"accept": accept})
    assert reply.headers["content-type"].startswith(content_type)
    assert "_created" not in reply.text
    assert reply.text.endswith("# EOF\n") == (content_type != "text/plain")


async def test_every_name_has_the_prefix_and_is_documented(measured: Service) -> None:
    await measured.http.post("/score", json={"inputs": [PAIR]})
    families = list(text_string_to_metric_families((await scrape(measured)).text))
    names = {family.name for family in families if not family.name.startswith("process_")}
    assert all(name.startswith("quorum_") for name in names)
    assert all(family.documentation for family in families)
    documented = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    assert [name for name in sorted(names) if f"`{name}" not in documented] == []
    rows = {line.split("`")[1] for line in documented.splitlines() if line.startswith("| `quorum_")}
    # Those that wait for an event, a refusal or enough items; the parser leaves a counter's _total out of its name.
    later = {"quorum_rejections", "quorum_engine_restarts", "quorum_swap_seconds", "quorum_score_drift"}
    later |= {"quorum_generation_failures"}
    assert {row.removesuffix("_total").removesuffix("_info") for row in rows} <= {
        name.removesuffix("_info") for name in names
    } | later
