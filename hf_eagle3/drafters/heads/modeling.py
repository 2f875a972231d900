"""`MedusaDraftModel` and `HydraDraftModel`: heads beside the target's own, each for one level of the tree.

    input of the target's head at "cat"   head 1: on, down   head 2: the, a       of Medusa, whatever stands before
                                          head 1: on, down   head 2 (on): the     of Hydra

Do not know trees or training. The newest token, the root, is known: heads predict what follows it.

Shape letters: A sequences, n nodes, H hidden, V vocabulary, W inputs of a head.
"""

import re
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from ... import checkpoint
from ...draft_model import DraftModel
from ...tree_config import TreeConfig
from .configuration import HydraDraftConfig, MedusaDraftConfig


class ResidualBlock(nn.Module):
    """x + SiLU(linear(x)); where `num_tokens` embedding rows stand behind the state, both parts map to H."""

    def __init__(self, size: int, num_tokens: int = 0, bias: bool = True):
        super().__init__()
        width = size * (1 + num_tokens)
        self.linear = nn.Linear(width, size, bias=bias)
        self.res_connection = nn.Linear(width, size) if num_tokens else nn.Identity()

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(..., H) from (..., W)."""
        return self.res_connection(states) + F.silu(self.linear(states))


class HeadsDraftModel(DraftModel):
    """
    Heads over the input of the target's head; see [`MedusaDraftModel`], [`HydraDraftModel`].

    Attributes:
        reads_tokens: Whether a head reads the tokens between the target's last state and the one that it predicts.
    """

    main_input_name = "inputs"
    reads_tokens = False
    files: tuple[str, ...] = ()  # of the original code
    embed_tokens = lm_head = target_token_ids = None  # what other drafts may have

    def __init__(self, config: MedusaDraftConfig):
        super().__init__(config)
        for name in ("hidden_size", "vocab_size"):
            if vars(config)[name] is None:
                raise ValueError(f"`{name}` is missing; pass the target's, or use `from_target`.")

    @staticmethod
    def _default_tree(config: MedusaDraftConfig) -> TreeConfig:
        return TreeConfig(tree_depth=config.num_heads)

    def get_input_embeddings(self) -> None:
        """`None`: heads have no embedding; the target's rows are used."""
        return

    @property
    def heads(self) -> nn.ModuleList:
        """One module per head."""
        raise NotImplementedError

    def logits(self, head: int, inputs: torch.Tensor) -> torch.Tensor:
        """
        Of the tokens of level `head` + 1, (..., V).

        Args:
            inputs: The target's last state (..., H); where the heads read tokens, with the embedding rows of the root
                and of `head` tokens below it behind, (..., H * (head + 2)).
        """
        raise NotImplementedError

    def forward(
        self, inputs: torch.Tensor | None = None, head: int = 0, procedure: Callable | None = None, **procedure_inputs
    ) -> torch.Tensor:
        """
        Logits of one head, see `logits`; with `procedure` what `procedure(self, **procedure_inputs)` returns, so that
        wrappers of a forward (DDP, autocast) see one forward of a training step.
        """
        if procedure is not None:
            return procedure(self, **procedure_inputs)
        if procedure_inputs:
            raise TypeError(f"Unknown arguments {', '.join(map(repr, procedure_inputs))}.")
        return self.logits(head, inputs)

    @classmethod
    def _read(cls, source: str, config: MedusaDraftConfig, overrides: dict, hub: dict) -> tuple:
        tensors = checkpoint.load_tensors(source, rename=cls._native_name, first=cls.files, **hub)
        fields = {name: value for name, value in cls._sizes(tensors).items() if name not in overrides}
        return config.changed(fields | overrides), tensors

    @staticmethod
    def _native_name(name: str) -> str:
        return name

    @staticmethod
    def _sizes(tensors: dict[str, torch.Tensor]) -> dict:
        """Fields of the configuration that the tensors show."""
        raise NotImplementedError


