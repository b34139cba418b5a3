"""A run as it is seen from outside: its folder on disk, its progress on a console, its numbers in a tracker, its upload."""
