"""`DraftModel`: what the draft models have in common, whatever they compute.

The tree that they ask for, strict loading from a directory or the Hub, saving. Does not know layers or vocabularies.

Shape letters: B batch, L sequence.
"""

import copy

import torch
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from . import checkpoint
from .configuration_eagle3 import own_fields
from .draft_layers import Rotary
from .known_defects import corrections
from .tree_config import TreeConfig


logger = logging.get_logger(__name__)


class DraftModel(PreTrainedModel):
    """
    A model that proposes tokens for a target model: `target.generate(**inputs, assistant_model=draft)`.

    It has no `generate` of its own. Subclasses name their `config_class` and read their tensors in `_read`.
    """

    base_model_prefix = ""
    _supports_sdpa = True

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        self.generation_config = GenerationConfig()
        self._default_tree(config).write_to(self.generation_config)

    @staticmethod
    def _default_tree(config: PreTrainedConfig) -> TreeConfig:
        return TreeConfig()

    @property
    def tree_config(self) -> TreeConfig:
        """The tree drafted per cycle, validated from `generation_config`."""
        return TreeConfig.read_from(self.generation_config)

    def with_tree(self, tree_mode: str, **sizes) -> "DraftModel":
        """
        A view of this draft with another tree; it shares the weights and does not modify this draft.

        Args:
            tree_mode: "auto", "static", "chain", "host_chain" or "sparse".
            sizes: `num_draft_tokens`, `tree_depth`, `tree_top_k`, `shared_noise`, `sparse_tree`, `draft_window`; see
                [`TreeConfig`].

        Raises:
            ValueError: impossible sizes, or a `draft_window` for a draft that has none.

        Example:
            `fast = draft.with_tree("static", num_draft_tokens=24, tree_depth=6, tree_top_k=6)`
        """
        if sizes.get("draft_window") is not None and "draft_window" not in vars(self.config):
            raise ValueError(f"`draft_window` is {sizes['draft_window']}; a {type(self).__name__} has none, omit it.")
        view = copy.copy(self)  # shallow: modules and parameters are the same objects
        view.generation_config = copy.deepcopy(self.generation_config)
        self.tree_config.with_changes(tree_mode, **sizes).write_to(view.generation_config)
        return view

    def rotary(self, position_ids: torch.Tensor, dtype: torch.dtype) -> Rotary:
        """cos and sin for positions (B, L), with a heads axis: (B, 1, L, head_dim)."""
        reference = torch.empty(0, dtype=dtype, device=position_ids.device)  # only its dtype and device are used
        cos, sin = self.rotary_emb(reference, position_ids)
        return cos[:, None], sin[:, None]

    def generate(self, *args, **kwargs):
        """Raises TypeError: a draft cannot generate on its own."""
        raise TypeError(
            f"{type(self).__name__} only proposes tokens. Call `target.generate(..., assistant_model=draft)` with "
            "the model it was trained for."
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, config=None, **kwargs) -> "DraftModel":
        """
        Load a draft of any dialect that the class's documentation names.

        Args:
            pretrained_model_name_or_path: Directory or Hub id.
            config: Replaces the stored configuration.
            kwargs: Hub arguments (`revision`, `token`, `cache_dir`, `subfolder`, `local_files_only`, ...), any
                field of the configuration as an override (e.g. `rope_theta=10000.0`, `target_layer_ids=[1, 15, 28]`),
                and arguments of transformers' `from_pretrained` (`dtype`, `device_map`, `quantization_config`, ...).

        Raises:
            ValueError: missing, unexpected, mis-shaped or non-finite tensors, all named; none is initialised instead.
            OSError: no configuration or no weights.
        """
        source = str(pretrained_model_name_or_path)
        hub = {name: kwargs.pop(name) for name in checkpoint.HUB_ARGUMENTS if name in kwargs}
        hub = {name: value for name, value in hub.items() if value is not None}
        overrides = {name: kwargs.pop(name) for name in own_fields(cls.config_class) & kwargs.keys()}
        if config is None:
            config = cls._read_config(source, overrides, hub)
            overrides |= corrections(source, config, overrides)
        config, tensors = cls._read(source, config, overrides, hub)
        # Compared before loading: transformers would initialise missing tensors and only warn.
        with torch.device("meta"):
            expected = cls(config).state_dict()
        checkpoint.check_tensors(tensors, expected, source)
        model = super().from_pretrained(None, *model_args, config=config, state_dict=tensors, **kwargs)
        model.config.name_or_path = model.name_or_path = source  # PEFT stores the latter as an adapter's base
        model._read_generation_config(source, hub)
        return model

    @staticmethod
    def native_name(name: str) -> str:
        """Our name of a tensor that a checkpoint calls `name`."""
        return checkpoint.native_name(name)

    @staticmethod
    def fields_from_names(tensors: dict[str, torch.Tensor], config: PreTrainedConfig) -> dict:
        """Configuration fields that stored tensors determine more reliably than `config.json`."""
        return checkpoint.fields_from_names(tensors, config)

    @classmethod
    def _read_config(cls, source: str, overrides: dict, hub: dict) -> PreTrainedConfig:
        return cls.config_class.from_dict(checkpoint.load_config(source, **hub), **overrides)

    @classmethod
    def _read(cls, source: str, config: PreTrainedConfig, overrides: dict, hub: dict) -> tuple[PreTrainedConfig, dict]:
        """
        (configuration, tensors by name) of a checkpoint: the former completed by what the tensors show, then by
        `overrides`; the latter without those that `overrides` says not to be there.
        """
        raise NotImplementedError

    def _read_generation_config(self, source: str, hub: dict) -> None:
        try:
            if checkpoint.has_file(source, "generation_config.json", **hub):
                stored = GenerationConfig.from_pretrained(source, **hub)
                TreeConfig.read_from(stored).write_to(self.generation_config)
        except checkpoint.HubUnreachableError as error:
            logger.warning(f"The default tree of `{source}` is unknown; using the package's default. {error}")

    def save_pretrained(self, save_directory, **kwargs) -> None:
        """Write the format that engines read, and `generation_config.json` with the tree."""
        super().save_pretrained(save_directory, **kwargs)
        self.generation_config.save_pretrained(save_directory)
        checkpoint.share_weights(save_directory)


def without_unwanted(tensors: dict[str, torch.Tensor], overrides: dict) -> dict[str, torch.Tensor]:
    """`tensors` without a head or embedding that `overrides` says not to be there: the target's replace wrong ones."""
    names = {"has_lm_head": "lm_head.weight", "has_embed_tokens": "embed_tokens.weight"}
    unwanted = [name for field, name in names.items() if overrides.get(field) is False]
    return {name: tensor for name, tensor in tensors.items() if name not in unwanted}
