"""Best-of-N: candidates of a prompt, from a generator or given, ranked by an ensemble, and the best one picked."""

from quorum_client.best_of_n.picker import Picker, best_of_n, pick_best
from quorum_client.best_of_n.prompts import PromptTask, read_prompts
from quorum_client.best_of_n.record import Record

__all__ = ["Picker", "PromptTask", "Record", "best_of_n", "pick_best", "read_prompts"]
