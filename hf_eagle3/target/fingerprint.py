"""A short hash of a model's weights, by which features and benchmark figures are matched to their target.

Does not know files, versions or what the weights are for.
"""

import hashlib

import torch
from transformers import PreTrainedModel


SAMPLED_NUMBERS = 64  # about so many of each weight are hashed


def fingerprint(model: PreTrainedModel) -> str:
    """16 hexadecimal digits from a sample of every weight, in bfloat16 so that the loading dtype is irrelevant."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if parameter.is_meta:  # offloaded
            continue
        flat = parameter.detach().reshape(-1)
        some = flat[:: max(flat.numel() // SAMPLED_NUMBERS, 1)].to("cpu")
        digest.update(name.encode())
        digest.update(some.to(torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]
