"""The kinds of draft that come with the package, registered."""

from ...fitting import fit_to
from ...modeling_eagle3 import Eagle3DraftModel
from .eagle3 import Eagle3Drafter
from .interface import DraftContext, register_drafter
from .static import StaticDrafter


def open_eagle3(draft: Eagle3DraftModel, context: DraftContext) -> Eagle3Drafter:
    """The EAGLE-3 drafter of a call; over static shapes one whose passes have few."""
    batch = context.batch
    given = (draft, context.target, batch.num_sequences, context.timer, context.noise, context.warp, batch)
    given += (context.settings.sizes.draft_window,)
    if context.settings.static is None:
        return Eagle3Drafter(*given)
    return StaticDrafter(context.settings, context.max_length + batch.cache_shift, *given)


def register_eagle3(draft_class: type[Eagle3DraftModel], **more) -> None:
    """Register EAGLE-3's draft, or a class of drafts that its drafter serves; `more` as in [`DrafterKind`]."""
    register_drafter(
        draft_class,
        open_eagle3,
        fit=fit_to,
        sizes=lambda draft: draft.tree_config.fitted(draft.config.draft_vocab_size),
        features=lambda draft: draft.config,
        vocabulary=lambda draft: draft.target_token_ids,
        device=lambda draft, target: draft.fc.weight.device,
        identity=lambda draft: draft.midlayer,
        **more,
    )


def register() -> None:
    """Let `generate` take them."""
    register_eagle3(Eagle3DraftModel)
