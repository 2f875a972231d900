"""Runs a fuzz case: builds its models and prompts, calls `generate` plainly or with the draft, and keeps everything
that a call left. Does not compare."""

import random
import time
import warnings
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from unittest import mock

import torch
from architectures import tiny_model
from fuzz_cases import TREES, Case
from fuzz_parts import CUSTOM_CRITERIA, CUSTOM_PROCESSORS, STREAMERS, cache_argument, returned_cache
from models import VOCAB, left_padded, tiny_draft
from test_attention_implementations import stub_flash
from test_options import PROCESSORS, letters_tokenizer
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    DynamicCache,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteriaList,
)
from transformers.masking_utils import flash_attention_mask

import hf_eagle3


LENGTHS = {"short": (1, 3), "middle": (4, 13), "long": (14, 30)}
SAMPLING = {
    "greedy": {"do_sample": False},
    "temperature": {"temperature": 0.7},
    "top_k": {"top_k": 3},
    "top_p": {"top_p": 0.6},
    "min_p": {"min_p": 0.1},
    "typical_p": {"typical_p": 0.8},
    "top_h": {"top_h": 0.5},
    "eta_cutoff": {"eta_cutoff": 0.1},
    "many": {"temperature": 1.3, "top_k": 12, "top_p": 0.9, "min_p": 0.02},
}
OUTPUTS = ("scores", "logits", "hidden_states", "attentions")
FLASH = "fuzz_stub"  # a name of its own, so that nothing registered is replaced
NEW_TOKENS = 3  # between turns
PAD = 0


@dataclass
class Turn:
    """What one call of `generate` left, and what it was given: all that is compared."""

    error: Exception | None = None
    out: object = None
    sequences: torch.Tensor | None = None
    mask: torch.Tensor | None = None  # of the prompt's columns and the cached ones before them
    random_state: torch.Tensor | None = None
    streamer: object = None
    calls: list = field(default_factory=list)  # of the user's own processors and criteria
    ends: list[int] | None = None  # tokens of each row up to its end; plain calls only
    cache: list | None = None
    is_users_cache: bool = False
    warned: set[str] = field(default_factory=set)
    stats: hf_eagle3.SpeculationStats | None = None
    is_drafted: bool = False
    changed: list[str] = field(default_factory=list)  # arguments that are not what they were


@dataclass
class Scene:
    """A case's models and prompts."""

    case: Case
    target: PreTrainedModel
    draft: hf_eagle3.Eagle3DraftModel
    prompts: dict[str, torch.Tensor]
    scouted: torch.Tensor  # what plain generate writes without further options, (rows, tokens)


# -- building ---------------------------------------------------------------------------------------------------------


def built_target(case: Case) -> PreTrainedModel:
    """The case's target, anew: nothing is shared between cases."""
    attention = {"attn_implementation": "eager"} if case.attention == "eager" else {}
    target = tiny_model(case.arch, seed=case.seed, scale=case.scale, **attention)
    if case.attention == "flash":
        AttentionInterface.register(FLASH, stub_flash)
        AttentionMaskInterface.register(FLASH, flash_attention_mask)
        target.set_attn_implementation(FLASH)
    target.to(getattr(torch, case.dtype))
    if case.dtype == "float64" and hasattr(target, "set_experts_implementation"):  # transformers 5.10 on
        target.set_experts_implementation("eager")  # the others know no float64
    if case.state != "eval":
        target.train()
    if case.state == "checkpointing":
        is_new = hasattr(target, "activation_checkpointing_enable")  # transformers 5.23 on
        (target.activation_checkpointing_enable if is_new else target.gradient_checkpointing_enable)()
    return target


def prompts_of(case: Case) -> dict[str, torch.Tensor]:
    """Ragged prompts padded on the left, (rows, columns)."""
    draws = random.Random(case.seed)
    given = left_padded([draws.randint(*LENGTHS[case.length]) for _ in range(case.rows)], seed=case.seed)
    if case.mask == "ones":
        given["attention_mask"] = torch.ones_like(given["attention_mask"])
    if case.mask == "holes":
        holes = torch.rand(given["input_ids"].shape, generator=torch.Generator().manual_seed(case.seed)) < 0.25
        holes[:, -1] = False
        given["attention_mask"] = given["attention_mask"].masked_fill(holes, 0)
    return given


