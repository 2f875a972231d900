"""Vision-language targets: text and image prompts, every node as decoded token by token, text identical to plain
generate.

    ids      pad pad  7  [img img img img]  9  4     two rows, padded on the left; pixel values are random
    position  0   0   0   1   1   2   2     3  4     Qwen2.5-VL counts an image's rows and columns on axes of their own
"""

import pytest
import torch
from architectures import EXTRA, tiny_config
from models import CACHE, VOCAB, left_padded, tiny_draft
from node_criterion import worst_node_error
from test_generate import SAMPLING, assert_same
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText, DynamicCache
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from vision_models import IMAGE, SHAPES, drawn_anew, prompts, tiny_vision_target

from hf_eagle3.target.parts import decoder_layers
from hf_eagle3.target.target import Target


TOLERANCE = 1e-4
LENGTHS = ([14], [15, 6, 9])  # longer than the window; ragged, padded on the left
CASES = [
    (name, with_image, lengths)
    for name in SHAPES
    for with_image in (False, True)
    for lengths in LENGTHS
    if with_image or name != "idefics"  # the first Idefics takes no prompt without an image
]


@pytest.fixture(scope="module", params=SHAPES)
def target(request):
    return request.param, tiny_vision_target(request.param)


def draft_for(target, inputs: dict):
    """A random draft over the tokens that plain generate writes most."""
    texts = [target.generate(**inputs, max_new_tokens=20, do_sample=do_sample)[:, -20:] for do_sample in (False, True)]
    return tiny_draft(
        target, tokens=torch.cat(texts).flatten().bincount(minlength=VOCAB).topk(6).indices.sort().values
    )


def calls(name: str):
    return [case[1:] for case in CASES if case[0] == name]


def test_every_node(target):
    name, model = target
    for with_image, lengths in calls(name):
        assert worst_node_error(model, prompts(name, lengths, with_image), num_nodes=16, cycles=2) < TOLERANCE


def test_text_is_identical(target):
    name, model = target
    for with_image, lengths in calls(name):
        inputs = prompts(name, lengths, with_image)
        draft, accepted = draft_for(model, inputs), 0
        for options in ({"do_sample": False}, SAMPLING):
            stats = assert_same(model, draft, inputs, max_new_tokens=20, **options)
            accepted += sum(map(sum, stats.accepted_tokens))
        assert stats.mode == SHAPES[name].mode
        assert accepted > 0, "nothing was accepted: the test shows little"


def test_an_image_changes_the_text(target):
    """Else the tests above would pass with the image left out."""
    name, model = target
    inputs = prompts(name, [14], True)
    other = inputs | {"pixel_values": -inputs["pixel_values"]}
    assert model(**inputs).logits.ne(model(**other).logits).any()


def test_an_image_is_looked_at_once(target):
    name, model = target
    inputs, looks = prompts(name, [9], True), []
    towers = ("visual", "vision_tower", "vision_model")
    tower = next(module for path, module in model.named_modules() if path.split(".")[-1] in towers)
    draft = draft_for(model, inputs)
    handle = tower.register_forward_hook(lambda *args: looks.append(1))
    model.generate(**inputs, max_new_tokens=10, do_sample=False, assistant_model=draft)
    handle.remove()
    assert len(looks) == 1


def test_the_draft_reads_the_merged_sequence(target, monkeypatch):
    """One feature per token of the prompt, image tokens included: those of the host's own hidden states."""
    name, model = target
    inputs = prompts(name, [9, 6], True)
    seen = []
    honest = Target.features
    monkeypatch.setattr(Target, "features", lambda self, out: seen.append((self, honest(self, out))) or seen[-1][1])
    model.generate(**inputs, max_new_tokens=1, do_sample=False, assistant_model=draft_for(model, inputs))
    adapter, features = seen[0]
    layers = decoder_layers(model)
    expected = {}
    handles = [
        layers[i].register_forward_hook(lambda module, args, output, i=i: expected.setdefault(i, output))
        for i in adapter.layer_ids
    ]
    model.generate(**inputs, max_new_tokens=1, do_sample=False)
    for handle in handles:
        handle.remove()
    parts = [expected[i] if isinstance(expected[i], torch.Tensor) else expected[i][0] for i in adapter.layer_ids]
    torch.testing.assert_close(features, torch.cat(parts, dim=-1))
    assert features.shape[:2] == inputs["input_ids"].shape


