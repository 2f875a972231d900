"""The model card of a draft: metadata, description, measured figures, and how to run it in each engine.

Unknown values are left out, figures come from a benchmark file or the card says "not measured", and an engine that
would serve the draft wrongly gets the reason instead of a command. Rewriting a card keeps the author's text around the
generated part. Does not know how figures are measured.
"""

import re
from dataclasses import dataclass, field

from huggingface_hub import ModelCard, ModelCardData
from transformers import PreTrainedConfig
from yaml import YAMLError

from ..tree_config import TreeConfig
from . import custom_generate, engines
from .card_figures import METRICS, eval_results, figures_section, headline, markdown_table, table_cell
from .formats import BLOCK, CLASSES
from .measured import Measured
from .trained import THINKING, training_rows


TAGS = ("eagle3", "eagle", "speculative-decoding", "custom_generate")
BLOCK_TAGS = ("dflash", "speculative-decoding", "custom_generate")
# Of the relations that the Hub knows: weights that are added to a base model, which stays as it is and is needed.
RELATION = "adapter"
LIBRARY = "hf-eagle3"
SECTIONS = {
    engines.VLLM: "vLLM",
    engines.SGLANG: "SGLang",
    engines.LLAMA_CPP: "llama.cpp",
    engines.ORIGINAL: "The original EAGLE code",
}
BEGIN, END = "<!-- hf-eagle3: begin, written by the program -->", "<!-- hf-eagle3: end -->"


@dataclass(frozen=True)
class CardFacts:
    """
    What a card needs besides the draft's configuration.

    Args:
        repository: Hub id of the draft.
        target: The target.
        tree: The draft's default tree.
        dtype: Of the stored weights.
        num_parameters: Of the draft.
        dialect: "plain" or "speculators".
        datasets, license: As in Hub metadata; omitted if empty.
        tags: In addition to the default ones.
        measured: Benchmark figures, if any.
        plot: File name of their plot, if there is one.
        training: The record of its training (`training.json`), if any.
    """

    repository: str
    target: engines.TargetFacts
    tree: TreeConfig
    dtype: str
    num_parameters: int
    dialect: str = engines.PLAIN
    datasets: tuple[str, ...] = ()
    license: str | None = None
    tags: tuple[str, ...] = ()
    measured: Measured | None = field(default=None, repr=False)
    plot: str | None = None
    training: dict | None = field(default=None, repr=False)


def write_card(config: PreTrainedConfig, facts: CardFacts, earlier: str | None = None) -> str:
    """
    The text of README.md.

    Args:
        config: The draft's configuration, as published.
        facts: Everything else.
        earlier: The existing card. Text around its generated part is kept; a card without a generated part is kept
            below the new one.
    """
    body = f"{BEGIN}\n{_body(config, facts)}\n{END}\n"
    results = eval_results(facts.measured)
    data = ModelCardData(
        library_name=LIBRARY,
        pipeline_tag="text-generation",
        base_model=facts.target.name,
        base_model_relation=RELATION if facts.target.name else None,
        base_model_revision=facts.target.revision,
        datasets=list(facts.datasets) or None,
        license=facts.license,
        tags=list(dict.fromkeys((*_tags(config), *_serving_tags(config, facts), *facts.tags))),
        model_name=facts.repository.split("/")[-1] if results else None,
        eval_results=results or None,
    )
    if earlier:
        card = _readable(earlier)
        data = _with_earlier(data, card.data)
        pattern = re.escape(BEGIN) + ".*?" + re.escape(END) + "\n?"
        text, count = re.subn(pattern, lambda _: body, card.text.strip("\n") + "\n", flags=re.DOTALL)
        body = text if count else f"{body}\n{text}"
    return f"---\n{data.to_yaml()}\n---\n\n{body}"


def _serving_tags(config: PreTrainedConfig, facts: CardFacts) -> list[str]:
    """Tags of the engines that serve the draft as it is."""
    readers = engines.READERS[facts.dialect]
    case = engines.Case(config, facts.dialect, facts.target)
    able = [name for name in (engines.VLLM, engines.SGLANG) if name in readers and name in case.readers]
    return [name for name in able if not engines.findings(case, (name,))]


