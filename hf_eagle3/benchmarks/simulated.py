"""Cost of a cycle for model shapes without their weights: random weights, simulated acceptance.

`python -m hf_eagle3.benchmarks.simulated --shape llama-8b --tree 59,8,10 --tau 6.13`

Target and draft have the shapes of real models and random weights, so no draft token would be accepted. Every pass,
the walk and the commit run unchanged; forward hooks overwrite the logits of both models so that cycles commit `--tau`
tokens on average. The text is meaningless, and tokens per second hold only for a draft that reaches that tau. What is
measured is the cost of a cycle in steps of plain generate, the two timed alternately in one process.

Does not know prompts, tasks or real acceptance: see `hf-eagle3 benchmark`.
"""

import argparse
import copy
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from statistics import median

import torch
from transformers import AutoModelForCausalLM, CompileConfig, LlamaConfig, PreTrainedModel

from ..compat.calls import compile_on_every_device
from ..draft_init import new_draft
from ..dtypes import torch_dtype
from ..generation.ops.transfer import best_device
from ..generation.stats import record
from ..modeling_eagle3 import Eagle3DraftModel
from ..tree_config import TreeConfig
from . import environment
from .timing import timed, without_eos


# Sizes of public models from their configurations, and the draft vocabulary size of their published drafts.
SHAPES: dict[str, tuple[dict, int]] = {
    "llama-8b": (
        {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
        },
        32000,
    ),
    "llama-1b": (
        {
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
        },
        32000,
    ),
    "tiny": (
        {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 8,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 512,
        },
        256,
    ),
}
COMPILED = ("none", "plain", "both")
DOMINANT = 1e4  # a logit above all others, within float16
# Tokens per cycle are drawn in advance; sequences of a batch read them at different offsets. Both are primes.
NUM_DRAWS, SEQUENCE_STRIDE = 8191, 1009


@dataclass(frozen=True)
class Cost:
    """
    Attributes:
        cycle: Time of a cycle of the loop, in steps of plain generate.
        verification, drafting: Time of a cycle's target and draft passes, in steps of plain generate.
        acceptance_length: Tokens per cycle; simulated.
        speedup: Of decoding, without prefill, at that acceptance length.
        plain_tokens_per_second, tokens_per_second: Of decoding, over the whole batch.
        tree: Nodes, levels and top-k.
        plain, drafted: How plain generate and speculation ran: "eager", or "compiled" with static shapes.
    """

    cycle: float
    verification: float
    drafting: float
    acceptance_length: float
    speedup: float
    plain_tokens_per_second: float
    tokens_per_second: float
    tree: str
    plain: str
    drafted: str


