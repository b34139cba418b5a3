"""What Transformers and PEFT themselves give: the scores that an import must reproduce.

    folder (+ adapter)  --load_model-->  model  --own_score-->  one raw score

One unpadded sequence at a time, eager attention, fp32; no code of `quorum_model`'s forward pass, unless another pooling
than the architecture's own is asked for. Knows nothing of bundles or prompts.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging as transformers_logging

from quorum_model.errors import Unsupported
from quorum_model.heads import head_of
from quorum_model.packing import Pooling, packing_of, pool


def load_model(folder: Path, adapter: Path | None = None) -> Any:
    """A sequence-classification model with one label as its own libraries load it, in fp32 and eval mode.

    Args:
        folder: of the model, or of an adapter's base.
        adapter: a PEFT adapter's folder, put on the model by PEFT.

    Raises:
        Unsupported: the adapter is for another base.
    """
    with _quiet():
        model = AutoModelForSequenceClassification.from_pretrained(
            folder,
            num_labels=1,
            dtype=torch.float32,
            attn_implementation="eager",  # Gemma 2's softcap is lost in sdpa
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
        )
        if adapter is not None:
            try:
                model = PeftModel.from_pretrained(model, str(adapter)).get_base_model()
            except (RuntimeError, ValueError, KeyError, TypeError, OSError) as error:
                raise Unsupported(f"{adapter.name}: PEFT cannot put it on its base: {error}") from error
    return model.eval()


@contextmanager
def _quiet() -> Iterator[None]:
    """Heads that are new before their adapter comes, and names of bases that moved, are checked elsewhere."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(level)
        transformers_logging.enable_progress_bar()


def own_score(model: Any, ids: Sequence[int], *, ignored_id: int | None, pooling: Pooling | None = None) -> float:
    """The raw score of one sequence.

    Args:
        model: from `load_model`.
        ids: with special tokens, and trailing ones that the model ignores.
        ignored_id: pad token of a causal model; None scores the last token.
        pooling: another than the architecture's own, or None.
    """
    tokens = torch.tensor([list(ids)])
    with torch.inference_mode():
        if pooling is not None:
            hidden = model.base_model(input_ids=tokens).last_hidden_state
            head = head_of(model, model.base_model_prefix)
            return float(head(pool(hidden, packing_of([[len(ids)]]), pooling)[0]))
        if hasattr(model, "score"):  # a causal class: where it looks for the last token
            model.config.get_text_config().pad_token_id = ignored_id
        return float(model(input_ids=tokens).logits)
