"""Random cases for the differential test of `generate` with and without a draft: what a case is, and how one is drawn.

    seed -> Case -> fuzz_run: the same calls plainly and with a draft -> fuzz_compare: everything that came back

A case is a pure function of its seed; `python tests/fuzz.py --help` runs and shrinks them. This file does not know
models or `generate`.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace


# Drawn in half of all cases: every kind of attention, position and state. The others are drawn from what the installed
# transformers has.
FAMILIES = {
    "attention": ("llama", "qwen3", "gpt2", "mixtral", "deepseek_v3"),
    "positions of its own": ("mpt", "bloom", "falcon[alibi]", "opt"),
    "windows": ("gemma3_text", "mistral", "gpt_oss", "llama4_text", "gemma3n_text"),
    "states": ("qwen3_next", "lfm2", "falcon_h1", "bamba", "jamba", "mamba", "mamba2", "minimax"),
    "compressed": ("deepseek_v4", "minimax_m3_vl_text", "zaya"),
}
CORE = tuple(name for names in FAMILIES.values() for name in names)
NO_DROPOUT = ("llama", "qwen3", "mistral", "gemma3_text")  # in train() they are what they are in eval()
TAKES_FLASH = ("llama", "qwen3", "mistral", "gemma3_text")

# mode, num_draft_tokens, tree_depth, tree_top_k; `None`: the mode's default.
TREES = {
    "static 40": ("static", 40, 4, 6),
    "auto": ("auto", None, None, None),
    "auto 12": ("auto", 12, 4, 3),
    "static 1": ("static", 1, 8, 2),
    "static 3": ("static", 3, 1, 3),
    "static 12": ("static", 12, 3, 3),
    "chain 1": ("chain", None, 1, None),
    "chain 3": ("chain", None, 3, None),
    "chain 8": ("chain", None, 8, None),
    "host_chain 4": ("host_chain", None, 4, None),
}
PROCESSORS = (
    "repetition_penalty",
    "no_repeat_ngram_size",
    "encoder_repetition_penalty",
    "encoder_no_repeat_ngram_size",
    "bad_words_ids",
    "sequence_bias",
    "min_length",
    "min_new_tokens",
    "prefix_allowed_tokens_fn",
    "forced_eos_token_id",
    "exponential_decay_length_penalty",
    "suppress_tokens",
    "begin_suppress_tokens",
    "remove_invalid_values",
    "renormalize_logits",
    "guidance_scale",
    "watermark",
    "synthid",
)
SERIES = 40000  # one in which 2,000 seeds have every pair of values
# What each field of a `Case` may be, the default first.
VALUES: dict[str, tuple] = {
    "arch": CORE,
    "attention": ("default", "eager", "flash"),
    "scale": (0.15, 0.4),
    "dtype": ("float32", "float64", "bfloat16"),
    "state": ("eval", "train", "checkpointing"),
    "rows": (1, 2, 3, 4, 5),
    "length": ("middle", "short", "long"),
    "copies": (1, 2, 3),
    "mask": ("true", "none", "ones", "holes"),
    "inputs": ("ids", "embeds", "both"),
    "tree": tuple(TREES),
    "draft_vocab": (6, 1, 2, 24),
    "shared_noise": (True, False),
    "sampling": ("greedy", "temperature", "top_k", "top_p", "min_p", "typical_p", "top_h", "eta_cutoff", "many"),
    "processor": ("none", *PROCESSORS),
    "processor_2": ("none", *PROCESSORS),
    "custom_processor": (
        "none", "row_wise", "undeclared", "in_place", "in_place_row_wise", "stateful", "noisy", "mixes", "raises",
    ),
    "custom_criterion": (
        "none", "row_wise", "last_token", "length", "stateful", "scores", "bool", "max_time", "raises",
    ),
    "eos": ("none", "one", "list", "pad"),
    "stop_strings": ("none", "one", "two"),
    "streamer": ("none", "plain", "cycles"),
    "outputs": ("tokens", "dict", "scores", "logits", "hidden_states", "attentions", "all"),
    "cache": ("none", "user", "user without windows"),
    "turns": ("d", "dd", "dp", "pd"),
    "turn_mask": ("true", "ones"),
    "implementation": ("none", "dynamic", "static"),
    "prefill_chunk": (None, 3),
    "limit": ("max_new_tokens", "max_length"),
    "tokens": (14, 1, 2, 3, 7, 24),
    "draft_window": (None, 5, 12),
}  # fmt: skip
LATER = ("draft_window",)  # drawn last, so that what a seed had before they came stays


@dataclass(frozen=True)
class Case:
    """
    One comparison.

    Args:
        seed: Of weights, prompts and noise.
        arch: A name of `architectures.architecture_names()`.
        attention: "flash" is a stub registered under a name of its own that takes no 4-D masks.
        scale: Standard deviation of the target's weights.
        dtype: Of target and draft. In bfloat16 passes of several tokens round differently: only types are compared.
        rows, length: How many prompts, and how long: 1 to 3, 4 to 13 or 14 to 30 tokens, ragged.
        copies: `num_return_sequences`.
        mask: "holes" are zeros inside the prompt; "ones" shows the padding.
        tree: A name of `TREES`.
        draft_vocab: Size of the draft vocabulary, the tokens that the target writes most.
        processor, processor_2: Options of `generate` that become logits processors.
        turns: Calls over one cache, d with the draft and p without it; compared with as many plain ones.
        turn_mask: What the second turn is given: where the first one's rows have tokens, or ones.
        tokens, limit: How many tokens to write, and how that is said.
    """

    seed: int = 0
    arch: str = "llama"
    attention: str = "default"
    scale: float = 0.15
    dtype: str = "float32"
    state: str = "eval"
    rows: int = 1
    length: str = "middle"
    copies: int = 1
    mask: str = "true"
    inputs: str = "ids"
    tree: str = "static 40"
    draft_vocab: int = 6
    shared_noise: bool = True
    draft_window: int | None = None
    sampling: str = "greedy"
    processor: str = "none"
    processor_2: str = "none"
    custom_processor: str = "none"
    custom_criterion: str = "none"
    eos: str = "none"
    stop_strings: str = "none"
    streamer: str = "none"
    outputs: str = "tokens"
    cache: str = "none"
    turns: str = "d"
    turn_mask: str = "true"
    implementation: str = "none"
    prefill_chunk: int | None = None
    limit: str = "max_new_tokens"
    tokens: int = 14

    @property
    def mode(self) -> str:
        """The tree mode."""
        return TREES[self.tree][0]

    @property
    def only_types(self) -> bool:
        """Whether another text may come out: other rounding, or transformers' own speculative sampling."""
        return self.dtype == "bfloat16" or (self.mode == "host_chain" and self.sampling != "greedy")

    def __str__(self) -> str:
        changed = [f"{name}={value!s}" for name, value in self.changes().items()]
        return " ".join(f"'{word}'" if set(" [") & set(word) else word for word in (str(self.seed), *changed))

    def changes(self) -> dict:
        """Fields that are not at their defaults, without the seed."""
        found = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "seed"}
        return {name: value for name, value in found.items() if value != getattr(DEFAULT, name)}