def random_pair(shape: str, device: torch.device, dtype: torch.dtype) -> tuple[PreTrainedModel, Eagle3DraftModel]:
    """Target and draft with the sizes of a shape of `SHAPES` and random weights."""
    sizes, draft_vocab_size = SHAPES[shape]
    config = LlamaConfig(**sizes, max_position_embeddings=8192, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    with torch.device(device):
        target = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
        counts = torch.arange(config.vocab_size, 0, -1)
        draft = new_draft(target, draft_vocab_size, counts, from_target=False)
    return target, draft.to(device, dtype).eval()


class SimulatedAcceptance:
    """
    Logits under which cycles commit `tau` tokens on average, by forward hooks on both models.

    The draft puts all its probability on one token. The target chooses that token at the depths to be accepted, and
    at deeper nodes a token that is never drafted. Tokens per cycle are one of the two integers around `tau`, drawn by
    sequence and position of the root.
    """

    def __init__(self, target: PreTrainedModel, draft: Eagle3DraftModel, tau: float, seed: int = 0):
        self.accepted, self.rejected = 0, 1  # draft token ids
        if draft.target_token_ids is not None:
            self.accepted, self.rejected = draft.target_token_ids[:2].tolist()
        draws = torch.rand(NUM_DRAWS, generator=torch.Generator().manual_seed(seed))
        self.counts = (int(tau) + (draws < tau - int(tau)).long()).to(target.device)
        self.is_active = True  # torch.compile guards on this flag, but not on the hooks of a module
        self.position_ids: torch.Tensor | None = None

    def note_positions(self, decoder: torch.nn.Module, inputs: tuple, arguments: dict) -> None:
        """Forward pre-hook of the target's decoder."""
        self.position_ids = arguments["position_ids"] if self.is_active else None

    def choose(self, head: torch.nn.Module, inputs: tuple, logits: torch.Tensor) -> None:
        """Forward hook of the target's output head: `logits` (A, n, V) of the last n positions."""
        if not self.is_active:
            return
        # A node's depth is its distance from the root, the first token of a verification pass.
        roots = self.position_ids[:, :1]
        depths = self.position_ids[:, -logits.shape[1] :] - roots
        sequences = torch.arange(roots.shape[0], device=roots.device)[:, None]
        counts = self.counts[(roots + SEQUENCE_STRIDE * sequences) % NUM_DRAWS]
        chosen = torch.where(depths < counts - 1, self.accepted, self.rejected)
        logits.scatter_(-1, chosen[..., None], DOMINANT)

    def propose(self, head: torch.nn.Module, inputs: tuple, logits: torch.Tensor) -> None:
        """Forward hook of the draft's head: `logits` (..., D)."""
        if self.is_active:
            logits[..., 0], logits[..., 1] = DOMINANT, -DOMINANT


@contextmanager
def simulated_acceptance(
    target: PreTrainedModel, draft: Eagle3DraftModel, tau: float, seed: int = 0
) -> Iterator[None]:
    """Inside, calls with `draft` commit `tau` tokens per cycle on average; the generated text is meaningless."""
    simulation = SimulatedAcceptance(target, draft, tau, seed)
    handles = [
        draft.lm_head.register_forward_hook(simulation.propose),
        target.get_decoder().register_forward_pre_hook(simulation.note_positions, with_kwargs=True),
        target.get_output_embeddings().register_forward_hook(simulation.choose),
    ]
    try:
        yield
    finally:
        simulation.is_active = False
        for handle in handles:
            handle.remove()


def measure(
    target: PreTrainedModel,
    draft: Eagle3DraftModel,
    tau: float,
    prompt_length: int = 512,
    new_tokens: int = 256,
    batch_size: int = 1,
    repetitions: int = 5,
    compiled: str = "none",
    compile_config: CompileConfig | None = None,
) -> Cost:
    """
    Measure a cycle of `draft`'s static tree relative to plain generate.

    Args:
        tau: Tokens per cycle to simulate, between 1 and the tree's levels + 1.
        new_tokens: Per call; prefill is measured by calls of one token and subtracted.
        repetitions: Timed rounds, each with and without the draft. One warm-up round comes first, or two with
            compilation: the first use of a draft wraps the attention, after which plain generate recompiles.
        compiled: What is compiled with static shapes: "none", "plain" generate, or "both".
        compile_config: Instead of transformers' default. Compilation also runs on a CPU.

    Raises:
        ValueError: a `tau` that the tree cannot reach, or too few tokens for two cycles.
    """
    tree = draft.tree_config
    _check(tree, tau, new_tokens)
    inputs = random_prompts(target, batch_size, prompt_length)
    plain_options, draft_options = compile_options(compiled, compile_config)
    seconds: dict[str, list[float]] = {"prompt": [], "plain": [], "prompt and draft": [], "drafted": []}
    with without_eos(target):

        def call(count: int, **options) -> float:
            return timed(target, inputs, 0, max_new_tokens=count, do_sample=False, **options)[1]

        def draft_call(count: int) -> float:
            with simulated_acceptance(target, draft, tau):
                return call(count, assistant_model=draft, **draft_options)

        for repetition in range(-(1 if compiled == "none" else 2), repetitions):
            round_ = {
                "prompt": call(1, **plain_options),
                "plain": call(new_tokens, **plain_options),
                "prompt and draft": draft_call(1),
            }
            with record() as stats:
                round_["drafted"] = draft_call(new_tokens)
            if repetition < 0:
                continue
            for name, value in round_.items():
                seconds[name].append(value)
            cycles = stats.num_iterations
        with record(synchronize=True) as stats:
            draft_call(new_tokens)
    passes = {name: stats.phase_seconds[name] / stats.num_iterations for name in ("verify_forward", "draft_forward")}
    step = (median(seconds["plain"]) - median(seconds["prompt"])) / (new_tokens - 1)
    cycle = (median(seconds["drafted"]) - median(seconds["prompt and draft"])) / cycles
    per_cycle = (new_tokens - 1) / cycles
    return Cost(
        cycle=cycle / step,
        verification=passes["verify_forward"] / step,
        drafting=passes["draft_forward"] / step,
        acceptance_length=stats.acceptance_length,
        speedup=per_cycle * step / cycle,
        plain_tokens_per_second=batch_size / step,
        tokens_per_second=batch_size * per_cycle / cycle,
        tree=f"{tree.num_draft_tokens}/{tree.tree_depth}/{tree.tree_top_k}",
        plain="compiled" if plain_options else "eager",
        drafted="compiled" if draft_options else "eager",
    )


def _check(tree: TreeConfig, tau: float, new_tokens: int) -> None:
    if not 1 <= tau <= tree.tree_depth + 1:
        raise ValueError(
            f"`tau` {tau} is not between 1 and {tree.tree_depth + 1}, the most that {tree.tree_depth} levels allow."
        )
    if new_tokens < 2 * (tree.tree_depth + 1):
        raise ValueError(f"`new_tokens` {new_tokens} is too few for two cycles of {tree.tree_depth} levels.")


def random_prompts(target: PreTrainedModel, batch_size: int, length: int) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask`, (batch_size, length) each, always the same."""
    ids = torch.randint(
        3, target.config.vocab_size, (batch_size, length), generator=torch.Generator().manual_seed(0)
    ).to(target.device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def compile_options(compiled: str, config: CompileConfig | None = None) -> tuple[dict, dict]:
    """
    Arguments of `generate` for a plain call and for a call with a draft.

    Raises:
        ValueError: `compiled` is none of `COMPILED`.
    """
    if compiled not in COMPILED:
        raise ValueError(f"`compiled` is {compiled!r}; choose from {', '.join(map(repr, COMPILED))}.")
    config = copy.copy(config) if config is not None else CompileConfig()
    compile_on_every_device(config)
    options = {"cache_implementation": "static", "compile_config": config}
    return (options if compiled != "none" else {}), (options if compiled == "both" else {})


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m hf_eagle3.benchmarks.simulated",
        description="cost of a cycle in steps of plain generate, with random weights and SIMULATED acceptance",
    )
    parser.add_argument("--shape", choices=SHAPES, default="llama-8b", help="(default: llama-8b)")
    parser.add_argument("--tree", default="59,8,10", help="NODES,LEVELS,TOP_K (default: 59,8,10)")
    parser.add_argument(
        "--tau",
        type=float,
        default=6.13,
        help="tokens per cycle to simulate (default: 6.13, the paper's Table 1 for 8B on MT-bench)",
    )
    parser.add_argument("--prompt-length", type=int, default=512, help="tokens (default: 512)")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="(default: 256)")
    parser.add_argument("--batch-size", type=int, default=1, help="(default: 1)")
    parser.add_argument("--repetitions", type=int, default=5, help="timed rounds (default: 5)")
    parser.add_argument(
        "--compile",
        choices=COMPILED,
        default="none",
        help="what runs under torch.compile with static shapes: plain generate, or both (default: none)",
    )
    parser.add_argument("--device", help="(default: the accelerator, else cpu)")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    given = parser.parse_args(arguments)
    device = torch.device(given.device or best_device())
    try:
        nodes, levels, top_k = map(int, given.tree.split(","))
    except ValueError:
        parser.error(f"--tree {given.tree!r} is not NODES,LEVELS,TOP_K (three integers).")
    target, draft = random_pair(given.shape, device, torch_dtype(given.dtype))
    try:
        cost = measure(
            target,
            draft.with_tree("static", num_draft_tokens=nodes, tree_depth=levels, tree_top_k=top_k),
            given.tau,
            given.prompt_length,
            given.max_new_tokens,
            given.batch_size,
            given.repetitions,
            given.compile,
        )
    except ValueError as error:
        parser.error(str(error))
    report = {
        "simulated_acceptance": True,
        "versions": environment.versions(),
        "hardware": environment.hardware(device),
        "settings": vars(given) | {"device": str(device)},
        "cost": asdict(cost),
    }
    sys.stdout.write(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
