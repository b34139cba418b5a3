"""A real vLLM server on a tiny random policy with a tokenizer of its own."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ROOT = Path(__file__).parents[2]
MAX_LENGTH = 256
_READY_S = 240


def generator_python() -> Path | None:
    """The interpreter of an environment with vLLM: QUORUM_GENERATOR_PYTHON, or what `make generator-env` made."""
    named = os.environ.get("QUORUM_GENERATOR_PYTHON")
    path = Path(named) if named else ROOT / ".cache/generator/venv/bin/python"
    return path if path.exists() else None


def save_policy(folder: Path) -> None:
    """A Llama of two layers with random weights, and a byte-level tokenizer with a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=special)
    tokenizer.train_from_iterator(["a small text for a small tokenizer"], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    fast.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=MAX_LENGTH, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)


def kill_generator(port: int) -> None:
    """The one on this port, with its children, as a machine that is gone."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cmdline()[-1:] == [f"--port={port}"]:
                for one in [*process.children(recursive=True), process]:
                    one.kill()
                process.wait(30)
                return
    raise AssertionError(f"no generator on port {port}")


@contextlib.contextmanager
def generator(policy: Path, python: Path, port: int = 0) -> Iterator[str]:
    """Serve a policy as `base`, with LoRA; yields the base URL and leaves no process behind. port: 0 for a free one."""
    if port == 0:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
    command = [
        str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(policy), "--served-model-name", "base",
        "--host", "127.0.0.1", "--max-model-len", str(MAX_LENGTH), "--max-num-seqs", "32",
        "--enable-lora", "--max-loras", "2", "--max-lora-rank", "8", "--dtype", "float32", "--enforce-eager",
        "--no-enable-chunked-prefill", f"--port={port}",
    ]  # fmt: skip
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environ = kept | {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, env=environ, stdout=log, stderr=log)
        try:
            _wait_for(f"http://127.0.0.1:{port}/health", process, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=30)
            for one in psutil.wait_procs(children, timeout=10)[1]:
                one.kill()
            process.kill()
            process.wait()


def _wait_for(url: str, process: subprocess.Popen[bytes], log: object) -> None:
    ends = time.monotonic() + _READY_S
    while time.monotonic() < ends and process.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(url).status_code == 200:
                return
        time.sleep(0.5)
    log.seek(0)  # type: ignore[attr-defined]
    raise AssertionError(f"vLLM does not start:\n{log.read()[-4000:]}")  # type: ignore[attr-defined]
