"""The dtypes that options can name. Importing this module does not import torch."""

from typing import TYPE_CHECKING


if TYPE_CHECKING:
    import torch


DTYPES = ("auto", "float32", "bfloat16", "float16")


def torch_dtype(name: str) -> "torch.dtype":
    """
    The dtype of a name other than "auto".

    Raises:
        ValueError: the name is unknown.
    """
    import torch

    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise ValueError(f"`dtype` is {name!r}; choose from {', '.join(known)}.")
    return known[name]
