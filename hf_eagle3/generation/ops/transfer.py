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


def kept_rows(storage: torch.Tensor, order: list[int], dim: int) -> torch.Tensor:
    """
    The rows `order` of `storage` along `dim`, in its own memory where rows only move from behind into gaps: without a
    second copy of keys and values while the first is still there.
    """
    moves = [(place, row) for place, row in enumerate(order) if place != row]
    if any(row < len(order) for _, row in moves):
        return storage.index_select(dim, on_device(order, storage.device))
    for place, row in moves:
        storage.select(dim, place).copy_(storage.select(dim, row))
    return storage.narrow(dim, 0, len(order))


def additive(allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0 where `allowed`, the most negative finite number elsewhere: never -inf, never bool (eager attention)."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(
        ~allowed, torch.finfo(dtype).min
    )