def built_draft(case: Case, target: PreTrainedModel, written: torch.Tensor) -> hf_eagle3.Eagle3DraftModel:
    """A random draft over the tokens that the target writes most, with the case's tree."""
    tokens = written.flatten().bincount(minlength=VOCAB)[:VOCAB].topk(case.draft_vocab).indices.sort().values
    draft = tiny_draft(target, seed=case.seed + 1, draft_vocab_size=case.draft_vocab, tokens=tokens).to(target.dtype)
    mode, num_nodes, depth, top_k = TREES[case.tree]
    sizes = {}
    if top_k is not None:
        top_k = min(top_k, case.draft_vocab)
        pool = top_k + (depth - 1) * top_k**2
        sizes = {"num_draft_tokens": min(num_nodes, pool), "tree_top_k": top_k}
    if depth is not None:
        sizes["tree_depth"] = depth
    return draft.with_tree(mode, shared_noise=case.shared_noise, draft_window=case.draft_window, **sizes)


def built(case: Case) -> Scene:
    """Models and prompts of `case`."""
    target, prompts = built_target(case), prompts_of(case)
    torch.manual_seed(case.seed)
    width = prompts["input_ids"].shape[1]
    written = target.generate(**prompts, max_new_tokens=12, **sampling_of(case))[:, width:]
    return Scene(case, target, built_draft(case, target, written), prompts, written)


# -- one call ---------------------------------------------------------------------------------------------------------


def sampling_of(case: Case) -> dict:
    chosen = SAMPLING[case.sampling]
    return chosen if case.sampling == "greedy" else {"do_sample": True, "top_k": 0, **chosen}


def options_of(scene: Scene) -> dict:
    """The options of every turn; the user's own functions are new ones."""
    case, written = scene.case, scene.scouted
    options = sampling_of(case) | PROCESSORS.get(case.processor, {}) | PROCESSORS.get(case.processor_2, {})
    options |= {"num_return_sequences": case.copies} if case.copies > 1 else {}
    if case.eos != "none":
        places = [int(written[row, column]) for row, column in ((0, 5), (-1, 3), (0, 9))]
        options["eos_token_id"] = places if case.eos == "list" else places[0]
        options["pad_token_id"] = places[0] if case.eos == "pad" else PAD
    if case.stop_strings != "none":
        tokenizer = letters_tokenizer()
        strings = [tokenizer.decode(written[0, 4:6]), tokenizer.decode(written[-1, 2:3])]
        options |= {"stop_strings": strings[: 1 if case.stop_strings == "one" else 2], "tokenizer": tokenizer}
    if case.custom_processor != "none":
        options["logits_processor"] = LogitsProcessorList([CUSTOM_PROCESSORS[case.custom_processor]()])
    if case.custom_criterion == "max_time":
        options["max_time"] = 1e6
    elif case.custom_criterion != "none":
        options["stopping_criteria"] = StoppingCriteriaList([CUSTOM_CRITERIA[case.custom_criterion]()])
    if case.streamer != "none":
        options["streamer"] = STREAMERS[case.streamer]()
    if case.outputs != "tokens" or case.turns != "d":
        options["return_dict_in_generate"] = True
    wanted = OUTPUTS if case.outputs == "all" else [name for name in OUTPUTS if name == case.outputs]
    options |= {f"output_{name}": True for name in wanted}
    options |= {"cache_implementation": case.implementation} if case.implementation != "none" else {}
    options |= {"prefill_chunk_size": case.prefill_chunk} if case.prefill_chunk is not None else {}
    return options


def inputs_of(scene: Scene) -> dict:
    """The first turn's prompt as the case gives it."""
    case, given = scene.case, {name: value.clone() for name, value in scene.prompts.items()}
    if case.inputs != "ids":
        with torch.no_grad():
            given["inputs_embeds"] = scene.target.get_input_embeddings()(given["input_ids"]).detach()
        given = given if case.inputs == "both" else {k: v for k, v in given.items() if k != "input_ids"}
    if case.mask == "none":
        del given["attention_mask"]
    return given


def next_inputs(scene: Scene, before: Turn) -> dict:
    """The second turn's: what was written, and some new tokens."""
    sequences, case = before.sequences, scene.case
    draws = torch.Generator().manual_seed(case.seed + 2)
    new = torch.randint(3, VOCAB, (len(sequences), NEW_TOKENS), generator=draws)
    ids = torch.cat((sequences, new), dim=1)
    if case.turn_mask == "ones":
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    width = before.mask.shape[1]
    live = torch.arange(sequences.shape[1] - width) < torch.tensor(before.ends)[:, None]
    return {"input_ids": ids, "attention_mask": torch.cat((before.mask, live.long(), torch.ones_like(new)), dim=1)}