def _with_earlier(data: ModelCardData, earlier: ModelCardData) -> ModelCardData:
    """`data`, with what the author of the earlier card added: other names, tags and results."""
    own = vars(data)
    kept = {name: value for name, value in vars(earlier).items() if own.get(name) is None}
    tags = [tag for tag in earlier.tags or () if tag not in (engines.VLLM, engines.SGLANG)]  # these are derived
    kept["tags"] = list(dict.fromkeys((*own["tags"], *tags)))
    results = [result for result in earlier.eval_results or () if result.metric_type not in METRICS]
    results = [*(data.eval_results or ()), *results]
    name = data.model_name or earlier.model_name
    kept |= {"eval_results": results or None, "model_name": name if results else None}
    return ModelCardData(**own | kept)


def _readable(text: str) -> ModelCard:
    try:
        return ModelCard(text)
    except (ValueError, YAMLError) as error:
        raise ValueError(
            f"The metadata of the existing card cannot be parsed ({' '.join(str(error).split())}) and would be lost; "
            "fix it on the Hub, or remove it."
        ) from error


def _body(config: PreTrainedConfig, facts: CardFacts) -> str:
    title = facts.repository.split("/")[-1]
    name = facts.target.name
    target = f"[{name}](https://huggingface.co/{name})" if name else "its target"
    at = f" at revision `{facts.target.revision}`" if facts.target.revision else ""
    parts = [
        f"# {title}\n\n{_kind(config)} for {target}{at}. It proposes a tree of next tokens which the target verifies "
        "in one pass; the text stays the target's own, token for token in float32.\n\n" + headline(facts.measured),
        _draft_section(config, facts),
        *(_training_section(facts.training) if facts.training else ()),
        figures_section(facts.measured, facts.plot),
        _transformers_section(config, facts),
        *(_engine_section(engine, config, facts) for engine in _engines(config)),
    ]
    return "\n\n".join(parts)


def _tags(config: PreTrainedConfig) -> tuple[str, ...]:
    return BLOCK_TAGS if config.model_type == BLOCK else TAGS


def _kind(config: PreTrainedConfig) -> str:
    """What the draft is, with its source."""
    if config.model_type != BLOCK:
        return "An EAGLE-3 draft model ([arXiv 2503.01840](https://arxiv.org/abs/2503.01840))"
    if config.is_causal:
        return "A causal block drafter (JetSpec, [arXiv 2606.18394](https://arxiv.org/abs/2606.18394))"
    return "A block drafter (DFlash, [arXiv 2602.06036](https://arxiv.org/abs/2602.06036))"


def _engines(config: PreTrainedConfig) -> tuple[str, ...]:
    """Engines that the card is about."""
    return (engines.VLLM, engines.SGLANG) if config.model_type == BLOCK else tuple(SECTIONS)


def _draft_section(config: PreTrainedConfig, facts: CardFacts) -> str:
    ids = config.target_layer_ids
    tree = facts.tree
    limit = "adaptive, at most " if tree.tree_mode == "auto" else ""
    rows = [
        ("parameters", f"{facts.num_parameters:,} in {facts.dtype}, {config.num_hidden_layers} decoder layer(s)"),
        ("tapped layers", "the default ones" if ids is None else f"outputs of the target's layers {ids} (zero-based)"),
        _proposals(config),
        ("default tree", f"{limit}{tree.num_draft_tokens} nodes, {tree.tree_depth} levels, top-k {tree.tree_top_k}"),
    ]
    if config.sliding_window is not None:
        rows.append(("attention", f"sliding window of {config.sliding_window} positions"))
    if config.chat_template_kwargs:
        rows.append(("chat template", f"trained with `{table_cell(config.chat_template_kwargs)}`"))
    if facts.training is None and (thinking := (config.chat_template_kwargs or {}).get(THINKING)) is not None:
        rows.append(("thinking", f"trained on answers {'with' if thinking else 'without'} it"))
    return "## Draft\n\n" + markdown_table(("", ""), rows)