DEFAULT = Case()


def compatible(case: Case) -> Case:
    """
    The same case without what has no meaning beside its other options, or what plain generate only refuses. Fields
    that stand in front of each other in `VALUES` win.
    """
    changes = {}
    if case.arch not in NO_DROPOUT:
        changes["state"] = "eval"
    if case.attention == "flash" and case.arch not in TAKES_FLASH:
        changes["attention"] = "default"
    if case.mode == "host_chain":  # one row; criteria are asked once per cycle, so that rows may run past their end
        changes |= {"rows": 1, "copies": 1, "custom_criterion": "none", "stop_strings": "none"}
        if case.custom_processor in ("stateful", "noisy", "raises") or case.processor in ("synthid", "guidance_scale"):
            changes |= {"custom_processor": "none", "processor": "none"}
        if case.processor_2 in ("synthid", "guidance_scale"):
            changes["processor_2"] = "none"
    elif case.sampling == "greedy":
        changes["copies"] = 1
    if case.sampling == "greedy":
        changes["shared_noise"] = True
    if case.rows * changes.get("copies", case.copies) > 6:
        changes["copies"] = 1
    if case.processor_2 == case.processor or case.processor == "none":
        changes["processor_2"] = "none"
    case = replace(case, **changes)
    changes = {}
    if case.only_types:  # rows that end elsewhere would make other shapes
        changes = dict.fromkeys(("eos", "custom_criterion", "stop_strings", "streamer"), "none")
        changes |= dict.fromkeys(("custom_processor", "processor", "processor_2"), "none") | {"turns": "d"}
    if case.inputs != "ids":  # a second turn's would be ids; embeddings are not read in chunks
        changes |= {"turns": "d", "prefill_chunk": None}
    if case.arch == "minimax":  # plain generate makes its cache too late for chunks, which work with a draft
        changes["prefill_chunk"] = None
    if case.implementation == "static":  # no room for a second turn
        changes["turns"] = "d"
    if case.cache == "user without windows" and case.arch in FAMILIES["states"] + FAMILIES["compressed"]:
        changes["cache"] = "user"
    if case.attention == "flash" and case.implementation == "static":  # the stub counts from a cache's last slot
        changes["implementation"] = "none"
    if case.inputs == "embeds" and case.mask == "none":
        changes["mask"] = "ones"
    if changes.get("turns", case.turns) == "d":
        changes["turn_mask"] = "true"
    elif "raises" in (case.custom_processor, case.custom_criterion):
        changes |= {"custom_processor": "none", "custom_criterion": "none"}
    if case.cache != "none" and case.implementation != "none":  # plain generate refuses both together
        changes["implementation"] = "none"
    return replace(case, **changes)


