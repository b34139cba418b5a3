"""The peer of `quorum bench serve`: one blocking forward a request, members one after another.

    POST /get_reward {"query": [text]}  --tokenise, pad, each member's PEFT adapter-->  {"rewards": [[float]] by member}

As reward servers are commonly written, OpenRLHF's serve_rm among them: an `async def` that computes, so that nothing
else of the process runs meanwhile, and requests never meet in a batch. Run as a process of its own.
"""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from quorum_client.types import ScoreItem
from quorum_model.backbone import is_causal
from quorum_model.benchmark.padded import PaddedPeft
from quorum_model.benchmark.workload import plain_encoder
from quorum_model.loading import DTYPES

CODE = "from quorum_server.benchmark.blocking_server import main; main()"
"""What the process runs; its argument is a JSON object: backbone, adapters, dtype, device, max_length."""

_ONE_BATCH = 1 << 30


class Query(BaseModel):
    """query: texts under the backbone's prompt format."""

    query: list[str]


def make_app(options: dict[str, Any]) -> FastAPI:
    """The application, with its model loaded."""
    backbone = Path(options["backbone"])
    encoder = plain_encoder(backbone, is_causal=is_causal(backbone), max_length=options["max_length"])
    adapters = [Path(folder) for folder in options["adapters"]]
    model = PaddedPeft(
        backbone, adapters, dtype=DTYPES[options["dtype"]], device=torch.device(options["device"]), sequences=[]
    )
    app = FastAPI()

    @app.post("/get_reward")
    async def get_reward(request: Query) -> dict[str, list[list[float]]]:
        sequences = [encoder.encode(ScoreItem(text=text)).ids for text in request.query]
        return {"rewards": model.one_after_another(sequences, _ONE_BATCH).tolist()}

    return app


def main() -> None:
    """Serve on a free port of this machine, and print where."""
    app = make_app(json.loads(sys.argv[1]))
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    server.run(sockets=[listener])
