"""The slow oracle: PEFT, one member at a time, one unpadded sequence at a time, eager attention."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel

from quorum_model.adapters import AdapterState, write_adapter


def peft_model(base: Any, member: AdapterState, head_modules: list[str], folder: Path) -> Any:
    """The member as PEFT loads it from disk onto an untouched copy of `base`."""
    ranks = {weights.a.shape[0] for weights in member.lora.values()}
    scaling = next(iter(member.lora.values())).scaling
    write_adapter(folder, member, base_source="base", alpha=scaling * ranks.pop(), head_modules=head_modules)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT remarks on Conv1D and on missing base names
        return PeftModel.from_pretrained(copy.deepcopy(base), str(folder)).eval()


def peft_scores(
    base: Any,
    members: Sequence[AdapterState],
    head_modules: list[str],
    sequences: Sequence[Sequence[int]],
    pooling: str,
    folder: Path,
) -> NDArray[np.float64]:
    """Raw scores (K, B)."""
    rows = []
    for index, member in enumerate(members):
        model = peft_model(base, member, head_modules, folder / f"m{index:02d}").base_model.model
        with torch.no_grad():
            rows.append([float(_score_one(model, list(sequence), pooling)) for sequence in sequences])
    return np.array(rows)


def _score_one(model: Any, sequence: list[int], pooling: str) -> torch.Tensor:
    ids = torch.tensor([sequence])
    if pooling == "mean":  # no class of Transformers pools BERT or a decoder by the mean
        hidden = model.base_model(ids, attention_mask=torch.ones_like(ids)).last_hidden_state.mean(dim=1, keepdim=True)
        return model.score(hidden) if hasattr(model, "score") else model.classifier(model.bert.pooler(hidden))
    # One sequence, no padding: its last token is its last token, also where that is eos and pad is eos too.
    model.config.pad_token_id = None
    return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
