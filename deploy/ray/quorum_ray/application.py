"""The application, as Ray Serve starts it: `serve run quorum_ray.application:build`, with `Options` as arguments."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig

from quorum_ray.ingress import Ingress
from quorum_ray.scaling import QueuedTokens
from quorum_ray.scorer import Scorer
from quorum_server.settings import Settings

ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"


class Options(BaseModel):
    """What a deployment may say.

    settings: of the server, by name. min_replicas, max_replicas: of the scorer. tokens_per_replica: queued tokens for
    which one replica is enough; docs/ray.md says how to find it. upscale_delay_s, downscale_delay_s: how long the queue
    must ask for more or fewer. num_cpus, num_gpus: of a replica. max_ongoing_requests: that one replica holds at once;
    it has its own bounds in tokens. ingresses: replicas of the ingress. targets: a folder that all nodes share, for
    Prometheus.
    """

    model_config = ConfigDict(extra="forbid")

    settings: dict[str, Any] = Field(default_factory=dict)
    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(1, ge=1)
    tokens_per_replica: float = Field(100_000, gt=0)
    upscale_delay_s: float = Field(10, ge=0)
    downscale_delay_s: float = Field(600, ge=0)
    num_cpus: float = Field(1, ge=0)
    num_gpus: float = Field(0, ge=0)
    max_ongoing_requests: int = Field(256, ge=1)
    ingresses: int = Field(1, ge=1)
    targets: str | None = None


def build(arguments: dict[str, Any]) -> serve.Application:
    """The application of these `Options`.

    Raises:
        ValueError: they are none, or ask for what the ingress cannot pass (also pydantic's ValidationError).
    """
    options = Options(**arguments)
    settings = Settings(**options.settings)  # refused here, and not in every replica
    if settings.api_keys is None and settings.api_keys_file is None and not settings.allow_anonymous:
        raise ValueError("settings: whoever reaches the cluster could use this: give api_keys_file, or allow_anonymous")
    if settings.ui:
        raise ValueError("settings: the playground needs answers that go on, which the ingress does not pass")
    scaling = AutoscalingConfig(
        min_replicas=options.min_replicas,
        max_replicas=options.max_replicas,
        upscale_delay_s=options.upscale_delay_s,
        downscale_delay_s=options.downscale_delay_s,
        policy=AutoscalingPolicy(
            policy_function=QueuedTokens, policy_kwargs={"tokens_per_replica": options.tokens_per_replica}
        ),
    )
    scorer = serve.deployment(
        name="scorer",
        autoscaling_config=scaling,
        max_ongoing_requests=options.max_ongoing_requests,
        request_router_config=RequestRouterConfig(request_router_class=ROUTER),
        ray_actor_options={"num_cpus": options.num_cpus, "num_gpus": options.num_gpus},
        health_check_period_s=2,
        graceful_shutdown_timeout_s=settings.drain_s,
    )(Scorer).bind(options.settings, options.targets)
    ingress = serve.deployment(
        name="ingress",
        num_replicas=options.ingresses,
        max_ongoing_requests=4096,
        ray_actor_options={"num_cpus": 0.1},
    )(Ingress)
    return ingress.bind(scorer, settings.max_body_bytes)
