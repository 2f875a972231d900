"""`hf-eagle3 prepare`: regenerate answers with the target, count tokens, precompute features."""

import argparse
import json
import logging
from pathlib import Path

from tqdm.auto import tqdm

from ..dtypes import torch_dtype
from ..errors import explained
from ..model_loading import MODEL_REMEDY, load_draft, load_target, load_target_config, load_tokenizer, needs_extra


def run(arguments: argparse.Namespace) -> int:
    needs_extra("train", ("datasets",))
    logging.basicConfig(format="%(message)s")
    from ..data.loading import load

    output = Path(arguments.output)
    if output.exists() and Path(arguments.data).exists() and output.samefile(arguments.data):
        raise ValueError(f"`--output` {arguments.output} is the data itself; choose another file.")
    with explained(f"`--data` {arguments.data} cannot be read", "Use a preset, file, folder or Hub id."):
        data = load(arguments.data, arguments.split)
    if arguments.limit is not None:
        data = data.select(range(min(arguments.limit, len(data))))
    return {"regenerate": regenerate, "vocabulary": vocabulary, "features": features}[arguments.task](arguments, data)


def regenerate(arguments: argparse.Namespace, data) -> int:
    needs_extra("train", ("httpx", "tenacity"))
    from ..data.conversations import checked_template_kwargs
    from ..data.regenerate import Endpoint, InProcess, Sampling, finished_ids
    from ..data.regenerate import regenerate as answer_all

    sampling = Sampling(
        arguments.max_new_tokens,
        tuple(arguments.temperature),
        arguments.top_p,
        arguments.seed,
        arguments.prompt_tokens,
    )
    if arguments.endpoint:
        limits = (arguments.concurrency, arguments.retries, arguments.timeout)
        answer = Endpoint(arguments.endpoint, arguments.target, sampling, *limits)
        batch_size = 32 * arguments.concurrency  # at its end the server has less and less to do
    else:
        target = load_target(arguments.target, dtype=arguments.dtype, device=arguments.device)
        draft = load_draft(arguments.draft, target) if arguments.draft else None
        tokenizer = load_tokenizer(arguments.target)
        checked_template_kwargs(arguments.chat_template_kwargs, tokenizer)
        answer = InProcess(target, tokenizer, sampling, draft)
        batch_size = arguments.batch_size
    done = len(finished_ids(Path(arguments.output)))
    with tqdm(total=len(data), initial=done, unit="conversation", disable=None) as progress:
        written = answer_all(data, arguments.output, answer, batch_size, progress, arguments.chat_template_kwargs)
    print(f"{written} conversations written to {arguments.output}, {done} were there already")
    return 0


def tokens_of(arguments: argparse.Namespace, data):
    """(tokenised samples, tokenizer, vocabulary size of the target)."""
    from ..data.loading import tokenised

    tokenizer = load_tokenizer(arguments.target)
    size = load_target_config(arguments.target).get_text_config(decoder=True).vocab_size
    samples = tokenised(
        data,
        tokenizer,
        arguments.max_length,
        name=f"`{arguments.data}`",
        template_kwargs=arguments.chat_template_kwargs,
        vocab_size=size,
    )
    return samples, tokenizer, size


def vocabulary(arguments: argparse.Namespace, data) -> int:
    from ..draft_init import count_tokens
    from ..training_plan import LENGTH_SHARE

    samples, _, size = tokens_of(arguments, data)
    counts = count_tokens(samples, size)
    lengths = sorted(len(sample["input_ids"]) for sample in samples)
    found = {
        "target": arguments.target,
        "data": arguments.data,
        "vocab_size": size,
        "samples": len(lengths),
        "tokens": sum(lengths),
        "long_sample": lengths[int(LENGTH_SHARE * (len(lengths) - 1))],
        "counts": counts.tolist(),
    }
    Path(arguments.output).write_text(json.dumps(found), encoding="utf-8")
    print(f"{int(counts.sum())} tokens, {int((counts > 0).sum())} of {size} distinct. Coverage of the most frequent:")
    shares = counts.sort(descending=True).values.cumsum(0) / counts.sum()
    for count in (1000, 4000, 8000, 16000, 32000, 64000):
        if count < size:
            print(f"  {count:>6}  {float(shares[count - 1]):.4%}")
    return 0


def features(arguments: argparse.Namespace, data) -> int:
    from ..checkpoint import load_config
    from ..configuration_eagle3 import Eagle3Config
    from ..data.features import FeatureWriter, estimate_bytes
    from ..generation.draft.interface import draft_class
    from ..modeling_eagle3 import Eagle3DraftModel
    from ..target.target import Target

    samples, tokenizer, _ = tokens_of(arguments, data)
    target = load_target(arguments.target, dtype=arguments.dtype, device=arguments.device)
    if arguments.draft:
        with explained(f"`--draft` {arguments.draft} cannot be read", MODEL_REMEDY):
            kind = draft_class(load_config(arguments.draft), Eagle3DraftModel)
            config = kind.config_class.from_pretrained(arguments.draft)
    else:
        config = Eagle3Config.from_target(target)
    tokens = sum(len(ids) for ids in samples["input_ids"])
    size = estimate_bytes(tokens, Target(target, config)) / 2**30
    print(f"{len(samples)} samples, {tokens} tokens: about {size:.2f} GiB in {arguments.output}", flush=True)
    if arguments.estimate:
        return 0
    with explained(f"`--output` {arguments.output} cannot be continued", "Choose a new folder."):
        writer = FeatureWriter(
            arguments.output,
            target,
            config,
            tokenizer,
            torch_dtype(arguments.store_dtype),
            arguments.max_length,
            template_kwargs=arguments.chat_template_kwargs,
        )
    with tqdm(total=len(samples), initial=sum(writer.provenance.shards), unit="sample", disable=None) as progress:
        written = writer.write(samples, progress)
    print(f"{written} samples written")
    return 0
