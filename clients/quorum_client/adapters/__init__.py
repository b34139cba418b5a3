"""Quorum as the reward of other trainers, one file each, with the framework's own signature.

A reward that cannot be had is raised as a `QuorumError`; none is ever put in its place. The frameworks are imported by
nobody here but themselves, and torch only where one of them wants tensors.
"""

DEADLINE_S = 600.0
"""Seconds that an adapter waits for a reward, restarts and overload of the server included, before it raises."""

MAX_RETRIES = 10_000
"""More than fit into the deadline, which is what ends a call."""
