"""Benchmarks of the service: real processes, requests over HTTP, peers in the same run."""
