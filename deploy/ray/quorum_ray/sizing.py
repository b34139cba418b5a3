r"""How many GPUs a number of samples a second needs: a cost model of a few lines, held against what was measured.

    python -m quorum_ray.sizing --parameters 8e9 --layers 32 --hidden 4096 --members 5 --adapted-layers 16 \
        --prompt 500 --response 300 --samples 8 --per-second 100

Operations of a sample: 2 a parameter and token of the transformer's layers, those below the first adapted layer once
and the others once a member; attention's two products over the visible half. A causal backbone pools one token, so that
its last layer computes little more than keys and values, and candidates of a prompt share its tokens. LoRA's own
operations, heads, embeddings and norms are not counted, nor were they where the efficiency was measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import typer

H100_FLOPS = 680e12
"""Of 8192 x 8192 products in bf16, measured beside the runs of tests/benchmarks/engine_h100.json."""
EFFICIENCY = 0.66
"""Of that, what scoring reached there with compiled layers, at 8,000 to 65,000 tokens a pass."""
HEADROOM = 0.7
"""Of a replica's rate, what is planned with: bursts, swaps, and a replica that is away."""
_LAST_LAYER = 0.1
"""What is left of a last layer of which one token is pooled: its keys and values."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What is scored. parameters: of the transformer's layers, without embeddings. prompt, response: tokens, a mean.

    adapted_layers: from the top; all where an adapter is on the first one. samples: candidates of a prompt that are
    scored in one request, or within what the prefix store remembers. is_causal: whether they share its tokens.
    """

    parameters: float
    layers: int
    hidden: int
    members: int
    adapted_layers: int
    prompt: float
    response: float
    samples: int = 1
    is_causal: bool = True

    @property
    def computed_tokens(self) -> float:
        """Of a sample."""
        return self.response + self.prompt / (self.samples if self.is_causal else 1)

    @property
    def flops(self) -> float:
        """Operations of a sample."""
        adapted = self.adapted_layers - (1 - _LAST_LAYER if self.is_causal else 0)
        passes = (self.layers - self.adapted_layers + self.members * adapted) / self.layers
        linears = 2 * self.parameters * self.computed_tokens * passes
        seen = (self.prompt + self.response) * (0.5 if self.is_causal else 1.0)
        attention = 4 * self.hidden * self.layers * self.computed_tokens * seen * passes
        return linears + attention


def samples_per_second(work: Workload, peak_flops: float = H100_FLOPS, efficiency: float = EFFICIENCY) -> float:
    """Of one GPU that does nothing else."""
    return efficiency * peak_flops / work.flops


def gpus_for(work: Workload, per_second: float, peak_flops: float = H100_FLOPS, efficiency: float = EFFICIENCY) -> int:
    """GPUs for samples a second, with `HEADROOM`."""
    return math.ceil(per_second / (HEADROOM * samples_per_second(work, peak_flops, efficiency)))


_Number = Annotated[float, typer.Option()]
_Count = Annotated[int, typer.Option()]


def main(  # noqa: PLR0913 - the options of a command are its interface
    *,
    parameters: Annotated[float, typer.Option(help="Of the transformer's layers, without embeddings.")],
    layers: _Count,
    hidden: _Count,
    members: _Count,
    adapted_layers: Annotated[int, typer.Option(help="From the top.")],
    prompt: Annotated[float, typer.Option(help="Tokens.")],
    response: Annotated[float, typer.Option(help="Tokens.")],
    per_second: Annotated[float, typer.Option(help="Samples a second that are wanted.")],
    samples: Annotated[int, typer.Option(help="Candidates of a prompt.")] = 1,
    causal: Annotated[bool, typer.Option(help="Whether candidates share their prompt.")] = True,
    peak_tflops: Annotated[float, typer.Option(help="Measured, of dense products.")] = H100_FLOPS / 1e12,
    efficiency: _Number = EFFICIENCY,
) -> None:
    """Print what a workload needs."""
    work = Workload(parameters, layers, hidden, members, adapted_layers, prompt, response, samples, is_causal=causal)
    rate = samples_per_second(work, peak_tflops * 1e12, efficiency)
    count = gpus_for(work, per_second, peak_tflops * 1e12, efficiency)
    print(f"{work.computed_tokens:.0f} tokens and {work.flops / 1e12:.2f} TFLOP a sample")
    print(f"{rate:.1f} samples a second and GPU, so {count} GPUs for {per_second:g} a second with headroom")
    print(f"tokens_per_replica of ten seconds: {10 * rate * (prompt + response):,.0f}")


if __name__ == "__main__":
    typer.run(main)
