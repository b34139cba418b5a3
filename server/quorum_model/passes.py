"""Which sequences go through the model together, and what of them is computed.

    token ids of B sequences, a token budget  --plan_passes-->  indices of each pass
    a pass's sequences, what is kept of their beginnings  --continue_from-->  its forest, and the blocks that it fills

Knows nothing of tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from quorum_model.prefix_store import BLOCK_TOKENS, Block, Digest, PrefixStore, digests_of
from quorum_model.prefixes import MIN_SHARED_TOKENS, PrefixForest, Run, common_prefix, room_for, share_prefixes


def plan_passes(
    sequences: Sequence[list[int]], token_budget: int, *, share: bool, stretch: bool = True
) -> list[list[int]]:
    """Indices of the sequences of each pass, of at most `token_budget` computed tokens; a longer one goes alone.

    Args:
        sequences: B non-empty lists of token ids.
        token_budget: most computed tokens in a pass.
        share: common beginnings are computed once (causal backbones): sequences that begin alike go together. Otherwise
            those of similar length do.
        stretch: let a pass grow with what all of it shares (see `room_for`): not where memory has been short.
    """
    if not share:
        return plan_batches([len(sequence) for sequence in sequences], token_budget)
    passes: list[list[int]] = []
    used = shared = 0
    for index in sorted(range(len(sequences)), key=sequences.__getitem__):
        sequence = sequences[index]
        cost = len(sequence)
        if passes:
            agreed = common_prefix(sequences[passes[-1][-1]], sequence)
            # At a branch at least this much is shared already: runs shorter than the minimum are not.
            cost -= max(0, agreed - MIN_SHARED_TOKENS + 1)
            shared = min(shared, agreed)
        if not passes or used + cost > (room_for(token_budget, shared) if stretch else token_budget):
            passes.append([])
            used, cost, shared = 0, len(sequence), len(sequence)
        passes[-1].append(index)
        used += cost
    return passes


def continue_from(
    store: PrefixStore, sequences: Sequence[list[int]]
) -> tuple[PrefixForest, list[tuple[Digest, Block]]]:
    """A pass's forest where beginnings that are kept are left out, and the blocks that the pass will fill.

    Args:
        store: of the same weights.
        sequences: of the pass.
    """
    digests = [digests_of(sequence) for sequence in sequences]
    groups: dict[tuple[Block, ...], list[int]] = {}
    for index, own in enumerate(digests):
        groups.setdefault(store.find(own), []).append(index)
    runs: list[Run] = []
    leaves = [0] * len(sequences)
    new: dict[Digest, Block] = {}
    wanted: list[tuple[int, int, Block]] = []
    for stored, indices in groups.items():
        known = BLOCK_TOKENS * len(stored)
        forest = share_prefixes([sequences[index][known:] for index in indices])
        shift = len(runs)
        runs += [
            replace(run, stored=stored) if run.parent is None else replace(run, parent=run.parent + shift)
            for run in forest.runs
        ]
        for index, leaf in zip(indices, forest.leaves, strict=True):
            leaves[index] = leaf + shift
            for place, digest in enumerate(digests[index][len(stored) :]):
                if digest not in new and digest not in store:
                    new[digest] = Block()
                    wanted.append((index, BLOCK_TOKENS * place, new[digest]))
    return PrefixForest(tuple(runs), tuple(leaves), tuple(wanted)), list(new.items())


def plan_batches(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Indices of the sequences of each pass: similar lengths together, at most `token_budget` tokens a pass."""
    batches: list[list[int]] = []
    used = token_budget + 1
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if used + lengths[index] > token_budget:
            batches.append([])
            used = 0
        batches[-1].append(index)
        used += lengths[index]
    return batches