def test_turns_over_one_cache():
    """The second turn's text stands behind an image: Qwen keeps how far its positions are behind in the model."""
    model = tiny_vision_target("qwen2_5_vl")
    first = prompts("qwen2_5_vl", [9], True)
    draft, texts = draft_for(model, first), []
    for assistant in (None, draft):
        cache, inputs = DynamicCache(config=model.config), first
        for _ in range(3):
            ids = model.generate(
                **inputs, **{CACHE: cache}, max_new_tokens=15, do_sample=False, assistant_model=assistant
            )
            ids = torch.cat((ids, torch.tensor([[5, 9, 4]])), dim=1)
            inputs = {
                "input_ids": ids,
                "attention_mask": torch.ones_like(ids),
                "mm_token_type_ids": (ids == IMAGE).long()
                * (torch.arange(ids.shape[1]) < first["input_ids"].shape[1]),
            }
        texts.append(ids.tolist())
    assert texts[0] == texts[1]


def test_several_answers_to_one_image():
    model = tiny_vision_target("qwen2_5_vl")
    inputs = prompts("qwen2_5_vl", [9, 6], True)
    options = {"max_new_tokens": 20, "num_return_sequences": 3, "eos_token_id": 5}
    assert_same(model, draft_for(model, inputs), inputs, **options, **SAMPLING)


def test_image_tokens_beyond_the_vocabulary():
    """Some checkpoints' image token has no embedding row; the host reads another row there, and so does the draft."""
    model = tiny_vision_target("paligemma", image_token_index=VOCAB)
    inputs = prompts("paligemma", [9, 6], True)
    inputs["input_ids"] = inputs["input_ids"].where(inputs["input_ids"] != IMAGE, VOCAB)
    assert_same(model, draft_for(model, inputs), inputs, max_new_tokens=20, do_sample=False)


def test_a_layer_that_runs_on_images_only_cannot_be_tapped():
    model = tiny_vision_target("mllama")
    with pytest.raises(ValueError, match=r"taps layers \[0, 1, 3\], of which the target runs \[3\] on images only"):
        model.generate(
            **prompts("mllama", [9], True),
            assistant_model=tiny_draft(model, tokens=range(6), target_layer_ids=[0, 1, 3]),
        )


@pytest.mark.nightly
@pytest.mark.parametrize("name", sorted(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES))
def test_text_prompts_of_every_family(name):
    """Prompts without an image, in every family of the host that takes them and that one recipe makes small."""
    try:
        model = AutoModelForImageTextToText.from_config(tiny_config(CONFIG_MAPPING[name], **EXTRA.get(name, {})))
        drawn_anew(model.eval(), 0.15)
        inputs = left_padded([15, 6, 9])
        draft = draft_for(model, inputs)
    except Exception as error:
        pytest.xfail(f"{name} cannot be built tiny, or takes no text alone: {type(error).__name__}: {error}")
    if model.config.is_encoder_decoder or name in ("git", "kosmos-2", "kosmos-2.5"):
        with pytest.raises(ValueError, match="cannot speed up"):
            model.generate(**inputs, max_new_tokens=5, assistant_model=draft)
        return
    for lengths in LENGTHS:
        for options in ({"do_sample": False}, SAMPLING):
            stats = assert_same(model, draft, left_padded(lengths), max_new_tokens=20, **options)
    assert (stats.mode == "plain") == (name in ("minimax_m3_vl", "unlimited_ocr"))  # unsteady with padding
