"""Where a target's answers end: at its stop tokens, and at the end of its context.

Does not know chats or files.
"""

from transformers import PreTrainedConfig, PreTrainedModel


CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len")  # most; GPT-2 and its kin; MPT and DBRX


def stop_tokens(target: PreTrainedModel) -> set[int]:
    """Tokens that end an answer; empty where the target has none."""
    stops = target.generation_config.eos_token_id
    return {stops} if isinstance(stops, int) else set(stops or ())


def up_to_stop(tokens: list[int], stops: set[int]) -> list[int]:
    """Tokens through the first stop token."""
    end = next((i + 1 for i, token in enumerate(tokens) if token in stops), len(tokens))
    return tokens[:end]


def context_length(config: PreTrainedConfig) -> int | None:
    """
    Longest sequence, in tokens, that a target is made for; `None` where nothing bounds it (ALiBi, recurrent models).

    YaRN and dynamic NTK extend the length that the configuration states, as vLLM reads it; linear scaling is left out
    because configurations disagree on whether their length contains the factor.
    """
    values = config.get_text_config(decoder=True).to_dict()
    length = next((values[name] for name in CONTEXT_NAMES if values.get(name)), None)
    if length is None:
        return None
    rope = values.get("rope_parameters") or {}
    lengths = [length]
    for part in (
        rope,
        *(part for part in rope.values() if isinstance(part, dict)),
    ):  # flat, or one for each layer type
        if part.get("rope_type") in ("yarn", "dynamic"):
            original = part.get("original_max_position_embeddings") or length
            lengths.append(int(original * (part.get("factor") or 1)))
    return max(lengths)
