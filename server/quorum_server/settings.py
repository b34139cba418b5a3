"""Every setting of the server, with its default: the only reader of `QUORUM_*` variables.

    flags > environment > defaults  -->  Settings  -->  plain arguments of the classes that need them

Built in `quorum_server.command` alone. Knows nothing of what the values are used for.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

LogLevel = Literal["debug", "info", "warning", "error"]


class Settings(BaseSettings):
    """Settings of one server; each field is also an environment variable, `QUORUM_` and its name in capitals."""

    model_config = SettingsConfigDict(env_prefix="QUORUM_", frozen=True, extra="forbid")

    bundle: Annotated[list[str], NoDecode] = Field(
        ["default"], description="folders, hub ids, or default; as a variable separated by commas"
    )
    state: Path | None = Field(
        None, description="file that keeps what is to serve; once it is there, it and not `bundle` says what"
    )
    state_interval_s: float | None = Field(
        None, gt=0, description="how often a state file that several servers share is read again; never if unset"
    )
    watch: Path | None = Field(None, description="folder of which the newest bundle of each name serves")
    watch_interval_s: float = Field(5.0, gt=0)
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535, description="0 takes a free one")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N")
    devices: str | None = Field(None, description="several, each with an engine of its own: cuda:0,cuda:1")
    dtype: str = Field("auto", description="auto, float32, bfloat16, float64")
    token_budget: int | None = Field(
        None, ge=1, description="most tokens in one pass of an engine; tried when an ensemble is loaded if left out"
    )
    max_queued_tokens: int = Field(
        2_097_152, ge=1, description="most tokens accepted and not yet scored: 4,096 items of 512 tokens"
    )
    max_queued_bytes: int = Field(256 * 1024 * 1024, ge=1, description="most bytes of bodies not yet answered")
    max_body_bytes: int = Field(8 * 1024 * 1024, ge=1)
    max_items: int = Field(4096, ge=1, description="most inputs, candidates or pairs in one request")
    max_text_chars: int = Field(
        16 * 1024 * 1024,
        ge=1,
        description="most characters to tokenise for one request, shared prompts counted each time",
    )
    tokenizer_threads: int = Field(min(8, os.cpu_count() or 1), ge=1)
    engine_threads: int | None = Field(None, ge=1, description="CPU threads of the engine; torch's own choice if unset")
    pass_timeout_s: float = Field(
        60.0,
        gt=0,
        description="what any pass may take, beyond 20 times what its tokens took so far, before the engine is "
        "taken for hung",
    )
    drain_s: int = Field(30, ge=0, description="how long requests under way may take to finish at shutdown")
    log_level: LogLevel = "info"
    api_keys_file: Path | None = Field(None, description="API keys, one a line: score:KEY or admin:KEY")
    api_keys: SecretStr | None = Field(None, description="the same without a file, separated by commas or spaces")
    allow_anonymous: bool = Field(False, description="listen beyond this machine without API keys")
    bundle_roots: Annotated[tuple[Path, ...], NoDecode] = Field(
        (), description="folders that a request may name bundles in; in the environment separated as in PATH"
    )
    ssl_certfile: Path | None = Field(
        None, description="certificate chain in PEM; with it the server speaks HTTPS only"
    )
    ssl_keyfile: Path | None = Field(None, description="the certificate's private key, where it has a file of its own")

    generator_url: str | None = Field(
        None, description="server with OpenAI's API; with it /v1/chat/completions gives the best of several answers"
    )
    generator_model: str | None = Field(None, description="its model, where a request names none; its first if unset")
    generator_api_key: SecretStr | None = Field(None, description="what the generator wants as a bearer token")
    generator_candidates: int = Field(8, ge=1, le=1024, description="candidates, where a request does not say")
    generator_max_in_flight: int = Field(64, ge=1, description="requests at the generator at once; others wait")
    generator_timeout_s: float = Field(600.0, gt=0, description="for candidates, where a request has no deadline")

    ui: bool = Field(False, description="the playground at /ui; needs Gradio")

    otlp_endpoint: str | None = Field(
        None, description="OpenTelemetry collector's URL for traces over HTTP, as http://127.0.0.1:4318/v1/traces"
    )

    @model_validator(mode="after")
    def _check_certificate(self) -> Self:
        if self.ssl_keyfile is not None and self.ssl_certfile is None:
            raise ValueError("ssl_keyfile needs ssl_certfile")
        return self

    @field_validator("bundle_roots", mode="before")
    @classmethod
    def _split_roots(cls, value: Any) -> Any:
        return [part for part in value.split(os.pathsep) if part] if isinstance(value, str) else value

    @field_validator("bundle", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return value.split(",") if isinstance(value, str) else value

    @property
    def sources(self) -> list[str]:
        """What to serve at first: the default bundle only where nothing else is said."""
        return self.bundle if self.watch is None or "bundle" in self.model_fields_set else []

    @property
    def device_list(self) -> list[str]:
        """One device an engine."""
        return [self.device] if self.devices is None else self.devices.split(",")

    @model_validator(mode="after")
    def _check_folders(self) -> Settings:
        if self.state is not None and not self.state.absolute().parent.is_dir():
            raise ValueError(f"state: no such folder: {self.state.parent}")
        if self.state_interval_s is not None and self.state is None:
            raise ValueError("state_interval_s needs state")
        if self.watch is not None and not self.watch.is_dir():
            raise ValueError(f"watch: no such folder: {self.watch}")
        return self

    @model_validator(mode="after")
    def _check_devices(self) -> Settings:
        if self.devices is not None:
            if "device" in self.model_fields_set:
                raise ValueError("give device or devices, not both")
            if not all(self.device_list):
                raise ValueError("devices are separated by commas, and none is empty")
        return self
