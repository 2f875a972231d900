"""The noise of coming sampling steps, drawn as plain generate would draw it.

`torch.multinomial(p, 1)` is `argmax(p / E)` with `E = empty_like(p).exponential_()`. One E (B, V) is drawn per step,
in order, from the device's default generator; sequences use theirs when they get there. On closing, the generator is
put into the state after the last step that plain generate would have drawn, so that text, and the next random number,
are the same with and without a draft.

Does not know trees or models. Shape letters: B sequences of the batch, A active ones, V target, D draft vocabulary.
"""

import torch


# The noise of steps is kept until the slowest sequence has used it; past this many bytes the fastest are held back.
SKEW_BYTES = 2**28


class StepNoise:
    """
    Args:
        shape: (B, V) of the scores of one plain step.
        device: Where plain generate draws.
        draft_ids: Target id of every draft id (D,), to keep the draft's part of each step's Gumbel noise; `None`: all.
    """

    def __init__(self, shape: tuple[int, int], device: torch.device, draft_ids: torch.Tensor | None = None):
        self.shape, self.device, self.draft_ids = shape, device, None if draft_ids is None else draft_ids.to(device)
        self._first = 0  # step of the oldest kept entry
        self._noise: list[torch.Tensor] = []  # E (B, V) per step
        self._gumbel: list[torch.Tensor | None] = []  # -log E on the draft vocabulary (B, D), made when asked for
        self._states: list[torch.Tensor] = []  # generator state before each kept step
        self._after: torch.Tensor | None = None  # and after the newest

    @property
    def max_skew(self) -> int:
        """How many steps sequences may lie apart before the noise kept for the slowest costs too much memory."""
        return max(16, SKEW_BYTES // (4 * self.shape[0] * self.shape[1]))

    def _reach(self, step: int) -> None:
        while self._first + len(self._noise) <= step:
            self._states.append(_get_state(self.device))
            self._noise.append(torch.empty(self.shape, device=self.device).exponential_())
            self._gumbel.append(None)
            self._after = _get_state(self.device)

    def at(self, steps: list[int], sequences: list[int]) -> torch.Tensor:
        """E of each sequence's own step, (A, V)."""
        self._reach(max(steps))
        if len(sequences) == 1:
            return self._noise[steps[0] - self._first][sequences[0] : sequences[0] + 1]
        each = zip(steps, sequences, strict=True)
        return torch.stack([self._noise[step - self._first][number] for step, number in each])

    def gumbel_at(self, steps: list[int], sequences: list[int]) -> torch.Tensor:
        """-log E of each sequence's own step on the draft vocabulary, (A, D)."""
        self._reach(max(steps))
        for step in set(steps):
            if self._gumbel[step - self._first] is None:
                noise = self._noise[step - self._first]
                self._gumbel[step - self._first] = -(
                    noise if self.draft_ids is None else noise[:, self.draft_ids]
                ).log()
        each = zip(steps, sequences, strict=True)
        return torch.stack([self._gumbel[step - self._first][number] for step, number in each])

    def forget_before(self, step: int) -> None:
        """Every sequence has used the steps before `step`."""
        gone = max(0, min(step - self._first, len(self._noise)))
        del self._noise[:gone], self._gumbel[:gone], self._states[:gone]
        self._first += gone

    def rewind_to(self, step: int) -> None:
        """
        Leave the generator as plain generate does after `step` steps; later steps are undrawn. Not if
        others have drawn since (another thread, a streamer): their numbers would come again.
        """
        self._reach(step - 1)
        index = step - self._first
        if index < len(self._states) and torch.equal(self._after, _get_state(self.device)):
            _set_state(self.device, self._states[index])
            del self._noise[index:], self._gumbel[index:], self._states[index:]


def _get_state(device: torch.device) -> torch.Tensor:
    return torch.get_rng_state() if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)


def _set_state(device: torch.device, state: torch.Tensor) -> None:
    if device.type == "cpu":
        torch.set_rng_state(state)
    else:
        torch.get_device_module(device).set_rng_state(state, device)
