"""Every panel and rule, asked of a real Prometheus that scrapes a real server under a load whose requests are known.

Counts, scores, stds and tokens follow from the answers that the clients had (`script.py`), to 1e-5: the answers' scores
are rounded otherwise where companions in a pass differ. Of times and passes the script says how many there were; their
buckets are read from /metrics, and no request took longer at the server than it did at its client.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
import yaml
from deploy.grafana.dashboards import DASHBOARDS
from prometheus_client.parser import text_string_to_metric_families
from scipy.stats import ks_2samp

from quorum_model.bundle.read import read_bundle, resolve_bundle
from tests.clients.generation.fake_generator import FakeGenerator, serve
from tests.deploy.live import expected
from tests.deploy.live.book import Book, Series, Vector, Window, labels_of
from tests.deploy.live.prometheus_process import FOLDER, PROMETHEUS, Prometheus, prometheus
from tests.deploy.live.script import MAX_QUEUED_TOKENS, Script
from tests.integration.server_process import REAL_ENGINE, server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not installed (Debian: prometheus)"),
    pytest.mark.timeout(900),
]
TOLERANCE = 1e-5
_MEASURED = ("_seconds_bucket", "_seconds_sum", "quorum_batch_tokens", "quorum_forward_seconds")
"""What the script implies the number of, and no more."""


@dataclass
class Live:
    """After the load. exposed: by the server itself, when nothing ran any more."""

    api: Prometheus
    window: Window
    script: Script
    exposed: dict[Series, float]
    table: list[str]


def read(url: str) -> dict[Series, float]:
    found = {}
    for family in text_string_to_metric_families(httpx.get(f"{url}/metrics").text):
        for sample in family.samples:
            found[sample.name, labels_of(**{name: value for name, value in sample.labels.items() if value})] = (
                sample.value
            )
    return found


def edges_of(exposed: dict[Series, float]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, labels in exposed:
        if name.endswith("_bucket"):
            found.setdefault(name.removesuffix("_bucket"), []).append(dict(labels)["le"])
    return {name: sorted(set(edges), key=float) for name, edges in found.items()}


def implied(book: Book, exposed: dict[Series, float]) -> dict[Series, float]:
    """The book's series, with what only the server knows."""
    measured = {
        key: value
        for key, value in exposed.items()
        if any(part in key[0] for part in _MEASURED) or key[0] in ("quorum_ensemble_info",) or "resident" in key[0]
    }
    # The library exposes no sum and no count of a histogram whose edges are below zero.
    own = {
        key: value for key, value in book.series(edges_of(exposed)).items() if key in exposed or "_sum" not in key[0]
    }
    own = {key: value for key, value in own.items() if not key[0].startswith("quorum_calibrated_score_count")}
    return measured | own


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    book = Book()
    folder = tmp_path_factory.mktemp("prometheus")
    with (
        serve(FakeGenerator()) as fake,
        server(REAL_ENGINE, "default", generator_url=fake.url, max_queued_tokens=MAX_QUEUED_TOKENS) as running,
        Script(running, fake, book) as script,
    ):
        script.play(1)  # so that every series is there when the first scrape comes
        before = implied(book, read(running.url))
        with prometheus(running.url.removeprefix("http://"), folder) as api:
            api.wait_scrapes(2)
            script.play(7)
            last = api.wait_scrapes(2)
            exposed = read(running.url)
            ((_, scrapes),) = api.samples("up", expected.RATE_S, last).items()
            after = implied(book, exposed) | {("quorum_score_drift", drift_labels(script)): drift(script)}
            # Of the scrapes themselves.
            own = api.samples(
                '{__name__=~"quorum_requests_total|quorum_request_seconds_bucket",route="/metrics"}', 300, last
            )
            before |= {key: values[0][1] for key, values in own.items()}
            after |= {key: values[-1][1] for key, values in own.items()}
            memory = api.samples('{__name__=~"(quorum_engine|process)_resident.*"}', 10, last)
            after |= {key: values[-1][1] for key, values in memory.items()}
            window = Window(before, after, [at for at, _ in scrapes], last)
            table: list[str] = []
            yield Live(api, window, script, exposed, table)
            target = os.environ.get("QUORUM_QUERY_TABLE")
            if target:
                head = ["| query of | series | a value | differs from the script's by |", "|---|---|---|---|"]
                Path(target).write_text("\n".join([*head, *table]) + "\n", encoding="utf-8")


