"""Tiny random vision-language models of several families, and prompts with and without images for them.

What a processor would make is made by hand: image tokens, pixel values, grids. Vision towers have as many layers as
the language model, so that one may be mistaken for the other.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from models import SIZES, VOCAB, WINDOW
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText, PreTrainedModel


IMAGE, VIDEO, START, END = VOCAB - 1, VOCAB - 2, VOCAB - 3, VOCAB - 4
TEXT = SIZES | {"num_hidden_layers": 4}
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}
QWEN_IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
}
QWEN_VISION = {
    "depth": 4,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_heads": 2,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 32,
}
SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 2,
}
LLAMA = TEXT | {"model_type": "llama"}
GRID = (1, 4, 6)  # patches in time, height and width; 2 x 2 patches become one token


def patches(num_images: int, generator) -> dict:
    """Qwen: flat patches of 3 channels x 2 frames x 4 x 4 pixels, and the grids they came from."""
    count = num_images * GRID[0] * GRID[1] * GRID[2]
    return {
        "pixel_values": torch.randn(count, 3 * 2 * 4 * 4, generator=generator),
        "image_grid_thw": torch.tensor([GRID] * num_images),
    }


def pictures(num_images: int, generator) -> dict:
    return {"pixel_values": torch.randn(num_images, 3, 8, 8, generator=generator)}


def tiles(num_images: int, generator) -> dict:
    """Idefics: one picture per row."""
    return {"pixel_values": torch.randn(num_images, 1, 3, 8, 8, generator=generator)}


def aspects(num_images: int, generator) -> dict:
    """Mllama: two tiles of a picture per row, seen from behind the image token on."""
    return {
        "pixel_values": torch.randn(num_images, 1, 2, 3, 8, 8, generator=generator),
        "aspect_ratio_ids": torch.full((num_images, 1), 2),
        "aspect_ratio_mask": torch.ones(num_images, 1, 2, dtype=torch.long),
    }


@dataclass
class Shape:
    """How one family is made small, what its images look like, and how many tokens each becomes."""

    config: dict
    image_tokens: int
    pixels: Callable = pictures
    types: str | None = None  # the name under which it is told which tokens are an image's
    mode: str = "tree"


SHAPES = {
    "qwen2_vl": Shape(
        QWEN_IDS
        | {
            "text_config": TEXT | MROPE,
            "vision_config": {
                "depth": 4,
                "embed_dim": 16,
                "hidden_size": 32,
                "num_heads": 2,
                "mlp_ratio": 2,
                "patch_size": 4,
            },
        },
        6,
        patches,
        "mm_token_type_ids",
    ),
    "qwen2_5_vl": Shape(
        QWEN_IDS
        | {
            "text_config": TEXT | MROPE,
            "vision_config": QWEN_VISION | {"window_size": 16, "fullatt_block_indexes": [1]},
        },
        6,
        patches,
        "mm_token_type_ids",
    ),
    "qwen3_vl": Shape(
        QWEN_IDS
        | {
            "text_config": TEXT | MROPE,
            "vision_config": QWEN_VISION | {"num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]},
        },
        6,
        patches,
        "mm_token_type_ids",
    ),
    "gemma3": Shape(
        {
            "text_config": TEXT
            | {
                "sliding_window": WINDOW,
                "layer_types": ["sliding_attention", "full_attention"] * 2,
                "query_pre_attn_scalar": 8,
            },
            "vision_config": SIGLIP,
            "mm_tokens_per_image": 4,
            "image_token_index": IMAGE,
            "boi_token_index": START,
            "eoi_token_index": END,
        },
        4,
        types="token_type_ids",
    ),
    "paligemma": Shape(
        {
            "text_config": TEXT | {"model_type": "gemma"},
            "vision_config": SIGLIP | {"patch_size": 4},
            "image_token_index": IMAGE,
            "projection_dim": 32,
            "hidden_size": 32,
        },
        4,
        types="token_type_ids",
    ),
    "llava": Shape(
        {
            "text_config": LLAMA,
            "vision_config": SIGLIP | {"patch_size": 4},
            "image_token_index": IMAGE,
            "vision_feature_select_strategy": "full",
        },
        4,
    ),
    "idefics3": Shape(
        {
            "text_config": LLAMA,
            "vision_config": SIGLIP | {"model_type": "idefics3_vision"},
            "image_token_id": IMAGE,
            "scale_factor": 2,
        },
        4,
        tiles,
    ),
    "qwen3_5": Shape(
        QWEN_IDS
        | {
            "text_config": TEXT
            | {
                "layer_types": ["linear_attention", "full_attention"] * 2,
                "linear_num_key_heads": 2,
                "linear_num_value_heads": 2,
                "linear_key_head_dim": 8,
                "linear_value_head_dim": 8,
            },
            "vision_config": QWEN_VISION | {"num_position_embeddings": 16, "deepstack_visual_indexes": []},
        },
        6,
        patches,
        "mm_token_type_ids",
        mode="chain",
    ),
    "mllama": Shape(
        {
            "text_config": TEXT
            | {
                "num_hidden_layers": 6,
                "cross_attention_layers": [3],
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
            },
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 6,
                "num_global_layers": 1,
                "attention_heads": 2,
                "vision_output_dim": 32,
                "image_size": 8,
                "patch_size": 4,
                "max_num_tiles": 2,
                "intermediate_layers_indices": [0],
                "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
            },
            "image_token_index": IMAGE,
        },
        1,
        aspects,
        mode="chain",
    ),
    "idefics": Shape(
        TEXT
        | {
            "additional_vocab_size": 0,
            "cross_layer_interval": 2,
            "vision_config": {
                "embed_dim": 16,
                "image_size": 8,
                "patch_size": 4,
                "intermediate_size": 16,
                "num_hidden_layers": 4,
                "num_attention_heads": 2,
            },
        },
        1,
        tiles,
    ),
    "smolvlm": Shape(
        {
            "text_config": LLAMA,
            "vision_config": SIGLIP | {"model_type": "smolvlm_vision"},
            "image_token_id": IMAGE,
            "scale_factor": 2,
        },
        4,
        tiles,
    ),
}


def tiny_vision_target(name: str, scale: float = 0.15, **changes) -> PreTrainedModel:
    config = CONFIG_MAPPING[name](**SHAPES[name].config | changes)
    torch.manual_seed(0)
    return drawn_anew(AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval(), scale)


@torch.no_grad()
def drawn_anew(model: PreTrainedModel, scale: float) -> PreTrainedModel:
    """Weights large enough for images, context and positions to matter."""
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=scale)
        elif "A_log" not in name:  # gates start closed
            parameter.add_(torch.randn_like(parameter) * 0.5)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def prompts(name: str, lengths: list[int], with_image: bool, seed: int = 0) -> dict:
    """Random rows of `lengths` text tokens padded on the left, each with an image behind its second token."""
    shape, generator = SHAPES[name], torch.Generator().manual_seed(seed)
    rows = [torch.randint(3, END, (length,), generator=generator).tolist() for length in lengths]
    if with_image:
        rows = [row[:2] + [START] + [IMAGE] * shape.image_tokens + row[2:] for row in rows]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    if shape.types is not None:
        inputs[shape.types] = (ids == IMAGE).long()
    if not with_image:
        return inputs
    if name == "idefics":
        inputs["image_attention_mask"] = (ids == IMAGE).cumsum(1)[:, :, None]
    if name == "mllama":
        seen = (ids == IMAGE).cumsum(1)[:, :, None, None].expand(-1, -1, 1, 2).clone()
        seen[..., 1] *= torch.arange(width)[:, None] < width - 2  # the last two prompt tokens see one tile only
        inputs["cross_attention_mask"] = seen
    return inputs | shape.pixels(len(rows), generator)
