"""Versions and hardware of a measurement. The host name is not recorded."""

import os
import platform

import torch
import transformers

from .._version import __version__


def versions() -> dict[str, str | None]:
    """Versions of the software that affects the figures."""
    return {
        "hf_eagle3": __version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
    }


def hardware(device: torch.device) -> dict[str, str | int]:
    """The device and the machine that it belongs to."""
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
    """From /proc/cpuinfo: on Linux `platform.processor()` is empty."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "")
    except OSError:
        return ""
