"""A Ray cluster on this machine with the application on it, as a process: until it is told to end.

python cluster.py PORT OPTIONS    prints "ready" when requests are answered
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import threading

import ray
from ray import serve

from quorum_ray.application import build


def main() -> None:
    ending = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ending.set())
    # More processors than there are: replicas of a test compute little.
    ray.init(num_cpus=8, object_store_memory=200 * 2**20, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
        serve.run(build(json.loads(sys.argv[2])), name="quorum")
        print("ready", flush=True)
        while not ending.wait(0.5):
            pass
    finally:
        with contextlib.suppress(Exception):
            serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main()