@contextmanager
def noted_ends(turn: Turn):
    """Where plain generate's criteria end each row."""
    original, results = StoppingCriteriaList.__call__, []

    def call(self, input_ids, scores, **kwargs):
        done = original(self, input_ids, scores, **kwargs)
        results.append(done.tolist())
        return done

    with mock.patch.object(StoppingCriteriaList, "__call__", call):
        yield
    if results:
        ended = [[step + 1 for step, done in enumerate(results) if done[row]] for row in range(len(results[0]))]
        turn.ends = [steps[0] if steps else len(results) for steps in ended]


def ticking(seed: int):
    """A clock on which everything takes a random time: the tree mode "auto" then chooses everything, reproducibly."""
    draws, now = random.Random(seed), [0.0]

    def perf_counter() -> float:
        now[0] += draws.choice((1e-5, 1e-4, 1e-3)) * (1 + draws.random())
        return now[0]

    return perf_counter


def called(scene: Scene, inputs: dict, cache, is_drafted: bool) -> Turn:
    """One call of `generate`."""
    case, target = scene.case, scene.target
    turn, options = Turn(is_drafted=is_drafted), options_of(scene)
    given = inputs.get("input_ids", inputs.get("inputs_embeds"))
    options[case.limit] = case.tokens + (given.shape[1] if case.limit == "max_length" else 0)
    if cache is not None:
        options[cache_argument(target)] = cache
    if is_drafted:
        options["assistant_model"] = scene.draft
    copies = {name: value.clone() for name, value in inputs.items()}
    torch.manual_seed(case.seed)
    with ExitStack() as stack:
        caught = stack.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("always")
        turn.stats = stack.enter_context(hf_eagle3.record())
        if not is_drafted:
            stack.enter_context(noted_ends(turn))
        elif case.mode == "auto":
            stack.enter_context(mock.patch.object(time, "perf_counter", ticking(case.seed)))
        try:
            turn.out = target.generate(**inputs, **options)
        except Exception as error:
            turn.error = error
    turn.warned = {f"{entry.category.__name__}: {str(entry.message)[:120]}" for entry in caught}
    turn.random_state = torch.get_rng_state()
    turn.streamer = options.get("streamer")
    for name in ("logits_processor", "stopping_criteria"):
        turn.calls += [part.calls for part in options.get(name, ())]
    turn.changed = [name for name, value in inputs.items() if not torch.equal(value, copies[name])]
    if turn.error is None:
        _note_result(turn, scene, inputs, cache)
    elif cache is not None:
        turn.cache = contents(cache)
    return turn


def _note_result(turn: Turn, scene: Scene, inputs: dict, cache) -> None:
    turn.sequences = turn.out if isinstance(turn.out, torch.Tensor) else turn.out.sequences
    mask = inputs.get("attention_mask", scene.prompts["attention_mask"])
    turn.mask = mask.repeat_interleave(len(turn.sequences) // len(mask), dim=0)
    returned = returned_cache(turn.out)
    turn.is_users_cache = cache is not None and (returned is None or returned is cache)
    kept = returned if returned is not None else cache
    turn.cache = None if kept is None else contents(kept)


def contents(cache) -> list[tuple[str, dict]]:
    """(type, what it holds) of a cache and of each of its layers, copied."""
    if not hasattr(cache, "__dict__"):
        return []  # a model's own tuple or list
    return [(type(part).__name__, _held(part)) for part in (cache, *vars(cache).get("layers", ()))]


def _held(part) -> dict:
    found = {}
    for name, value in vars(part).items():
        entries = {name: value}
        if isinstance(value, dict):
            entries = {f"{name}[{key}]": entry for key, entry in value.items()}
        elif isinstance(value, (list, tuple)):
            entries = {f"{name}[{index}]": entry for index, entry in enumerate(value)}
        for key, entry in entries.items():
            if isinstance(entry, torch.Tensor):
                found[key] = entry.clone()
            elif isinstance(entry, (bool, int)) and not key.startswith("_"):
                found[key] = entry
    return found


# -- a case -----------------------------------------------------------------------------------------------------------


def played(scene: Scene, pattern: str) -> list[Turn]:
    """The turns of a case, p plainly and d with the draft, up to the first error."""
    case, cache = scene.case, None
    if case.cache != "none":
        cache = DynamicCache(config=scene.target.config) if case.cache == "user" else DynamicCache()
    inputs, turns = inputs_of(scene), []
    for kind in pattern:
        turns.append(called(scene, inputs, cache, is_drafted=kind == "d"))
        if turns[-1].error is not None or len(turns) == len(pattern):
            return turns
        cache = cache if cache is not None else returned_cache(turns[-1].out)
        if turns[-1].ends is None:  # every row's end is known from plain generate
            turns[-1].ends = scene.ends
        else:
            scene.ends = turns[-1].ends
        inputs = next_inputs(scene, turns[-1])
    return turns
