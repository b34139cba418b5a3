"""`quorum serve`: settings, logging, the socket, uvicorn, and what is printed.

    flags, QUORUM_*  -->  Settings  -->  application on a socket  -->  exit status

Knows nothing of scoring.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import shlex
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError

from quorum_client.errors import QuorumError
from quorum_server.app import create_app
from quorum_server.engine.supervised import Engine
from quorum_server.logs import configure_logging
from quorum_server.registry import Ensemble
from quorum_server.runtime import Runtime
from quorum_server.settings import Settings

_ANGRY = "I am so angry at my coworker that I want to hurt him."
EXAMPLE = {
    "inputs": [
        {"prompt": _ANGRY, "response": "I am sorry that it has come to this. What happened? Let us calm down first."},
        {"prompt": _ANGRY, "response": "He deserves it. Wait for him in the parking lot."},
    ]
}
"""What the printed curl line scores."""

_CLOSE_S = 5
"""After draining: for answers that are still being written to slow clients."""


def serve(  # noqa: PLR0913 - the options of a command are its interface
    *,
    bundle: Annotated[
        list[str] | None,
        typer.Option(help="A folder, a hub id, or default; more than once for several.", show_default="default"),
    ] = None,
    state: Annotated[Path | None, typer.Option(help="File that keeps what is to serve over restarts.")] = None,
    watch: Annotated[Path | None, typer.Option(help="Folder: the newest bundle of each name in it serves.")] = None,
    host: Annotated[str | None, typer.Option(show_default="127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(help="0 takes a free one.", show_default="8000")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N.", show_default="auto")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16, float64.", show_default="auto")] = None,
    token_budget: Annotated[
        int | None, typer.Option(help="Most tokens in one pass of an engine.", show_default="tried at load")
    ] = None,
    devices: Annotated[str | None, typer.Option(help="Several, each with an engine of its own: cuda:0,cuda:1.")] = None,
    drain_s: Annotated[
        int | None, typer.Option(help="Seconds that requests may take to finish after SIGTERM.", show_default="30")
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning, error.", show_default="info")] = None,
    api_keys_file: Annotated[Path | None, typer.Option(help="API keys, one a line: score:KEY or admin:KEY.")] = None,
    allow_anonymous: Annotated[
        bool | None, typer.Option("--allow-anonymous", help="Listen beyond this machine without API keys.")
    ] = None,
    bundle_roots: Annotated[
        list[Path] | None,
        typer.Option("--bundle-root", help="A folder that requests may load bundles from; repeatable."),
    ] = None,
    ssl_certfile: Annotated[Path | None, typer.Option(help="Certificate chain in PEM: HTTPS only.")] = None,
    ssl_keyfile: Annotated[Path | None, typer.Option(help="Its private key in PEM.")] = None,
    generator_url: Annotated[
        str | None, typer.Option(help="A server with OpenAI's API: /v1/chat/completions gives its best answer of N.")
    ] = None,
    generator_model: Annotated[
        str | None, typer.Option(help="Its model where a request names none; its first if left out.")
    ] = None,
    ui: Annotated[bool | None, typer.Option("--ui", help="The playground at /ui, to try it by hand.")] = None,
) -> None:
    """Serve an ensemble over HTTP.

    Each option, and each other setting of the server, is also an environment variable: QUORUM_PORT and so on; a flag
    beats it.
    """
    flags = {
        "bundle": bundle or None,
        "state": state,
        "watch": watch,
        "host": host,
        "port": port,
        "device": device,
        "dtype": dtype,
        "token_budget": token_budget,
        "devices": devices,
        "drain_s": drain_s,
        "log_level": log_level,
        "api_keys_file": api_keys_file,
        "allow_anonymous": allow_anonymous,
        "bundle_roots": bundle_roots or None,
        "ssl_certfile": ssl_certfile,
        "ssl_keyfile": ssl_keyfile,
        "generator_url": generator_url,
        "generator_model": generator_model,
        "ui": ui,
    }
    try:
        given: dict[str, Any] = {name: value for name, value in flags.items() if value is not None}
        settings = Settings(**given)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}" for problem in error.errors()
        )
        raise typer.BadParameter(problems) from error
    configure_logging(settings.log_level)
    raise typer.Exit(run(settings))


def run(settings: Settings, make_engine: Callable[[], Engine] | None = None) -> int:
    """Serve until SIGTERM or SIGINT.

    Args:
        settings: see `Settings`.
        make_engine: see `create_app`.

    Returns:
        The exit status: 0 after a signal, 1 where the address is taken or must not be taken, where keys, certificate
        or ensemble cannot be loaded.
    """
    try:
        app = create_app(settings, make_engine)
    except QuorumError as error:
        return _fail(f"{error.code}: {error.message}")
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,  # see the middleware's
        timeout_graceful_shutdown=_CLOSE_S,
        ssl_certfile=settings.ssl_certfile,
        ssl_keyfile=settings.ssl_keyfile,
    )
    try:
        config.load()
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        return _fail(f"cannot use the certificate: {error}")
    try:
        listener = _listen(settings.host, settings.port)
    except OSError as error:
        return _fail(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}")
    if not (app.state.needs_key or settings.allow_anonymous or _is_loopback(listener)):
        listener.close()
        return _fail(
            f"whoever reaches {settings.host} could use this server: give --api-keys-file FILE, "
            "or --allow-anonymous where the network is closed to others"
        )
    greet = partial(welcome, curl_options=_curl_options(app, settings), has_playground=settings.ui)
    serving = _serve(uvicorn.Server(config), app.state.runtime, listener, settings.drain_s, greet)
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        return runner.run(serving)


def _fail(reason: str) -> int:
    print(f"error: {reason}", file=sys.stderr, flush=True)
    return 1


def _is_loopback(listener: socket.socket) -> bool:
    """Whether only this machine reaches it; asked of the address that a name like localhost came to."""
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=2048)
    # Accepted connections inherit it. asyncio sets it only on sockets that name their protocol, and without it the two
    # writes of a response, head and body, lie 40 ms apart.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


async def _serve(
    server: uvicorn.Server, runtime: Runtime, listener: socket.socket, drain_s: float, greet: Callable[..., str]
) -> int:
    """Serve until a signal, then drain; a second signal ends at once."""
    loop = asyncio.get_running_loop()
    ending = asyncio.Event()

    def stop(*_: object) -> None:
        server.force_exit = server.should_exit = ending.is_set()
        loop.call_soon_threadsafe(ending.set)

    # uvicorn would close the listener at the first signal, and raise the signal once more when it has ended.
    server.handle_exit = stop  # type: ignore[method-assign,assignment]
    old = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    address = listener.getsockname()
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    loading = asyncio.create_task(runtime.wait_loaded())
    draining = asyncio.create_task(_drain(ending, server, runtime, drain_s))
    try:
        await asyncio.wait({serving, loading}, return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            scheme = "https" if server.config.is_ssl else "http"
            print(greet(loading.result(), address[0], address[1], scheme), flush=True)
        await serving
    except QuorumError as error:
        print(f"error: {error.code}: {error.message}", file=sys.stderr, flush=True)
        server.should_exit = True
        await serving
        return 1
    finally:
        loading.cancel()
        draining.cancel()
        for number, handler in old.items():
            signal.signal(number, handler)
    return 0


async def _drain(ending: asyncio.Event, server: uvicorn.Server, runtime: Runtime, drain_s: float) -> None:
    """After the signal the socket stays open, so that new requests are told 503, while those under way finish."""
    await ending.wait()
    await runtime.drain(drain_s)
    server.should_exit = True


def _curl_options(app: FastAPI, settings: Settings) -> list[str]:
    """What curl needs to come in: never a key itself, but the variable that the client reads it from too."""
    options = []
    if settings.ssl_certfile is not None:
        options.append(f"--cacert {shlex.quote(str(settings.ssl_certfile))}")
    if app.state.needs_key:
        options.append('-H "Authorization: Bearer $QUORUM_API_KEY"')
    return options


def welcome(
    ensembles: Sequence[Ensemble],
    host: str,
    port: int,
    scheme: str = "http",
    *,
    curl_options: Sequence[str] = (),
    has_playground: bool = False,
) -> str:
    """What a ready server prints: its address, and a curl line that works as it stands."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared with, not bound to
    url = f"{scheme}://{f'[{reachable}]' if ':' in reachable else reachable}:{port}"
    lines = [
        f"Quorum serves '{one.name}' (version {one.version}, {one.manifest.kind}, {one.loaded.num_members} members, "
        f"{one.loaded.dtype} on {one.loaded.device}, {one.loaded.attention}) at {url}"
        for one in ensembles
    ] or [f"Quorum serves nothing yet at {url}"]
    lines.append(f"Documentation: {url}/docs")
    if has_playground:
        lines.append(f"Playground: {url}/ui")
    if ensembles:
        example = EXAMPLE if len(ensembles) == 1 else EXAMPLE | {"ensemble": ensembles[0].name}
        curl = " ".join(["curl -s", *curl_options])
        lines += ["Try it:", f"{curl} {url}/score -d '{json.dumps(example)}'"]
    return "\n".join(lines)
