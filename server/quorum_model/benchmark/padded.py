"""The peers that everyone has: a PEFT model over padded batches, as plain Transformers runs it.

    token ids  --one member after another, or all in one mixed batch-->  raw scores (K, B)

Batches of similar length as one plans them who cares, or in the order given as many do.

Weights, tokens and pooling are those of the ensemble; nothing of the engine is used. Knows no time.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor

from quorum_model.benchmark.random_ensemble import load_whole_model
from quorum_model.errors import Unsupported

TOKEN_BUDGETS = {"cpu": (512, 2048, 8192), "cuda": (8192, 32768, 131072)}
"""Padded tokens of a batch that a peer may choose from."""
BATCH_SIZES = (8, 32, 128)
"""Sequences of a batch that a peer may choose from that takes them as they come."""


def plan_padded(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Indices of the sequences of each batch: sorted by length, at most `token_budget` tokens with their padding."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        # Ascending: the newest is the longest, and sets the width of all.
        if not batches or (len(batches[-1]) + 1) * lengths[index] > token_budget:
            batches.append([])
        batches[-1].append(index)
    return batches


class PaddedPeft:
    """K adapters on one Transformers model, attention by SDPA.

    Args:
        backbone: folder of the base model.
        adapters: a folder a member, in PEFT's format, each with its head.
        dtype: of everything, adapters and heads too.
        device: where it runs.
        sequences: what will be scored: a causal model pools the last token that is not its pad token, so that none of
            them may hold it.
    """

    def __init__(
        self,
        backbone: Path,
        adapters: Sequence[Path],
        *,
        dtype: torch.dtype,
        device: torch.device,
        sequences: Sequence[Sequence[int]],
    ) -> None:
        self._names = [folder.name for folder in adapters]
        self._device = device
        base = load_whole_model(backbone, dtype)
        self._model: Any = wrap_in_peft(base, adapters).to(device).eval()
        self._pad_id = _pad_id(base, sequences)
        base.config.pad_token_id = self._pad_id

    def one_after_another(self, sequences: Sequence[Sequence[int]], token_budget: int) -> NDArray[np.float32]:
        """Raw scores (K, B): each member over all batches."""
        return np.stack([self.one(index, sequences, token_budget) for index in range(len(self._names))])

    def in_given_order(self, sequences: Sequence[Sequence[int]], batch_size: int) -> NDArray[np.float32]:
        """Raw scores (K, B), each member over batches of the sequences as they come."""
        places = list(range(len(sequences)))
        batches = [places[first : first + batch_size] for first in range(0, len(places), batch_size)]
        return np.stack([self._run(index, sequences, batches) for index in range(len(self._names))])

    def one(self, member: int, sequences: Sequence[Sequence[int]], token_budget: int) -> NDArray[np.float32]:
        """Raw scores (B,) of one member."""
        return self._run(member, sequences, plan_padded([len(sequence) for sequence in sequences], token_budget))

    def _run(
        self, member: int, sequences: Sequence[Sequence[int]], batches: Sequence[Sequence[int]]
    ) -> NDArray[np.float32]:
        self._model.set_adapter(self._names[member])
        with torch.inference_mode():
            scores = [self._model(**self._pad(sequences, batch)).logits.flatten() for batch in batches]
        row: NDArray[np.float32] = in_order(torch.cat(scores)[None], batches)[0]
        return row

    def mixed(self, sequences: Sequence[Sequence[int]], token_budget: int) -> NDArray[np.float32]:
        """Raw scores (K, B): every sequence K times in one batch, with the name of its adapter."""
        members = len(self._names)
        batches = plan_padded([len(sequence) for sequence in sequences], max(token_budget // members, 1))
        scores = []
        with torch.inference_mode():
            for batch in batches:
                inputs = {name: tensor.repeat(members, 1) for name, tensor in self._pad(sequences, batch).items()}
                names = [name for name in self._names for _ in batch]
                scores.append(self._model(**inputs, adapter_names=names).logits.view(members, len(batch)))
        return in_order(torch.cat(scores, dim=1), batches)

    def fastest_budget(self, sequences: Sequence[Sequence[int]]) -> int:
        """The batch size at which one member is fastest on a sample of the sequences: a peer is run at its best."""
        sample = [sequences[index] for index in range(0, len(sequences), max(len(sequences) // 64, 1))]
        budgets = TOKEN_BUDGETS[self._device.type]
        return min(budgets, key=lambda budget: seconds_of(lambda: self.one(0, sample, budget)))

    def fastest_batch_size(self, sequences: Sequence[Sequence[int]]) -> int:
        """The same for batches in the given order."""
        sample = sequences[: 2 * max(BATCH_SIZES)]
        return min(BATCH_SIZES, key=lambda size: seconds_of(lambda: self.in_given_order(sample, size)))

    def _pad(self, sequences: Sequence[Sequence[int]], batch: Sequence[int]) -> dict[str, Tensor]:
        width = max(len(sequences[index]) for index in batch)
        ids = torch.full((len(batch), width), self._pad_id, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, index in enumerate(batch):
            ids[row, : len(sequences[index])] = torch.tensor(sequences[index])
            mask[row, : len(sequences[index])] = 1
        return {"input_ids": ids.to(self._device), "attention_mask": mask.to(self._device)}


def wrap_in_peft(base: Any, adapters: Sequence[Path]) -> Any:
    """The model with every adapter loaded, each under its folder's name, in the model's own dtype."""
    # Left at its default, PEFT would run bf16 models with fp32 adapters, at twice the cost of casts.
    load: dict[str, Any] = {"autocast_adapter_dtype": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT remarks on Conv1D
        model = PeftModel.from_pretrained(base, str(adapters[0]), adapter_name=adapters[0].name, **load)
        for folder in adapters[1:]:
            model.load_adapter(str(folder), adapter_name=folder.name, **load)
    return model


def _pad_id(base: Any, sequences: Sequence[Sequence[int]]) -> int:
    if not hasattr(base, "score"):  # an encoder: RoBERTa and its kin find positions by their own pad token
        return int(base.config.pad_token_id or 0)
    used = {token for sequence in sequences for token in sequence}
    free = next((token for token in range(base.config.get_text_config().vocab_size) if token not in used), None)
    if free is None:
        raise Unsupported("the texts use every token of the vocabulary: none is left to pad with")
    return free


def in_order(scores: Tensor, batches: Sequence[Sequence[int]]) -> NDArray[np.float32]:
    """(K, B) in the order of batches -> in the order of sequences, on the CPU."""
    order = [index for batch in batches for index in batch]
    result = np.empty(tuple(scores.shape), dtype=np.float32)
    result[:, order] = scores.float().cpu().numpy()
    return result


def seconds_of(work: Callable[[], object]) -> float:
    """Of the second time: what is paid once is left out."""
    work()  # warm
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
