"""`hf-eagle3 prepare`: let the target answer the prompts, count its tokens, compute features beforehand."""

import argparse
import json
import logging
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers import AutoTokenizer

from .loading import add_device_arguments, load_draft, load_target, needs_extra, positive


HELP = "prepare training data: regenerate answers, choose the draft vocabulary, compute features beforehand"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    tasks = parser.add_subparsers(dest="task", required=True, metavar="task", help="what to prepare:")
    regenerate = tasks.add_parser(
        "regenerate", help="the target answers the prompts itself (JSON lines out; resumes)", allow_abbrev=False
    )
    add_data_arguments(regenerate)
    regenerate.add_argument("--output", required=True, help="JSON-lines file; what it has already is not done again")
    regenerate.add_argument("--target", required=True, help="target model, or the model's name at --endpoint")
    regenerate.add_argument("--endpoint", help="OpenAI-compatible address, e.g. http://localhost:8000/v1")
    regenerate.add_argument("--draft", help="a draft for the target, to be faster in-process")
    regenerate.add_argument("--batch-size", type=positive, default=32, help="conversations side by side (default: 32)")
    regenerate.add_argument("--concurrency", type=positive, default=16, help="requests under way (default: 16)")
    regenerate.add_argument("--retries", type=int, default=5, help="of a request that failed (default: 5)")
    regenerate.add_argument(
        "--max-new-tokens", type=positive, default=512, help="per answer, within the target's context (default: 512)"
    )
    regenerate.add_argument(
        "--temperature",
        type=float,
        nargs="+",
        default=[1.0],
        help="0 is greedy; several take turns, batch by batch (default: 1)",
    )
    regenerate.add_argument(
        "--prompt-tokens", type=positive, default=32, help="of plain text that is to be continued (default: 32)"
    )
    regenerate.add_argument("--top-p", type=float, default=1.0, help="(default: 1)")
    regenerate.add_argument("--seed", type=int, default=0, help="(default: 0)")
    add_device_arguments(regenerate, "the target")
    vocabulary = tasks.add_parser(
        "vocabulary",
        help="count the tokens to be predicted and say what a draft vocabulary covers",
        allow_abbrev=False,
    )
    add_data_arguments(vocabulary)
    vocabulary.add_argument("--target", required=True, help="target model (its tokenizer and configuration are read)")
    vocabulary.add_argument("--output", required=True, help="JSON file for `train --vocabulary`")
    vocabulary.add_argument("--max-length", type=positive, default=2048, help="of a sample, in tokens (default: 2048)")
    features = tasks.add_parser(
        "features", help="compute the target's hidden states beforehand (large; resumes)", allow_abbrev=False
    )
    add_data_arguments(features)
    features.add_argument("--target", required=True, help="target model")
    features.add_argument("--output", required=True, help="folder for `train --features`")
    features.add_argument("--draft", help="tap the layers of this draft (default: those of a new one)")
    features.add_argument("--max-length", type=positive, default=2048, help="of a sample, in tokens (default: 2048)")
    features.add_argument(
        "--store-dtype", choices=("bfloat16", "float16"), default="bfloat16", help="(default: bfloat16)"
    )
    features.add_argument("--estimate", action="store_true", help="only say how large it would be")
    add_device_arguments(features, "the target")


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, help="preset, file, folder or Hub id")
    parser.add_argument("--split", help="default: train")
    parser.add_argument("--limit", type=positive, help="only the first so many samples")


def run(arguments: argparse.Namespace) -> int:
    needs_extra("train", ("datasets",))
    logging.basicConfig(format="%(message)s")
    from ..data.loading import load

    output = Path(arguments.output)
    if output.exists() and Path(arguments.data).exists() and output.samefile(arguments.data):
        raise ValueError(f"`--output` {arguments.output} is the data itself; name another file.")
    data = load(arguments.data, arguments.split)
    if arguments.limit is not None:
        data = data.select(range(min(arguments.limit, len(data))))
    return {"regenerate": regenerate, "vocabulary": vocabulary, "features": features}[arguments.task](arguments, data)


def regenerate(arguments: argparse.Namespace, data) -> int:
    needs_extra("train", ("httpx", "tenacity"))
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
        answer = Endpoint(arguments.endpoint, arguments.target, sampling, arguments.concurrency, arguments.retries)
        batch_size = 8 * arguments.concurrency
    else:
        target = load_target(arguments)
        draft = load_draft(arguments, target) if arguments.draft else None
        answer = InProcess(target, AutoTokenizer.from_pretrained(arguments.target), sampling, draft)
        batch_size = arguments.batch_size
    done = len(finished_ids(Path(arguments.output)))
    with tqdm(total=len(data), initial=done, unit="conversation", disable=None) as progress:
        written = answer_all(data, arguments.output, answer, batch_size, progress)
    print(f"{written} conversations written to {arguments.output}, {done} were there")
    return 0


def tokens_of(arguments: argparse.Namespace, data):
    from ..data.loading import tokenised

    tokenizer = AutoTokenizer.from_pretrained(arguments.target)
    return tokenised(data, tokenizer, arguments.max_length, name=f"`{arguments.data}`"), tokenizer


def vocabulary(arguments: argparse.Namespace, data) -> int:
    from transformers import AutoConfig

    from ..training.new_draft import count_tokens

    samples, _ = tokens_of(arguments, data)
    size = AutoConfig.from_pretrained(arguments.target).get_text_config(decoder=True).vocab_size
    counts = count_tokens(samples, size)
    Path(arguments.output).write_text(
        json.dumps(
            {"target": arguments.target, "data": arguments.data, "vocab_size": size, "counts": counts.tolist()}
        ),
        encoding="utf-8",
    )
    print(f"{int(counts.sum())} tokens, {int((counts > 0).sum())} of {size} distinct. Share covered by the commonest:")
    shares = counts.sort(descending=True).values.cumsum(0) / counts.sum()
    for count in (1000, 4000, 8000, 16000, 32000, 64000):
        if count < size:
            print(f"  {count:>6}  {float(shares[count - 1]):.4%}")
    return 0


def features(arguments: argparse.Namespace, data) -> int:
    from ..configuration_eagle3 import Eagle3Config
    from ..data.features import FeatureWriter, estimate_bytes
    from ..target import Target

    samples, tokenizer = tokens_of(arguments, data)
    target = load_target(arguments)
    if arguments.draft:
        config = Eagle3Config.from_pretrained(arguments.draft)
    else:
        config = Eagle3Config.from_target(target)
    tokens = sum(len(ids) for ids in samples["input_ids"])
    size = estimate_bytes(tokens, Target(target, config)) / 2**30
    print(f"{len(samples)} samples, {tokens} tokens: about {size:.2f} GiB in {arguments.output}", flush=True)
    if arguments.estimate:
        return 0
    writer = FeatureWriter(
        arguments.output,
        target,
        config,
        tokenizer,
        getattr(torch, arguments.store_dtype),
        arguments.max_length,
    )
    with tqdm(total=len(samples), initial=sum(writer.provenance.shards), unit="sample", disable=None) as progress:
        written = writer.write(samples, progress)
    print(f"{written} samples written")
    return 0
