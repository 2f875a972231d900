"""Which device, and small host lists to it without waiting for it."""

import torch


def best_device() -> str:
    """The accelerator where there is one, else the CPU."""
    return str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"


def on_device(values: list, device: torch.device) -> torch.Tensor:
    """
    `torch.tensor(values, device=device)` that does not drain the device's queue: on CUDA a copy from pageable memory
    waits for everything queued before it.
    """
    tensor = torch.tensor(values)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
