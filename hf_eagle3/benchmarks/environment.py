"""What a measurement ran on: versions and hardware, without the machine's name."""

import os
import platform

import torch
import transformers

from .._version import __version__


def versions() -> dict[str, str | None]:
    """Of everything that moves the figures."""
    return {
        "hf_eagle3": __version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
    }


def hardware(device: torch.device) -> dict[str, str | int]:
    """The device, and the host it hangs on."""
    return {
        "device": device.type,
        "device_name": _name(device),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu_count": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
    }


def _name(device: torch.device) -> str:
    if device.type in ("cuda", "xpu"):
        return torch.get_device_module(device).get_device_name(device)
    return _cpu_name() or platform.processor() or platform.machine()


def _cpu_name() -> str:
    """From where Linux keeps it; Python's own `platform.processor()` is empty there."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "")
    except OSError:
        return ""
