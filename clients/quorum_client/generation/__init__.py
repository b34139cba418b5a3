"""Completions of a generator: a vLLM server, or any other that speaks OpenAI's API. Loads no torch."""

from quorum_client.generation.adapters import load_adapter, unload_adapter
from quorum_client.generation.generator import Generator
from quorum_client.generation.types import Completion, Generation, SamplingOptions, TokenCounts, derive_seed
from quorum_client.generation.wire import ChatPrompt, TextPrompt

__all__ = [
    "ChatPrompt",
    "Completion",
    "Generation",
    "Generator",
    "SamplingOptions",
    "TextPrompt",
    "TokenCounts",
    "derive_seed",
    "load_adapter",
    "unload_adapter",
]
