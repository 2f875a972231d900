"""Which device, small lists to it without waiting for it, additive masks, and parts of storage in place."""

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


def kept_entries(storage: torch.Tensor, order: list[int], dim: int) -> torch.Tensor:
    """
    The entries `order` of `storage` along `dim`, in its own memory where they only move from behind into gaps: no
    second copy of keys and values while the first is still there.
    """
    moves = [(place, source) for place, source in enumerate(order) if place != source]
    if any(source < len(order) for _, source in moves):
        return storage.index_select(dim, on_device(order, storage.device))
    for place, source in moves:
        storage.select(dim, place).copy_(storage.select(dim, source))
    return storage.narrow(dim, 0, len(order))


def additive(allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0 where `allowed`, the most negative finite number elsewhere: never -inf, never bool (eager attention)."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(
        ~allowed, torch.finfo(dtype).min
    )
