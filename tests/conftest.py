"""For every test: one arithmetic thread, no hub.

Tiny models gain nothing by a second thread, and threads that spin while they wait ruin each other on a busy machine.
Set before torch is imported, and inherited by the servers that tests start.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
