"""LoRA adapters of a vLLM server, loaded and unloaded while it serves.

    a folder in PEFT's format  --load_adapter-->  a model name for `chat` and `complete`  --unload_adapter-->  gone

vLLM's own API, open only where it was started with `--enable-lora` and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True. Its
prefix cache goes by name and path: weights written over at one path under one name are answered from blocks of the old
ones. So every version of an adapter needs a name of its own, which `load_adapter` holds to: it never replaces.
"""

from __future__ import annotations

from pathlib import Path

from quorum_client.errors import GeneratorError, GeneratorRefused, InvalidRequest
from quorum_client.generation.generator import Generator


async def load_adapter(generator: Generator, name: str, path: Path, *, deadline_s: float | None = None) -> None:
    """Load an adapter; returns when it serves.

    Args:
        generator: a vLLM server.
        name: new: not of an adapter or model that it serves.
        path: absolute, of the adapter's folder, as the server's process sees it.
        deadline_s: instead of the generator's.

    Raises:
        InvalidRequest: the path is not absolute.
        GeneratorRefused: the name is taken.
        GeneratorError: no such adapter, an adapter that does not fit the model, or a server without this API.
        DeadlineExceeded: there was no answer in time.
    """
    if not path.is_absolute():
        raise InvalidRequest("path of an adapter must be absolute: it is the server that reads it")
    body: dict[str, object] = {"lora_name": name, "lora_path": str(path)}
    await generator.call("POST", "/load_lora_adapter", body, deadline_s=deadline_s, is_done=_is_loaded)


async def unload_adapter(generator: Generator, name: str, *, deadline_s: float | None = None) -> None:
    """Unload an adapter.

    Raises:
        GeneratorError: no adapter has this name, or the server does not have this API.
        DeadlineExceeded: there was no answer in time.
    """
    body: dict[str, object] = {"lora_name": name}
    await generator.call("POST", "/unload_lora_adapter", body, deadline_s=deadline_s, is_done=_is_unknown)


def _is_loaded(error: GeneratorError) -> bool:
    return isinstance(error, GeneratorRefused) and "already been loaded" in error.message


def _is_unknown(error: GeneratorError) -> bool:
    return "cannot be found" in error.message
