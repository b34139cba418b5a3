"""A Quorum server whose scores follow from the text by a simple rule: member k gives length + k."""

from __future__ import annotations

import json
from typing import Any

import httpx

ENSEMBLE = {"name": "default", "version": "0123456789ab"}
USAGE = {"prompt_tokens": 7, "computed_tokens": 5}
LISTED = {
    **ENSEMBLE,
    "kind": "lora",
    "source": "default",
    "members": [{"name": "m00", "calibration_mean": 0.0, "calibration_scale": 1.0}],
    "pooling": "mean",
    "max_length": 512,
    "default_mode": "mean",
    "default_beta": None,
    "pair_temperature": 1.0,
    "prompt_fingerprint": "0" * 16,
    "dtype": "float32",
    "device": "cpu",
    "attention": "packed",
}


def result_of(text: str) -> dict[str, Any]:
    """Members length, length + 1, length + 2: mean length + 1, std 1."""
    members = [float(len(text) + k) for k in range(3)]
    return {"score": members[1], "mean": members[1], "std": 1.0, "members": members, "num_tokens": len(text)}


def answer(method: str, path: str, body: Any) -> dict[str, Any]:
    """The JSON answer to one request; KeyError for an unknown route."""
    head = {"id": "a1", "ensemble": ENSEMBLE, "usage": USAGE}
    if method == "GET":
        return {"/v1/ensembles": {"ensembles": [LISTED]}, "/readyz": {"status": "ready"}}[path]
    options = {"mode": body.get("mode", "mean"), "beta": body.get("beta"), "center": body.get("center", "none")}
    if path == "/score":
        texts = [item.get("response") or item.get("text") or "" for item in body["inputs"]]
        return {**head, **options, "results": [result_of(text) for text in texts]}
    if path == "/rank":
        results = [result_of(text) for text in body["candidates"]]
        order = sorted(range(len(results)), key=lambda i: -results[i]["score"])
        return {**head, **options, "center": "group", "best": order[0], "order": order, "results": results}
    if path == "/compare":
        if "pairs" in body:
            return {**head, "results": [compared(pair) for pair in body["pairs"]]}
        return {**head, **compared(body)}
    raise KeyError(path)


def compared(pair: dict[str, str]) -> dict[str, Any]:
    """Margin: the difference in length, the same for every member."""
    margin = float(len(pair["a"]) - len(pair["b"]))
    return {"probability": float(margin > 0), "margin": {"mean": margin, "std": 0.0}, "members": [margin] * 3}


def error_body(code: str, message: str = "why", *, retryable: bool = False) -> dict[str, Any]:
    """The one shape of every error answer."""
    return {"error": {"code": code, "message": message, "retryable": retryable, "request_id": "r1"}}


def respond(request: httpx.Request) -> httpx.Response:
    """As a handler of httpx.MockTransport."""
    body = json.loads(request.content) if request.content else None
    return httpx.Response(200, json=answer(request.method, request.url.path, body))
