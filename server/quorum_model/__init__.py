"""Quorum's model side: the maths and the files. Knows no HTTP and no training loop."""