def drift_labels(script: Script) -> frozenset[tuple[str, str]]:
    return labels_of(ensemble="default", version=script.version)


def drift(script: Script) -> float:
    """KS at the reference's edges, by another library: each count as so many values in its bin's middle."""
    reference = read_bundle(resolve_bundle("default")).manifest.reference_stats
    assert reference is not None
    edges = list(reference.score_edges)
    middles = [(low + high) / 2 for low, high in pairwise(edges)]
    theirs = [middle for middle, count in zip(middles, reference.score_counts, strict=True) for _ in range(count)]

    def bin_of(score: float) -> float:
        if score < edges[0]:
            return edges[0] - 1
        return next((m for m, high in zip(middles, edges[1:], strict=False) if score < high), edges[-1] + 1)

    return float(ks_2samp([bin_of(score) for score in script.means[-4096:]], theirs).statistic)


def hold(live: Live, name: str, found: Vector, wanted: Vector) -> None:
    """Equal, and a line of the table."""
    assert found.keys() == wanted.keys(), f"{name}: {set(found) ^ set(wanted)}"
    assert wanted, name
    worst = 0.0
    for labels, value in wanted.items():
        if math.isnan(value):
            assert math.isnan(found[labels]), name
            continue
        error = abs(found[labels] - value) / max(1.0, abs(value))
        assert error <= TOLERANCE, f"{name} {dict(labels)}: {found[labels]} and not {value}"
        worst = max(worst, error)
    labels = max(found, key=lambda one: (not math.isnan(found[one]), found[one]))
    said = ", ".join(f"{label}={value}" for label, value in sorted(labels))
    live.table.append(f"| {name} | {len(found)} | {said or '-'}: {found[labels]:.6g} | {worst:.1e} |")


def test_counters_are_what_the_script_did(live: Live) -> None:
    """Every series of the book, exactly: no request, item or token more or less."""
    data = live.api.samples('{__name__=~"quorum_.+"}', 1.5, live.window.end)
    found = {key: values[-1][1] for key, values in data.items()}
    checked = 0
    for key, value in live.window.after.items():
        if dict(key[1]).get("route") == "/metrics":
            continue  # of Prometheus itself, which asks again and again
        if key[0].startswith("quorum_") and key[0] != "quorum_score_drift" and "resident" not in key[0]:
            assert found[key] == pytest.approx(value, rel=TOLERANCE if "_sum" in key[0] or "_score" in key[0] else 0)
            checked += 1
    assert checked > 300
    unknown = {key[0] for key in found if key not in live.window.after and dict(key[1]).get("route") != "/metrics"}
    assert unknown == set()
    tokens = sum(value for (name, _), value in live.window.after.items() if name == "quorum_submitted_tokens_total")
    passes = sum(value for (name, _), value in live.window.after.items() if name == "quorum_batch_tokens_sum")
    assert passes <= tokens  # duplicates are computed once
    spent = sum(
        value
        for (name, labels), value in live.exposed.items()
        if name == "quorum_request_seconds_sum" and dict(labels)["route"] in ("/score", "/rank", "/compare")
    )
    assert 0 < spent < sum(live.script.seconds)


@pytest.mark.parametrize(
    ("board", "title"),
    [(board, panel.title) for board, (_, rows, _) in DASHBOARDS.items() for row in rows.values() for panel in row],
)
def test_panel(live: Live, board: str, title: str) -> None:
    (panel,) = [panel for row in DASHBOARDS[board][1].values() for panel in row if panel.title == title]
    wanted = expected.panels(live.window)[title]
    assert len(wanted) == len(panel.queries)
    for number, (query, vector) in enumerate(zip(panel.queries, wanted, strict=True)):
        text = query.expr.replace("$__rate_interval", f"{expected.RATE_S:g}s")
        for variable in ("ensemble", "run", "instance"):
            text = text.replace(f"${variable}", ".*")
        place = f" ({number + 1})" if len(wanted) > 1 else ""
        hold(live, f"{board}: {title}{place}", live.api.query(text, live.window.end), vector)


@pytest.mark.parametrize("rule", expected.rules(Window({}, {}, [0, 1], 0)))
def test_recording_rule(live: Live, rule: str) -> None:
    groups = yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"]
    recording = {one["record"]: one["expr"] for group in groups for one in group["rules"] if "record" in one}
    assert recording.keys() == expected.rules(live.window).keys()
    found = live.api.query(recording[rule], live.window.end)
    hold(live, f"rule: {rule}", found, expected.rules(live.window)[rule])
