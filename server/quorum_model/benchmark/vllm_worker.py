"""Runs inside vLLM's own environment, where Quorum is not installed: scores the same token ids again and again.

    argv: one JSON object {model, dtype, sequences (a file), max_length}
    stdin: a line, any   ->   stdout: one JSON object a line: {version} once, then {scores} a line of stdin

A file of its own, started by its path; it imports nothing of Quorum.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Load the model, then score whenever told to."""
    # vLLM logs to stdout: what the other side reads goes through a descriptor of its own.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    options = json.loads(sys.argv[1])
    sequences = json.loads(Path(options["sequences"]).read_text(encoding="utf-8"))
    import vllm

    llm = vllm.LLM(
        model=options["model"],
        runner="pooling",
        dtype=options["dtype"],
        max_model_len=options["max_length"],
        enable_prefix_caching=False,  # the second round would find the first one's work
    )
    _say(answers, {"version": vllm.__version__})
    prompts = [{"prompt_token_ids": ids} for ids in sequences]
    raw = vllm.PoolingParams(use_activation=False)  # the score itself, not its sigmoid
    for _ in sys.stdin:
        outputs = llm.classify(prompts, pooling_params=raw, use_tqdm=False)
        _say(answers, {"scores": [float(output.outputs.probs[0]) for output in outputs]})


def _say(answers: Any, value: dict[str, Any]) -> None:
    answers.write(json.dumps(value) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
