"""Tensors that stay where they are between calls, so that CUDA graphs find them again."""

import weakref

import torch


ROUNDING = 128  # slots: calls of about the same length share shapes


def rounded(slots: int) -> int:
    """The next multiple of `ROUNDING`."""
    return -(-slots // ROUNDING) * ROUNDING


def fixed(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor`, marked: its address stays, so that a CUDA graph reads and writes it where it is."""
    torch._dynamo.mark_static_address(tensor, guard=False)
    return tensor


class Shelf:
    """
    Storage between calls, one piece per owner: CUDA graphs know it by its address, and would be recorded anew for
    another. It is taken out while in use, so that two threads never share it, and goes with its owner.
    """

    def __init__(self):
        self._pieces: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()

    def take(self, owner):
        """What was put here for `owner`, or `None`."""
        return self._pieces.pop(owner, None)

    def put(self, owner, piece) -> None:
        """Keep `piece` for the next call of `owner`."""
        self._pieces[owner] = piece

    def clear(self) -> None:
        """Free all that is kept."""
        self._pieces.clear()