def _proposals(config: PreTrainedConfig) -> tuple[str, str]:
    """The row about what is proposed per pass."""
    if config.model_type == BLOCK:
        how = {False: "; each sees later ones too", True: "; each sees those before it", None: ""}[config.is_causal]
        return "block", f"{config.block_size} positions, {config.num_predictions} predicted per pass{how}"
    return "draft vocabulary", f"{config.draft_vocab_size:,} of {config.vocab_size:,} tokens"


def _training_section(record: dict) -> list[str]:
    rows = [(what, table_cell(value)) for what, value in training_rows(record)]
    return ["## Training\n\nRecorded by `hf-eagle3 train`.\n\n" + markdown_table(("", ""), rows)]


def _transformers_section(config: PreTrainedConfig, facts: CardFacts) -> str:
    target = facts.target.name or "TARGET"
    return f"""## Transformers

```python
import hf_eagle3  # pip install {custom_generate.PIP_NAME}
from transformers import AutoModelForCausalLM, AutoTokenizer

target = AutoModelForCausalLM.from_pretrained("{target}").to("cuda")  # or "mps", "cpu"
tokenizer = AutoTokenizer.from_pretrained("{target}")
draft = hf_eagle3.{CLASSES[config.model_type]}.from_pretrained("{facts.repository}").to(target.device, target.dtype)
inputs = tokenizer("Once upon a time", return_tensors="pt").to(target.device)
out = target.generate(**inputs, max_new_tokens=128, assistant_model=draft)
```

Or, with the package installed but not imported:
`target.generate(**inputs, custom_generate="{facts.repository}", trust_remote_code=True)`."""


def _engine_section(engine: str, config: PreTrainedConfig, facts: CardFacts) -> str:
    title = SECTIONS[engine]
    if engine not in (*engines.READERS[facts.dialect], *engines.CONVERTERS[facts.dialect]):
        return (
            f"## {title}\n\nDoes not read this file format; `hf-eagle3 convert --to plain` writes one that it reads."
        )
    found = engines.findings(engines.Case(config, facts.dialect, facts.target), (engine,))
    if found:
        reasons = "\n".join(f"- It {f.rule.consequence}." for f in found)
        return f"## {title}\n\nDo not serve this draft here:\n\n{reasons}"
    target, tree, is_block = facts.target.name or "TARGET", facts.tree, config.model_type == BLOCK
    # They draft a chain, whose deep tokens are rarely accepted; a block costs the same however long it is.
    length = config.num_predictions if is_block else min(tree.tree_depth, 5)
    if engine == engines.VLLM:
        method = "dflash" if is_block else "eagle3"
        settings = f'{{"method": "{method}", "model": "{facts.repository}", "num_speculative_tokens": {length}}}'
        return f"## {title}\n\n```bash\nvllm serve {target} --speculative-config '{settings}'\n```"
    if engine == engines.SGLANG and is_block:
        return (
            f"## {title}\n\n```bash\npython -m sglang.launch_server --model-path {target} \\\n"
            f"  --speculative-algorithm DFLASH --speculative-draft-model-path {facts.repository}\n```"
        )
    if engine == engines.SGLANG:
        return (
            f"## {title}\n\n```bash\npython -m sglang.launch_server --model-path {target} \\\n"
            f"  --speculative-algorithm EAGLE3 --speculative-draft-model-path {facts.repository} \\\n"
            f"  --speculative-num-steps {tree.tree_depth} --speculative-eagle-topk {tree.tree_top_k} \\\n"
            f"  --speculative-num-draft-tokens {tree.num_draft_tokens + 1}\n```"
        )
    if engine == engines.LLAMA_CPP:
        return (
            f"## {title}\n\n```bash\nhf download {facts.repository} --local-dir draft\n"
            f"hf download {target} --local-dir target\n"
            "python convert_hf_to_gguf.py target --outfile target.gguf\n"
            "python convert_hf_to_gguf.py draft --target-model-dir target --outfile draft.gguf\n"
            f"llama-server -m target.gguf -md draft.gguf --spec-type draft-eagle3 --spec-draft-n-max {length}\n```\n\n"
            "llama.cpp's converter must know the target's tokenizer; it refuses others."
        )
    return (
        f'## {title}\n\n```python\nEaModel.from_pretrained(base_model_path="{target}", '
        f'ea_model_path="{facts.repository}")\n```'
    )
