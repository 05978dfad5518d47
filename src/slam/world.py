"""The processes of one training, as `torchrun` numbers them in the environment; one process without it.

No torch here: every stage asks, and most have no use for it.
"""

import os


def rank() -> int:
    """This process's number among all; process 0 writes."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """This process's number on its machine: its GPU's number."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def size() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))