class MedusaDraftModel(HeadsDraftModel):
    """
    Medusa: heads that are independent of one another. `from_pretrained` reads FasterDecoding's `medusa_lm_head.pt` and
    vLLM's layout.

    Use it as `target.generate(**inputs, assistant_model=draft)`; the tree of its paper is
    `draft.with_tree("sparse", sparse_tree="medusa")`.

    Args:
        config: A [`MedusaDraftConfig`].

    Source: Medusa (arXiv 2401.10774), section 2.1.1.
    """

    config_class = MedusaDraftConfig
    files = ("medusa_lm_head.safetensors", "medusa_lm_head.pt")

    def __init__(self, config: MedusaDraftConfig):
        super().__init__(config)
        size = config.hidden_size
        self.medusa_head = nn.ModuleList(
            nn.Sequential(
                *(ResidualBlock(size, bias=config.fc_bias) for _ in range(config.num_layers)),
                nn.Linear(size, config.vocab_size, bias=False),
            )
            for _ in range(config.num_heads)
        )
        self.post_init()

    @property
    def heads(self) -> nn.ModuleList:
        """As in [`HeadsDraftModel`]."""
        return self.medusa_head

    def logits(self, head: int, inputs: torch.Tensor) -> torch.Tensor:
        """As in [`HeadsDraftModel`]."""
        return self.medusa_head[head](inputs)

    @torch.no_grad()
    def start_from(self, head_rows: torch.Tensor) -> None:
        """Begin as the target's own head (V, H): blocks add nothing. As in the original code."""
        for head in self.medusa_head:
            *blocks, last = head
            for block in blocks:
                nn.init.zeros_(block.linear.weight)
            last.weight.copy_(head_rows)

    @staticmethod
    def _native_name(name: str) -> str:
        name = re.sub(r"^medusa_heads?\.", "", name)
        if found := re.fullmatch(r"blocks\.(\d+)\.layers\.(\d+)\.(weight|bias)", name):
            return f"medusa_head.{found[1]}.{found[2]}.linear.{found[3]}"
        if found := re.fullmatch(r"lm_heads\.(\d+)\.weight", name):
            return f"medusa_head.{found[1]}.last.weight"  # behind its blocks, whose number `_read` knows
        return f"medusa_head.{name}" if re.match(r"\d+\.\d+\.", name) else name

    @classmethod
    def _read(cls, source: str, config: MedusaDraftConfig, overrides: dict, hub: dict) -> tuple:
        config, tensors = super()._read(source, config, overrides, hub)
        place = f".{config.num_layers}.weight"
        return config, {re.sub(r"(?<=\d)\.last\.weight$", place, name): tensor for name, tensor in tensors.items()}

    @staticmethod
    def _sizes(tensors: dict[str, torch.Tensor]) -> dict:
        found = [re.fullmatch(r"medusa_head\.(\d{1,4})\.(\d{1,4})\.linear\.(weight|bias)", name) for name in tensors]
        blocks = [(int(match[1]), int(match[2])) for match in found if match]
        lasts = [re.fullmatch(r"medusa_head\.(\d{1,4})\.(\d{1,4}|last)\.weight", name) for name in tensors]
        heads = [int(match[1]) for match in lasts if match]
        shapes = [tensors[match[0]].shape for match in lasts if match and tensors[match[0]].dim() == 2]
        if not heads or not shapes:
            return {}
        return {
            "num_heads": 1 + max(heads),
            "num_layers": 1 + max((block for _, block in blocks), default=-1),
            "fc_bias": not blocks or any(match[3] == "bias" for match in found if match),
            "vocab_size": shapes[0][0],
            "hidden_size": shapes[0][1],
        }


class HydraDraftModel(HeadsDraftModel):
    """
    Hydra: each head reads the embedding rows of the root and of the tokens that the heads before it proposed.
    `from_pretrained` reads the `hydra_lm_head.pt` of ankner's checkpoints with MLP heads.

    Args:
        config: A [`HydraDraftConfig`].

    Source: Hydra (arXiv 2402.05109), section 3.
    """

    config_class = HydraDraftConfig
    reads_tokens = True
    files = ("hydra_lm_head.pt",)

    def __init__(self, config: HydraDraftConfig):
        super().__init__(config)
        size = config.hidden_size
        self.hydra_mlp = nn.ModuleList(
            nn.Sequential(
                ResidualBlock(size, number + 1), *(ResidualBlock(size) for _ in range(config.num_layers - 1))
            )
            for number in range(config.num_heads)
        )
        self.hydra_lm_head = nn.ModuleList(nn.Linear(size, config.vocab_size) for _ in range(config.num_heads))
        self.post_init()

    @property
    def heads(self) -> nn.ModuleList:
        """As in [`HeadsDraftModel`]."""
        return self.hydra_mlp

    def logits(self, head: int, inputs: torch.Tensor) -> torch.Tensor:
        """As in [`HeadsDraftModel`]."""
        return self.hydra_lm_head[head](self.hydra_mlp[head](inputs))

    @torch.no_grad()
    def start_from(self, head_rows: torch.Tensor) -> None:
        """
        Begin as the target's own head (V, H): blocks pass the target's state on. The original code leaves what maps
        W inputs to H random.
        """
        size = self.config.hidden_size
        for blocks, last in zip(self.hydra_mlp, self.hydra_lm_head, strict=True):
            for block in blocks:
                nn.init.zeros_(block.linear.weight)
            nn.init.normal_(blocks[0].res_connection.weight, std=blocks[0].res_connection.in_features ** -0.5 / 4)
            blocks[0].res_connection.weight[:, :size] += torch.eye(size)
            last.weight.copy_(head_rows)

    @staticmethod
    def _sizes(tensors: dict[str, torch.Tensor]) -> dict:
        heads = [match for name in tensors if (match := re.fullmatch(r"hydra_lm_head\.(\d{1,4})\.weight", name))]
        blocks = [match for name in tensors if (match := re.match(r"hydra_mlp\.\d{1,4}\.(\d{1,4})\.linear", name))]
        shapes = [tensors[match[0]].shape for match in heads if tensors[match[0]].dim() == 2]
        if not shapes or not blocks:
            return {}
        return {
            "num_heads": 1 + max(int(match[1]) for match in heads),
            "num_layers": 1 + max(int(match[1]) for match in blocks),
            "vocab_size": shapes[0][0],
            "hidden_size": shapes[0][1],
        }
