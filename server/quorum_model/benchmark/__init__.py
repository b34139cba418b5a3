"""What every `quorum bench` has in common: contestants that take turns, and the environment on record."""
