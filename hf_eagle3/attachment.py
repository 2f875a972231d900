"""`attach` and `detach`: a draft for every call of a target's `generate`; and the known draft of a target.

For code that calls `generate` where no `assistant_model` can be passed: pipelines, lm-evaluation-harness, TRL,
servers. How such calls run: `generation/attached.py`.
"""

import os
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from .generation.attached import ATTACHED
from .generation.draft.interface import drafter_kind
from .generation.hook import draft_of, refuse_wrong_class
from .generation.named import draft_named
from .hub.registry import known_draft
from .modeling_eagle3 import Eagle3DraftModel
from .target.parts import unwrapped
from .target.target import Target


logger = logging.get_logger(__name__)


class Attachment:
    """What `attach` returns. As a context manager it ends with its block, and an earlier attachment applies again."""

    def __init__(self, target: PreTrainedModel, draft: Any, previous: Any | None):
        self.target, self.draft, self.previous = target, draft, previous

    def __enter__(self) -> "Attachment":
        return self

    def __exit__(self, *error) -> None:
        if self.previous is None:
            detach(self.target)
        else:
            ATTACHED[self.target] = self.previous


def attach(target: nn.Module, draft: Any = None, tree_mode: str | None = None, **sizes) -> Attachment:
    """
    Use `draft` in every later `target.generate(...)` without `assistant_model`, whoever calls it: same text, faster.

    A call that no draft can serve (beams, contrastive search, `use_cache=False`, ...) runs as without one and says so
    once. Nothing is stored on the target: copies of it have no draft, and `save_pretrained`, pickling and
    `parameters()` are unchanged.

    Args:
        target: The model, also wrapped by PEFT or `torch.compile`; wrapping it later is fine too.
        draft: A draft, or its directory or Hub id. Default: the known one, see `Eagle3DraftModel.for_target`.
        tree_mode, sizes: Another tree than the draft's, as for `Eagle3DraftModel.with_tree`.

    Raises:
        ValueError: `draft` is no draft, does not fit the target, or none is known.

    Example:
        `with hf_eagle3.attach(target, draft): pipeline("text-generation", model=target, tokenizer=tokenizer)(prompt)`
    """
    target = unwrapped(target)
    draft = _draft_for(target, draft)
    if tree_mode is not None or sizes:
        draft = draft.with_tree(tree_mode or draft.tree_config.tree_mode, **sizes)
    kind = drafter_kind(draft)
    Target(target, kind.features(draft))
    kind.fit(draft, target)
    previous = ATTACHED.get(target)
    ATTACHED[target] = draft
    return Attachment(target, draft, previous)


def detach(target: nn.Module) -> None:
    """Let `target.generate(...)` run without a draft again; a target without one is left alone."""
    ATTACHED.pop(unwrapped(target), None)


def _draft_for(target: PreTrainedModel, draft: Any) -> Any:
    if draft is None:
        return for_target(target)
    if isinstance(draft, (str, os.PathLike)):
        return draft_named(os.fspath(draft), target)
    found = draft_of(draft)
    if found is None:
        refuse_wrong_class(draft)
        raise ValueError(
            f"`draft` is a {type(draft).__name__}; give an `Eagle3DraftModel`, or the directory or Hub id of a draft."
        )
    return found


def for_target(target: PreTrainedModel | str, **kwargs) -> Eagle3DraftModel:
    """
    Load the known draft of a target: a public one by the target's Hub id, or the one that ships with the package.

    Args:
        target: The model, in whose dtype and on whose device the draft is loaded; or its Hub id.
        kwargs: As for [`Eagle3DraftModel.from_pretrained`].

    Raises:
        ValueError: no draft is known; the message lists targets of similar names.
    """
    if isinstance(target, str):
        return Eagle3DraftModel.from_pretrained(known_draft(target).draft, **kwargs).eval()
    target = unwrapped(target)
    known = known_draft(target.name_or_path)
    logger.info("The draft %s (%s) is known for %s.", known.draft, known.publisher, known.target)
    if not kwargs:
        return draft_named(known.draft, target)
    draft = Eagle3DraftModel.from_pretrained(known.draft, **{"dtype": target.dtype} | kwargs)
    return draft.to(target.device).eval()
