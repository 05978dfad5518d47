"""Where tensors live."""

import torch

from slam import world


def best_device() -> torch.device:
    """The accelerator if there is one — this process's own, among several — else the CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return torch.device("cpu")
    if world.size() > 1:
        accelerator = torch.device(accelerator.type, world.local_rank())
        torch.accelerator.set_device_index(world.local_rank())
    return accelerator
