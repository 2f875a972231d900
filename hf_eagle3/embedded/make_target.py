"""First step of making the embedded pair: train a tokenizer, and a small, deep Llama from random weights.

`python -m hf_eagle3.embedded.make_target --text DIR --out DIR`. Takes about an hour on two CPU cores with bfloat16.
"""

import argparse
import random
from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

from . import text


VOCABULARY = 1024
LENGTH = 512
PAD, END, ROLES = "<|pad|>", "<|end|>", ("<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}<|assistant|>"
    "{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}"
    "{% elif message['role'] == 'user' %}{{ '<|user|>' + message['content'] + '<|end|>' }}"
    "{% else %}{{ raise_exception('This model knows the roles user and assistant only.') }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_tokenizer(documents: list[list[dict[str, str]]]) -> PreTrainedTokenizerFast:
    """Byte-level BPE with single digits; its chat template marks the assistant's turns as generated."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, END, *ROLES],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator((message["content"] for messages in documents for message in messages), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=PAD, eos_token=END, additional_special_tokens=list(ROLES)
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.model_max_length = 2 * LENGTH
    return tokenizer


def encoded(tokenizer: PreTrainedTokenizerFast, documents: list[list[dict[str, str]]]) -> list[list[int]]:
    """Token ids of every conversation."""
    return [tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"] for messages in documents]


def packed(documents: list[list[int]], epochs: int) -> Dataset:
    """Conversations concatenated and split into sequences of `LENGTH` tokens, reshuffled each epoch."""
    shuffled = random.Random(0)
    stream: list[int] = []
    for _ in range(epochs):
        shuffled.shuffle(documents)
        stream.extend(token for ids in documents for token in ids)
    sequences = [stream[i : i + LENGTH] for i in range(0, len(stream) - LENGTH + 1, LENGTH)]
    return Dataset.from_dict({"input_ids": sequences, "labels": sequences})


def untrained_target(tokenizer, num_layers: int) -> LlamaForCausalLM:
    """The target before training."""
    set_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=num_layers,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=2 * LENGTH,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    with torch.no_grad():  # every layer starts as the identity, so that a deep stack trains from the first step
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    return model


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, required=True, help="folder of the sources; missing ones are downloaded")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--max-steps", type=int, default=2000, help="steps of 8 sequences of 512 tokens (default: 2000)"
    )
    parser.add_argument(
        "--layers", type=int, default=24, help="decoder layers; a few make an assistant for comparison (default: 24)"
    )
    arguments = parser.parse_args()
    text.fetch(arguments.text)
    training = [messages for _, messages in text.conversations(arguments.text, held_out=False)]
    held_out = [messages for _, messages in text.conversations(arguments.text, held_out=True)]
    tokenizer = make_tokenizer(training)
    model = untrained_target(tokenizer, arguments.layers)
    documents = encoded(tokenizer, training)
    tokens = sum(map(len, documents))
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {tokens:,} tokens per epoch")
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(arguments.out / "run"),
            max_steps=arguments.max_steps,
            per_device_train_batch_size=8,
            learning_rate=2e-3,
            lr_scheduler_type="cosine",
            warmup_steps=100,
            weight_decay=0.1,
            adam_beta2=0.95,
            bf16=True,
            use_cpu=not torch.accelerator.is_available(),
            logging_steps=25,
            eval_strategy="steps",
            eval_steps=200,
            per_device_eval_batch_size=8,
            save_steps=200,
            save_total_limit=2,
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=packed(documents, epochs=4),
        eval_dataset=packed(encoded(tokenizer, held_out), epochs=1),
        data_collator=default_data_collator,
    )
    trainer.train()
    print(trainer.evaluate())
    model.to(torch.bfloat16).save_pretrained(arguments.out / "target")
    tokenizer.save_pretrained(arguments.out / "target")


if __name__ == "__main__":
    main()
