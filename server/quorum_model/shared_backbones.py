"""Backbones that several ensembles stand on: one copy of the weights in memory, modules of its own for each ensemble.

    key, load  --SharedBackbones.get-->  Backbone: modules of its own on tensors that are shared

An ensemble changes its modules (adapters are folded into them, hooks are added), never their weights: so sharing the
tensors alone is exact. They live as long as any ensemble has them. Knows no files and no bundles.
"""

from __future__ import annotations

import copy
import itertools
import threading
import weakref
from collections.abc import Callable, Hashable

from quorum_model.backbone import Backbone


class SharedBackbones:
    """The backbones in memory, by what makes them equal; safe to use from several threads."""

    def __init__(self) -> None:
        self._originals: weakref.WeakValueDictionary[Hashable, Backbone] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()

    def get(self, key: Hashable, load: Callable[[], Backbone]) -> Backbone:
        """A backbone with modules of its own, on tensors that it shares with all others of this key.

        Args:
            key: equal only for equal weights and config, in one dtype on one device.
            load: gives it, rounded and moved, where none is in memory.
        """
        with self._lock:
            original = self._originals.get(key)
            if original is None:
                original = self._originals[key] = load()
            tensors = itertools.chain(original.model.parameters(), original.model.buffers())
            own = copy.deepcopy(original, {id(tensor): tensor for tensor in tensors})
            own.model.shares_tensors_of = original  # which thereby lives as long as any of its copies
            return own
