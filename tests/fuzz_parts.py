"""What users write themselves and give to `generate`, for the fuzz test: logits processors, criteria, streamers. Each
keeps what it was shown, so that two runs can be compared."""

import inspect

import torch
from transformers import LogitsProcessor, PreTrainedModel, StoppingCriteria
from transformers.generation import GenerateDecoderOnlyOutput
from transformers.generation.streamers import BaseStreamer

import hf_eagle3


class UserError(Exception):
    """Raised by a user's own function."""


# -- the cache's name: `past_key_values`, of Mamba models `cache_params`; `cache` from transformers 5.24 on -----------


def cache_argument(model: PreTrainedModel) -> str:
    """The name under which `generate` takes a cache for `model`."""
    names = inspect.signature(model.forward).parameters
    return next((name for name in ("cache", "past_key_values", "cache_params") if name in names), "past_key_values")


def returned_cache(out):
    """The cache in what `generate` returned, or `None`."""
    if isinstance(out, torch.Tensor):
        return None
    names = inspect.signature(GenerateDecoderOnlyOutput).parameters
    return out.get("cache" if "cache" in names else "past_key_values")


# -- logits processors ------------------------------------------------------------------------------------------------


class Logging:
    """Keeps the prefixes that it was asked about."""

    def __init__(self):
        self.calls = []

    def note(self, input_ids: torch.Tensor, *rest) -> int:
        self.calls.append((input_ids.dtype, input_ids.tolist(), *rest))
        return len(self.calls)


class Undeclared(Logging, LogitsProcessor):
    """Prefers even or odd tokens by the parity of the length."""

    def __call__(self, input_ids, scores):
        self.note(input_ids)
        scores = scores.clone()
        scores[:, input_ids.shape[1] % 2 :: 2] += 2.0
        return scores


@hf_eagle3.declare_row_wise
class RowWise(Undeclared):
    """The same, declared; rows may be asked about one by one."""

    def note(self, input_ids, *rest):
        return 0


class InPlace(Undeclared):
    """Changes the scores that it is given."""

    def __call__(self, input_ids, scores):
        self.note(input_ids)
        scores[:, input_ids.shape[1] % 2 :: 2] += 2.0
        return scores


@hf_eagle3.declare_row_wise
class InPlaceRowWise(InPlace):
    """The same, declared."""

    def note(self, input_ids, *rest):
        return 0


class Stateful(Logging, LogitsProcessor):
    """Right only if called once per step, in order, with all rows."""

    def __call__(self, input_ids, scores):
        if self.note(input_ids) % 3 == 0:
            scores = scores.roll(1, dims=-1)
        return scores + 0.1 * input_ids[:, -1:].sum()


class Noisy(Logging, LogitsProcessor):
    """Draws random numbers between the steps' own."""

    def __call__(self, input_ids, scores):
        self.note(input_ids)
        return scores + torch.rand_like(scores)


class Mixes(Logging, LogitsProcessor):
    """Looks at the tokens of all rows."""

    def __call__(self, input_ids, scores):
        self.note(input_ids)
        scores = scores.clone()
        scores[:, input_ids[:, -1:].flatten()] -= 1.0
        return scores


class Raises(Logging, LogitsProcessor):
    """Fails at its fourth call."""

    def __call__(self, input_ids, scores):
        if self.note(input_ids) == 4:
            raise UserError
        return scores


CUSTOM_PROCESSORS = {
    "row_wise": RowWise,
    "undeclared": Undeclared,
    "in_place": InPlace,
    "in_place_row_wise": InPlaceRowWise,
    "stateful": Stateful,
    "noisy": Noisy,
    "mixes": Mixes,
    "raises": Raises,
}


# -- stopping criteria ------------------------------------------------------------------------------------------------


class LastToken(Logging, StoppingCriteria):
    """Ends a row at tokens 3, 10 and 17."""

    def __call__(self, input_ids, scores, **kwargs):
        self.note(input_ids, None if scores is None else len(scores))
        return input_ids[:, -1] % 7 == 3


@hf_eagle3.declare_row_wise
class RowWiseLastToken(LastToken):
    """The same, declared."""

    def note(self, input_ids, *rest):
        return 0


class AtLength(Logging, StoppingCriteria):
    """Row r ends 4 + 3 r tokens after the first call."""

    def __call__(self, input_ids, scores, **kwargs):
        self.note(input_ids, None if scores is None else len(scores))
        new = input_ids.shape[1] - len(self.calls[0][1][0])
        return torch.tensor([new >= 4 + 3 * row for row in range(input_ids.shape[0])])


class AfterCalls(Logging, StoppingCriteria):
    """Ends everything at its sixth call."""

    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((input_ids.shape[0],), self.note(input_ids) >= 6)


class ByScores(Logging, StoppingCriteria):
    """Ends a row where the best score of the newest step is an even token's, from the third on."""

    def __call__(self, input_ids, scores, **kwargs):
        count = self.note(input_ids, None if scores is None else len(scores))
        if scores is None or count < 3:
            return torch.zeros(input_ids.shape[0], dtype=torch.bool)
        return scores[-1].argmax(dim=-1) % 2 == 0


class Bool(Logging, StoppingCriteria):
    """Returns a plain bool, as criteria of older transformers do."""

    def __call__(self, input_ids, scores, **kwargs):
        return self.note(input_ids) >= 7


class CriterionRaises(Logging, StoppingCriteria):
    """Fails at its fourth call."""

    def __call__(self, input_ids, scores, **kwargs):
        if self.note(input_ids) == 4:
            raise UserError
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


CUSTOM_CRITERIA = {
    "row_wise": RowWiseLastToken,
    "last_token": LastToken,
    "length": AtLength,
    "stateful": AfterCalls,
    "scores": ByScores,
    "bool": Bool,
    "raises": CriterionRaises,
}


# -- streamers --------------------------------------------------------------------------------------------------------


class Streamed:
    """What a streamer was given, in order: dtype, shape and values of each `put`, and every `end`."""

    def __init__(self):
        self.events = []

    def put(self, value):
        self.events.append((str(value.dtype), tuple(value.shape), value.tolist()))

    def end(self):
        self.events.append("end")


class PlainStreamer(Streamed, BaseStreamer):
    """A streamer of transformers."""


class WatchingStreamer(Streamed, hf_eagle3.CycleStreamer):
    """One that sees the cycles as well."""

    def __init__(self):
        super().__init__()
        self.records = []

    def on_cycle(self, record):
        self.records.append(record)


STREAMERS = {"plain": PlainStreamer, "cycles": WatchingStreamer}