def drawn(seed: int, other_architectures: tuple[str, ...] = ()) -> Case:
    """
    The case of `seed`: odd ones have an architecture of `CORE`, even ones all others in turn. What is drawn does not
    depend on how many of those there are.
    """
    draws = random.Random(SERIES + seed)
    share = (0.1, 0.25, 0.4)[int(draws.random() * 3)]  # of fields that are not at their defaults

    def choice(values: tuple):
        return values[int(draws.random() * len(values))]

    chosen, often = {}, ("tree", "rows", "eos", "copies")  # all values of these equally often
    for name, values in VALUES.items():
        if name in LATER:
            continue
        chosen[name] = choice(values[1:]) if draws.random() < share else values[0]
        evenly = choice(values)
        if name in often or (name == "sampling" and draws.random() < 0.4):
            chosen[name] = evenly
    chosen["arch"] = choice(CORE)
    if other_architectures and seed % 2 == 0:
        chosen["arch"] = other_architectures[seed // 2 % len(other_architectures)]
    if chosen["attention"] == "flash" and draws.random() < 0.5:
        chosen["arch"] = choice(TAKES_FLASH)
    elif chosen["state"] != "eval" and draws.random() < 0.3:
        chosen["arch"] = choice(NO_DROPOUT)
    for name in LATER:
        chosen[name] = choice(VALUES[name])
    return compatible(Case(seed, **chosen))


def simpler(case: Case) -> Iterator[Case]:
    """Cases with one field fewer away from its default, then with smaller numbers."""
    for name in case.changes():
        yield replace(case, **{name: getattr(DEFAULT, name)})
    if case.arch in CORE:
        yield replace(case, arch=next(names for names in FAMILIES.values() if case.arch in names)[0])
    if case.outputs == "all":
        for name in VALUES["outputs"][1:-1]:
            yield replace(case, outputs=name)
    for rows in range(1, case.rows):
        yield replace(case, rows=rows)
    for tokens in sorted(VALUES["tokens"]):
        if tokens < case.tokens:
            yield replace(case, tokens=tokens)
    for tree in ("static 1", "static 3", "chain 1", "chain 3"):
        if case.tree not in (tree, "static 40"):
            yield replace(case, tree=tree)


def shrunk(case: Case, fails, most_tries: int = 150) -> Case:
    """The simplest case found for which `fails(case)` is still true."""
    tries, is_smaller = 0, True
    while is_smaller and tries < most_tries:
        is_smaller = False
        for candidate in simpler(case):
            tries += 1
            if candidate == compatible(candidate) and candidate != case and fails(candidate):
                case, is_smaller = candidate, True
                break
    return case


def parsed(seed: int, words: list[str], other_architectures: tuple[str, ...] = ()) -> Case:
    """
    The case of `seed`; with `words` ("field=value") the default one with those fields.

    Raises:
        ValueError: a field or value that there is not.
    """
    if not words:
        return drawn(seed, other_architectures)
    changes = {}
    for word in words:
        name, _, text = word.partition("=")
        known = {str(value): value for value in VALUES.get(name, ())}
        if name == "arch":
            known |= {arch: arch for arch in other_architectures}
        if text not in known:
            raise ValueError(f"`{word}`: give one of {', '.join(known) or ', '.join(VALUES)}.")
        changes[name] = known[text]
    return Case(seed, **changes)
