"""Quorum's client: wire types, modes, and the HTTP client. Importing it loads no torch."""

__version__ = "0.1.0"
