"""Where a target's answers end: stop tokens and context length. Does not know chats or files."""

from transformers import PreTrainedConfig, PreTrainedModel


CONTEXT_NAMES = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
)  # most models; GPT-2 and relatives; MPT and DBRX


def stop_tokens(target: PreTrainedModel) -> set[int]:
    """Token ids that end an answer; empty if the target has none."""
    stops = target.generation_config.eos_token_id
    return {stops} if isinstance(stops, int) else set(stops or ())


def up_to_stop(tokens: list[int], stops: set[int]) -> list[int]:
    """Tokens up to and including the first stop token."""
    end = next((i + 1 for i, token in enumerate(tokens) if token in stops), len(tokens))
    return tokens[:end]


def context_length(config: PreTrainedConfig) -> int | None:
    """
    Maximum sequence length of a target in tokens; `None` if unbounded (ALiBi, recurrent models).

    YaRN and dynamic NTK extend the configured length, as in vLLM. Linear scaling is not applied, because
    configurations disagree on whether their length includes the factor.
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
