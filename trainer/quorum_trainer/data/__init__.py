"""The data room: preference pairs from files and hub data sets, checked, split by prompt, audited, encoded.

pairs.py  ←  formats.py  ←  read.py; pairs.py  ←  split.py, audit.py, encode.py
"""

from quorum_trainer.data.audit import Audit, Finding, SourceSplit, audit_splits
from quorum_trainer.data.encode import encode_pairs
from quorum_trainer.data.formats import RowRejected, pair_of_row
from quorum_trainer.data.pairs import DataError, EncodedPair, PreferencePair
from quorum_trainer.data.read import SourcePairs, hash_file, read_hub, read_pairs, read_source
from quorum_trainer.data.split import assign_folds, split_held_out, take

__all__ = [
    "Audit",
    "DataError",
    "EncodedPair",
    "Finding",
    "PreferencePair",
    "RowRejected",
    "SourcePairs",
    "SourceSplit",
    "assign_folds",
    "audit_splits",
    "encode_pairs",
    "hash_file",
    "pair_of_row",
    "read_hub",
    "read_pairs",
    "read_source",
    "split_held_out",
    "take",
]
