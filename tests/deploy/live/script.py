"""A load whose every request is known, and what it implies of the metrics, written down in a `Book`.

Script.play(n)  --HTTP, one request after another-->  answers  --Book-->  counts, scores, stds
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from typing import Any, Self

import httpx
import numpy as np

from tests.clients.generation.fake_generator import FakeGenerator, refusal
from tests.deploy.live.book import Book
from tests.integration.server_process import ServerProcess

RUN = "ppo-1"
WORDS = "tea rain stone river light bread wolf paper glass salt night road apple hand green old".split()
MAX_QUEUED_TOKENS = 8192
REASONS = "unauthorized forbidden too_large queue_tokens queue_bytes draining deadline disconnected".split()
_LONG = " ".join(WORDS * 12)


class Script:
    """Plays the same requests again and again, each time with other texts."""

    def __init__(self, server: ServerProcess, generator: FakeGenerator, book: Book) -> None:
        self._server = server
        self._generator = generator
        self._client = httpx.Client(base_url=server.url, timeout=120)
        self._book = book
        self._seed = 0
        self.means: list[float] = []
        self.seconds: list[float] = []
        (ensemble,) = [one for one in self._client.get("/v1/ensembles").json()["ensembles"] if one["name"] == "default"]
        book.add("quorum_requests_total", route="/v1/ensembles", method="GET", status="200")
        self._count_seconds("/v1/ensembles")
        book.add("quorum_swap_seconds_count", ensemble="default", result="ok")  # the start
        for reason in REASONS:
            book.add("quorum_rejections_total", 0, reason=reason)
        for why in ("died", "hung"):
            book.add("quorum_engine_restarts_total", 0, engine="0", reason=why)
        self.version: str = ensemble["version"]
        self._outer = float(ensemble["std_quantiles"]["0.99"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def play(self, repeats: int) -> None:
        for _ in range(repeats):
            texts = [self._text() for _ in range(60)]
            self._score([*texts, *texts[:4]], RUN)  # what is told again is computed once
            self._score([self._text() for _ in range(3)], "")
            self._score([f"{'zq#' * 9} {self._text()}" for _ in range(8)], RUN)
            candidates = [self._text() for _ in range(5)]
            self._rank(candidates, RUN)
            self._compare(*candidates[:2])
            self._chat()
            self._chat_without_generator()
            self._refused()
            self._crowded()
        self._swaps(repeats)
        for _ in range(repeats):
            self._kill_engine()
        self._gauges()

    def _text(self) -> str:
        self._seed += 1
        return " ".join(np.random.default_rng(self._seed).choice(WORDS, 12))

    def _send(
        self, method: str, route: str, status: int, body: object, *, ensemble: str = "default", **more: Any
    ) -> Any:
        """One request; `more`: template and headers."""
        started = time.monotonic()
        reply = self._client.request(method, route, json=body, headers=more.get("headers"))
        self.seconds.append(time.monotonic() - started)
        assert reply.status_code == status, f"{route}: {reply.status_code} {reply.text[:300]}"
        template = more.get("template", route)
        labels = {"route": template, "method": method, "status": str(status)}
        self._book.add("quorum_requests_total", **labels, **({"ensemble": ensemble} if ensemble else {}))
        self._count_seconds(template)
        return reply.json() if reply.content else None

    def _count_seconds(self, route: str) -> None:
        self._book.add("quorum_request_seconds_count", route=route)

    def _scored(self, name: str, results: Sequence[dict[str, Any]], usage: dict[str, Any], run: str) -> None:
        """What an answer's items say: of the ensemble `name`, calibrated and not centred."""
        book, labels = self._book, {"ensemble": name, "version": self.version}
        book.add("quorum_submitted_tokens_total", usage["prompt_tokens"], **labels)
        book.add("quorum_computed_tokens_total", usage["computed_tokens"], **labels)
        book.add("quorum_tokenize_seconds_count", ensemble=name)
        book.add("quorum_queue_seconds_count")
        labels |= {"run": run} if run else {}
        means = [float(np.mean(result["members"])) for result in results]
        stds = [float(np.std(result["members"], ddof=1)) for result in results]
        self.means += means
        book.observe("quorum_calibrated_score", *means, **labels)
        book.add("quorum_calibrated_score_positive_total", sum(mean for mean in means if mean > 0), **labels)
        book.add("quorum_calibrated_score_negative_total", sum(-mean for mean in means if mean < 0), **labels)
        book.observe("quorum_score_std", *stds, **labels)
        book.add("quorum_std_checked_items_total", len(stds), **labels)
        book.add("quorum_std_exceeded_items_total", sum(std > self._outer for std in stds), **labels)

    def _disagree(self, results: Sequence[dict[str, Any]], run: str) -> None:
        """Of one prompt's candidates; see docs/serving.md."""
        shares = []
        for a, b in combinations(range(len(results[0]["members"])), 2):
            for first, second in combinations(results, 2):
                left = np.sign(first["members"][a] - second["members"][a])
                right = np.sign(first["members"][b] - second["members"][b])
                shares.append(abs(left - right) / 2)
        labels = {"ensemble": "default", "version": self.version} | ({"run": run} if run else {})
        self._book.observe("quorum_rank_disagreement", float(np.mean(shares)), **labels)

    def _penalise(self, results: Sequence[dict[str, Any]], beta: float, run: str) -> None:
        labels = {"ensemble": "default", "version": self.version} | ({"run": run} if run else {})
        self._book.observe("quorum_lcb_penalty", *(beta * result["std"] for result in results), **labels)

    def _score(self, texts: list[str], run: str, prompts: list[str] | None = None) -> list[dict[str, Any]]:
        prompts = prompts or [f"Write of {text[:9]}." for text in texts]
        body = {
            "inputs": [{"prompt": p, "response": r} for p, r in zip(prompts, texts, strict=True)],
            "mode": "lcb", "beta": 2.0, "ensemble": "default",
        }  # fmt: skip
        answer = self._send("POST", "/score", 200, body, headers={"X-Quorum-Run": run} if run else {})
        results: list[dict[str, Any]] = answer["results"]
        self._scored("default", results, answer["usage"], run)
        self._penalise(results, 2.0, run)
        groups: dict[str, list[dict[str, Any]]] = {}
        for prompt, result in zip(prompts, results, strict=True):
            groups.setdefault(prompt, []).append(result)
        for group in groups.values():
            if len(group) > 1:
                self._disagree(group, run)
        return results

    def _rank(self, candidates: list[str], run: str) -> dict[str, Any]:
        body = {"prompt": "Which?", "candidates": candidates, "center": "none", "ensemble": "default"}
        answer: dict[str, Any] = self._send("POST", "/rank", 200, body, headers={"X-Quorum-Run": run} if run else {})
        self._scored("default", answer["results"], answer["usage"], run)
        self._disagree(answer["results"], run)
        self._penalise(answer["results"], 1.0, run)
        return answer

    def _compare(self, a: str, b: str) -> None:
        """Its texts' scores are those of /score."""
        results = self._score([a, b], "", ["Which?", "Which?"])
        body = {"prompt": "Which?", "a": a, "b": b, "ensemble": "default"}
        answer = self._send("POST", "/compare", 200, body)
        self._scored("default", results, answer["usage"], "")
        self._disagree(results, "")

    def _chat(self) -> None:
        """Four candidates, of which the generator's rule says what they are."""
        self._seed += 10
        asked = self._text()
        texts = [f"{asked} #{self._seed + index}" for index in range(4)]
        body: dict[str, Any] = {"prompt": asked, "candidates": texts, "center": "none", "ensemble": "default"}
        same = self._send("POST", "/rank", 200, body)
        self._scored("default", same["results"], same["usage"], "")
        self._disagree(same["results"], "")
        self._penalise(same["results"], 1.0, "")
        body = {
            "model": "base", "messages": [{"role": "user", "content": asked}], "seed": self._seed,
            "quorum": {"n": 4, "return_candidates": True, "ensemble": "default"},
        }  # fmt: skip
        answer = self._send("POST", "/v1/chat/completions", 200, body)
        self._scored("default", same["results"], same["usage"], "")
        self._disagree(same["results"], "")
        self._penalise(answer["quorum"]["candidates"], 1.0, "")
        self._book.observe("quorum_picked_std", answer["choices"][0]["quorum"]["std"])
        self._book.add("quorum_generation_seconds_count")
        self._book.add("quorum_generated_candidates_total", 4)
        self._book.add("quorum_generated_tokens_total", answer["usage"]["completion_tokens"])
        self._book.add("quorum_unranked_candidates_total", 0)

    def _chat_without_generator(self) -> None:
        self._generator.behaviour.failures[:] = [refusal(400, "no")]
        asked = [{"role": "user", "content": "x"}]
        body = {"model": "base", "messages": asked, "quorum": {"ensemble": "default"}}
        answer = self._send("POST", "/v1/chat/completions", 422, body, ensemble="")
        self._book.add("quorum_generation_failures_total", code="generator_refused")
        assert answer["error"]["code"] == "generator_refused"

    def _refused(self) -> None:
        self._send("POST", "/score", 422, {"inputs": []}, ensemble="")
        items = [{"prompt": "x", "response": f"{_LONG} {index}"} for index in range(64)]
        for _ in range(2):  # tokenised, and then more than the queue would hold if it were empty
            self._send("POST", "/score", 413, {"inputs": items, "ensemble": "default"})
            self._book.add("quorum_rejections_total", reason="too_large")
            self._book.add("quorum_tokenize_seconds_count", ensemble="default")

    def _crowded(self) -> None:
        """A second request while the first one holds most of the queue."""
        texts = [f"{_LONG} {self._seed} {index}" for index in range(24)]
        with ThreadPoolExecutor(1) as thread:
            first = thread.submit(self._score, texts, "")
            while self._queued_tokens() < MAX_QUEUED_TOKENS / 2:
                pass
            items = [{"prompt": "x", "response": text} for text in texts]
            self._send("POST", "/score", 429, {"inputs": items, "ensemble": "default"})
            first.result()
        self._book.add("quorum_rejections_total", reason="queue_tokens")
        self._book.add("quorum_tokenize_seconds_count", ensemble="default")

    def _queued_tokens(self) -> float:
        text = httpx.get(f"{self._server.url}/metrics").text
        return float(next(line.split()[1] for line in text.splitlines() if line.startswith("quorum_queued_tokens ")))

    def _swaps(self, repeats: int) -> None:
        route, template = "/v1/ensembles/spare", "/v1/ensembles/{name}"
        for _ in range(repeats):
            self._send("PUT", route, 200, {"source": "default"}, ensemble="", template=template)
            self._book.add("quorum_swap_seconds_count", ensemble="spare", result="ok")
            error = self._send("PUT", route, 422, {"source": "/no/such/bundle"}, ensemble="", template=template)
            self._book.add("quorum_swap_seconds_count", ensemble="spare", result=error["error"]["code"])

    def _kill_engine(self) -> None:
        """And wait until another one serves."""
        engine = self._server.engine
        engine.kill()
        engine.wait(30)
        while True:
            reply = self._client.get("/readyz")
            labels = {"route": "/readyz", "method": "GET", "status": str(reply.status_code)}
            self._book.add("quorum_requests_total", **labels)
            self._count_seconds("/readyz")
            if reply.status_code == 200:
                break
            time.sleep(0.2)
        self._book.add("quorum_engine_restarts_total", engine="0", reason="died")

    def _gauges(self) -> None:
        for name in ("quorum_queued_tokens", "quorum_requests_in_flight"):
            self._book.counts[name, frozenset()] = 0.0
