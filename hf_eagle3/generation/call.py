"""A call of `generate`, built once when its prompt has been read; what it is made of does not change afterwards."""

from dataclasses import dataclass

from transformers import Cache, DynamicCache, GenerationConfig

from ..compat.calls import pad_token_id
from ..compat.processors import length_limit, pads_ended
from ..target.parts import adapts_rows
from ..target.target import Target
from .batch import Batch
from .draft.interface import DraftContext, Drafter
from .draft.ranking import Warp
from .ending import Pace
from .outputs import StepOutputs
from .prefill import Preparation, PromptPass, Request
from .sampling.chooser import TokenChooser
from .sampling.kinds import Kind
from .sampling.noise import StepNoise
from .sampling.stopping import StopChecker
from .settings import Settings
from .stats import PhaseTimer, SpeculationStats
from .streaming import Reporter
from .verify.chain_pass import ChainPass
from .verify.static_pass import StaticPass
from .verify.tree_pass import TreePass


@dataclass(frozen=True)
class Call:
    """
    The parts of a call, each explained where it is defined.

    Attributes:
        max_length: Tokens that a sequence can reach.
        is_stepwise: Processors or criteria must see each step once, with all sequences at one length.
        returns_cache: Whether the target's cache goes back to the caller.
    """

    config: GenerationConfig
    target: Target
    settings: Settings
    batch: Batch
    chooser: TokenChooser
    stopper: StopChecker
    noise: StepNoise | None
    pace: Pace
    drafter: Drafter
    passes: TreePass | ChainPass
    outputs: StepOutputs
    reporter: Reporter
    stats: SpeculationStats
    timer: PhaseTimer
    max_length: int
    is_stepwise: bool
    returns_cache: bool


def build_call(prepared: Preparation, prompt: PromptPass) -> Call:
    """The call for a prompt that has been read."""
    request, settings, target = prepared.request, prepared.settings, prepared.target
    config, criteria, stats = request.generation_config, request.stopping_criteria, prepared.stats
    max_length = _max_length(request)
    batch = _batch(request, settings, prompt, max_length)
    stopper = StopChecker(criteria, batch)
    noise = _noise(request, prepared, batch, prompt.outputs.logits.shape[-1])
    chooser = TokenChooser(request.logits_processor, noise, batch)
    is_stepwise = Kind.STEPWISE in (chooser.kind, stopper.kind)
    stats.start(batch.num_sequences)
    # Unknown processors may draw random numbers themselves: then noise is drawn at its step, not ahead of it.
    shares_noise = noise is not None and settings.sizes.shared_noise and not is_stepwise
    warp = Warp.of(request.logits_processor)
    context = DraftContext(target, batch, settings, noise if shares_noise else None, warp, prepared.timer, max_length)
    return Call(
        config=config,
        target=target,
        settings=settings,
        batch=batch,
        chooser=chooser,
        stopper=stopper,
        noise=noise,
        pace=_pace(prepared, batch, stopper, noise, is_stepwise, prompt.cache),
        drafter=prepared.kind.open(request.draft, context),
        outputs=StepOutputs(config, batch.num_sequences, target.config),
        reporter=Reporter(request.streamer, batch, stats, prepared.started),
        stats=stats,
        timer=prepared.timer,
        max_length=max_length,
        is_stepwise=is_stepwise,
        returns_cache=prepared.returns_cache,
        passes=_passes(prepared, batch, max_length),  # last: takes the cache over, which `close` gives back
    )


def _max_length(request: Request) -> int:
    """Plain generate takes one token even where a criterion is met by the prompt."""
    limit = min(length_limit(request.stopping_criteria), request.generation_config.max_length)
    return max(limit, request.input_ids.shape[1] + 1)


def _batch(request: Request, settings: Settings, prompt: PromptPass, max_length: int) -> Batch:
    return Batch(
        request.input_ids,
        max_length + settings.sizes.tree_depth + 2,
        pad_token_id(request.generation_config),
        prompt.length,
        request.model_kwargs.get("attention_mask"),
        pads_ended(request.stopping_criteria),
    )


def _noise(request: Request, prepared: Preparation, batch: Batch, vocab_size: int) -> StepNoise | None:
    if not request.generation_config.do_sample:
        return None
    return StepNoise((batch.num_sequences, vocab_size), batch.ids.device, prepared.kind.vocabulary(request.draft))


def _passes(prepared: Preparation, batch: Batch, max_length: int) -> TreePass | ChainPass:
    settings = prepared.settings
    given = (prepared.target, batch, prepared.request.model_kwargs, settings.room, max_length)
    if settings.static is not None:
        return StaticPass(*given, settings)
    return (ChainPass if settings.mode.kind == "chain" else TreePass)(*given)


def _pace(
    prepared: Preparation,
    batch: Batch,
    stopper: StopChecker,
    noise: StepNoise | None,
    is_stepwise: bool,
    cache: Cache,
) -> Pace:
    """
    Without an EOS criterion plain generate lets ended sequences run on with real tokens until all have ended. A
    cache of transformers' that must be handed back cannot lose sequences, nor unknown processors ones they look at.
    """
    is_chain = prepared.settings.mode.kind == "chain"
    unpadded = not batch.pads_ended and not stopper.only_length
    keeps_cache = is_chain and (prepared.returns_cache or type(cache) is not DynamicCache)
    keeps = unpadded or is_stepwise or keeps_cache or adapts_rows(prepared.request.model)
    keeps_ended = keeps and batch.num_sequences > 1
    return Pace(
        lockstep=is_chain or is_stepwise or keeps_ended,
        keeps_ended=keeps_ended,
        max_skew=None if noise is None else noise.max_skew,
    )
