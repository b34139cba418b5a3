"""A run as it is seen from outside: its folder on disk, progress on a console, numbers in a tracker, upload."""
