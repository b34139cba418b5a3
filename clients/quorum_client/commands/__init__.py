"""Subcommands of `quorum` that need nothing but the client."""
