"""The playground in a real browser: typed into, clicked, read; its numbers are those of the server's own routes.

Every request of the page goes to this server: the browser has no other, and none is asked for. The screenshot that
docs/playground.md shows is made here, where QUORUM_SCREENSHOTS names a folder.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from quorum_client.modes import aggregate
from tests.integration.server_process import REAL_ENGINE, server

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (group dev)")
pytest.importorskip("gradio", reason="Gradio is not installed (extra ui)")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (Debian: chromium)"),
]
KEY = "k" * 24
PROMPT = "How do I make tea?"
CANDIDATES = [
    "Boil water, then let the leaves stand for three minutes.",
    "No.",
    "tea tea tea water!!! tea ??",
    "Ask $5.",
]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with server(REAL_ENGINE, "default", ui="true", api_keys=f"score:{KEY}") as running:
        yield running.url


@pytest.fixture
def page(url: str) -> Iterator[Any]:
    """A page at /ui, opened with the key in the address; in the end it has asked nobody else and logged no error."""
    elsewhere, errors = [], []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        context = browser.new_context(
            viewport={"width": 1280, "height": 1000}, http_credentials={"username": "x", "password": KEY}
        )
        opened = context.new_page()

        def route(call: Any) -> None:
            if urlsplit(call.request.url).hostname == "127.0.0.1" or call.request.url.startswith("data:"):
                call.continue_()
            else:
                elsewhere.append(call.request.url)
                call.abort()

        context.route("**/*", route)
        opened.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
        opened.goto(f"{url}/ui/")
        opened.wait_for_selector("#rank")
        yield opened
        browser.close()
    assert elsewhere == []
    # The first request has no key yet: that is how a browser learns that one is wanted.
    assert [error for error in errors if "401" not in error] == []


def field(page: Any, name: str) -> Any:
    return page.locator(f"#{name} textarea").first


def rows(page: Any, name: str, count: int) -> list[list[str]]:
    """The cells of a table, once it has so many rows."""
    locator = page.locator(f"#{name} [role=row]", has=page.locator("[role=gridcell]"))
    playwright.expect(locator).to_have_count(count, timeout=30_000)
    return [[cell.strip() for cell in row.locator("[role=gridcell]").all_inner_texts()] for row in locator.all()]


def shoot(page: Any, name: str) -> None:
    folder = os.environ.get("QUORUM_SCREENSHOTS")
    if folder:
        page.wait_for_timeout(500)
        page.screenshot(path=Path(folder) / f"{name}.png")


def ask(url: str, route: str, body: dict[str, Any]) -> dict[str, Any]:
    reply = httpx.post(f"{url}{route}", json=body, headers={"Authorization": f"Bearer {KEY}"}, timeout=60)
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


def test_nobody_comes_in_without_a_key(url: str) -> None:
    for path in ("/ui/", "/ui/config", "/ui/gradio_api/info"):
        assert httpx.get(url + path).status_code == 401
    assert httpx.post(f"{url}/ui/gradio_api/queue/join", json={}).status_code == 401


def test_bodies_are_bounded(url: str) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    join = f"{url}/ui/gradio_api/queue/join"
    assert httpx.post(join, content=b" " * (9 * 2**20), headers=headers).status_code == 413

    def chunks() -> Iterator[bytes]:
        yield from (b" " * 2**20 for _ in range(12))

    try:
        status = httpx.post(join, content=chunks(), headers=headers).status_code
    except httpx.TransportError:
        status = 400  # it hung up
    assert 400 <= status < 600
    assert httpx.get(f"{url}/readyz").status_code == 200


def test_ranks_as_the_server_does_and_anew_as_mode_and_beta_move(page: Any, url: str) -> None:
    answer = ask(url, "/rank", {"prompt": PROMPT, "candidates": CANDIDATES, "center": "group"})
    members = np.array([result["members"] for result in answer["results"]]).T
    field(page, "prompt").fill(PROMPT)
    field(page, "candidates").fill("\n---\n".join(CANDIDATES))
    page.click("#rank button, button#rank")
    found = rows(page, "ranking", len(CANDIDATES))
    lcb = aggregate(members, "lcb", 1.0)
    order = np.argsort(-lcb, kind="stable")
    assert [row[5] for row in found] == [CANDIDATES[index] for index in order]
    for row, index in zip(found, order, strict=True):
        assert float(row[2]) == pytest.approx(lcb[index], abs=2e-3)  # three digits are shown
        assert float(row[3]) == pytest.approx(members[:, index].mean(), abs=2e-3)
        assert float(row[4]) == pytest.approx(members[:, index].std(ddof=1), abs=2e-3)
    page.wait_for_selector("#ranking-picture img")
    shoot(page, "playground")

    beta = page.locator("#beta input[type=number]")
    beta.fill("5")
    beta.press("Enter")
    playwright.expect(page.locator("#ranking-note")).to_contain_text("lcb, beta 5")
    by_five = aggregate(members, "lcb", 5.0)
    found = rows(page, "ranking", len(CANDIDATES))
    assert [row[5] for row in found] == [CANDIDATES[index] for index in np.argsort(-by_five, kind="stable")]
    assert float(found[0][2]) == pytest.approx(by_five.max(), abs=2e-3)

    page.locator("#mode input").click()
    page.get_by_role("option", name="min", exact=True).click()
    playwright.expect(page.locator("#ranking-note")).to_contain_text("By min candidate")
    assert float(rows(page, "ranking", len(CANDIDATES))[0][2]) == pytest.approx(members.min(axis=0).max(), abs=2e-3)


def test_says_what_is_wrong(page: Any) -> None:
    field(page, "candidates").fill("  \n---\n  ")
    page.click("#rank button, button#rank")
    playwright.expect(page.get_by_text("there is no candidate")).to_be_visible()


def test_compares_two(page: Any, url: str) -> None:
    answer = ask(url, "/compare", {"prompt": PROMPT, "a": CANDIDATES[0], "b": CANDIDATES[1]})
    page.get_by_role("tab", name="Compare").click()
    field(page, "compare-prompt").fill(PROMPT)
    field(page, "a").fill(CANDIDATES[0])
    field(page, "b").fill(CANDIDATES[1])
    page.click("#compare button, button#compare")
    note = page.locator("#compare-note")
    playwright.expect(note).to_contain_text("P(a is better)", timeout=30_000)
    said = [float(number) for number in re.findall(r"-?\d+\.\d+", note.inner_text())]
    wanted = [answer["probability"], answer["margin"]["mean"], answer["margin"]["std"]]
    assert said == pytest.approx(wanted, abs=2e-3)
    page.wait_for_selector("#compare-picture img")


def test_shows_what_members_differ_on_most_in_a_file(page: Any, url: str, tmp_path: Path) -> None:
    items = [{"prompt": PROMPT, "response": text} for text in CANDIDATES]
    path = tmp_path / "items.jsonl"
    path.write_text("".join(f"{json.dumps(item)}\n" for item in items))
    answer = ask(url, "/score", {"inputs": items})
    stds = [result["std"] for result in answer["results"]]
    page.get_by_role("tab", name="File").click()
    page.locator("#file input[type=file]").set_input_files(path)
    playwright.expect(page.locator("#file")).to_contain_text("items.jsonl")
    page.click("#score-file button, button#score-file")
    found = rows(page, "uncertain", len(items))
    assert [int(row[0]) for row in found] == [int(index) + 1 for index in np.argsort(stds)[::-1]]
    assert [float(row[1]) for row in found] == pytest.approx(sorted(stds, reverse=True), abs=2e-3)


def test_shows_the_server_as_it_is(page: Any, url: str) -> None:
    ask(url, "/score", {"inputs": [{"prompt": PROMPT, "response": text} for text in CANDIDATES]})
    page.get_by_role("tab", name="Server").click()
    playwright.expect(page.locator("#server-note")).to_contain_text("Serves default@", timeout=30_000)
    playwright.expect(page.locator("#runs")).to_contain_text("playground", timeout=30_000)
    page.wait_for_selector("#load img")
    text = httpx.get(f"{url}/metrics", headers={"Authorization": f"Bearer {KEY}"}).text
    routes = set(re.findall(r'quorum_requests_total\{[^}]*route="([^"]*)"', text))
    assert routes <= {"/ui", "/score", "/rank", "/compare", "/metrics", "/readyz", "none"}, routes
