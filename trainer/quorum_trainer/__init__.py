"""Quorum's trainer: reward training. Meets the server only over HTTP and on disk."""
