"""Keys and values of beginnings that were computed before, kept between passes within a bound of memory.

    token ids  --find-->  blocks of 64 tokens that need not be computed again
    blocks that a pass has filled on its way  --put-->  kept, the least recently used ones dropped

A trainer that sends one sample a request sends a prompt many times; where the samples do not meet in one pass, this is
what lets them share it. A block is known by all tokens up to its end, so that equal tokens behind another beginning are
another block. Knows nothing of attention: blocks are filled and read there.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # the server's parent plans with prefixes, and does without torch
    from torch import Tensor

BLOCK_TOKENS = 64

Digest = bytes


@dataclass(eq=False, slots=True)
class Block:
    """64 tokens. keys, values: by layer, (K, H_kv, 64, D), or (1, H_kv, 64, D) where all members share the layer."""

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    @property
    def num_bytes(self) -> int:
        """Memory that it takes."""
        return sum(tensor.numel() * tensor.element_size() for tensor in (*self.keys, *self.values))


class PrefixStore:
    """The blocks that are kept, the least recently used first.

    Args:
        max_bytes: most memory that blocks may take.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._blocks: OrderedDict[Digest, Block] = OrderedDict()
        self.num_bytes = 0

    def __contains__(self, digest: Digest) -> bool:
        return digest in self._blocks

    def find(self, digests: Sequence[Digest]) -> tuple[Block, ...]:
        """The blocks that a sequence begins with, as far as they are kept, now the most recently used.

        Args:
            digests: of the sequence; see `digests_of`.
        """
        found = []
        for digest in digests:
            block = self._blocks.get(digest)
            if block is None:
                break
            found.append(block)
        for digest in reversed(digests[: len(found)]):  # a beginning outlives what follows it
            self._blocks.move_to_end(digest)
        return tuple(found)

    def put(self, blocks: Sequence[tuple[Digest, Block]]) -> None:
        """Keep blocks, and drop the least recently used beyond the bound."""
        for digest, block in reversed(blocks):
            if digest not in self._blocks:
                self._blocks[digest] = block
                self.num_bytes += block.num_bytes
        while self.num_bytes > self._max_bytes:
            _, dropped = self._blocks.popitem(last=False)
            self.num_bytes -= dropped.num_bytes


def digests_of(sequence: Sequence[int]) -> list[Digest]:
    """Names of a sequence's whole blocks, each of all tokens up to its end; without its last token, which is pooled."""
    tokens = np.asarray(sequence, dtype=np.int32)
    running = hashlib.blake2b(digest_size=16)
    digests = []
    for end in range(BLOCK_TOKENS, len(tokens), BLOCK_TOKENS):
        running.update(tokens[end - BLOCK_TOKENS : end].tobytes())
        digests.append(running.digest())
    return digests
