"""The CLIP score on a tiny model with random weights, and its input against Pillow's."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

import iec.evaluation.metrics.extras as extras
from iec.evaluation.image_sets import TensorImages
from iec.evaluation.metrics.clip import ClipScore, clip_figure, prepare

PROMPTS = ["a cat", "the dog", "cats"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    vocabulary.write_text(json.dumps({word: i for i, word in enumerate(words)}))
    merges.write_text("#version: 0.2\n")
    CLIPTokenizer(str(vocabulary), str(merges)).save_pretrained(folder)
    tiny = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {
        **tiny, "vocab_size": len(words), "max_position_embeddings": 12,
        "bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1, "pad_token_id": len(words) - 1,
    }  # fmt: skip
    vision = {**tiny, "image_size": 16, "patch_size": 8}
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    CLIPModel(config).eval().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def score(folder):
    return ClipScore.load(str(folder))


def draw(n, height=20, width=30):
    coarse = torch.rand(n, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    return (torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear") * 255).to(torch.uint8)


def test_the_score_is_the_cosine_of_image_and_text_alone(score):
    images = draw(3)
    found = score(images, PROMPTS)
    for image, prompt, value in zip(images, PROMPTS, found, strict=True):
        # One image and one prompt at a time: no padding, and the projections by hand.
        tokens = score.tokenizer(prompt, return_tensors="pt")["input_ids"]
        assert tokens.shape[1] == len(prompt.replace(" ", "")) + 2
        text = score.model.text_projection(score.model.text_model(tokens).pooler_output)[0]
        pixels = prepare(image[None], 16)
        vision = score.model.visual_projection(score.model.vision_model(pixels).pooler_output)[0]
        cosine = (text @ vision / text.norm() / vision.norm()).item()
        assert value.item() == pytest.approx(max(100 * cosine, 0), abs=1e-4)
    assert (found > 0).any()


@pytest.mark.parametrize(("height", "width"), [(20, 30), (33, 17), (16, 16)])
def test_the_input_is_what_pillow_makes(height, width):
    images = draw(2, height, width)
    found = prepare(images, 16)
    scale = 16 / min(height, width)
    size = max(16, int(width * scale)), max(16, int(height * scale))
    for image, pixels in zip(images, found, strict=True):
        resized = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(size, Image.Resampling.BICUBIC)
        left, top = (size[0] - 16) // 2, (size[1] - 16) // 2
        square = np.asarray(resized.crop((left, top, left + 16, top + 16))) / 255
        expected = (square - [0.48145466, 0.4578275, 0.40821073]) / [0.26862954, 0.26130258, 0.27577711]
        # One of 255 levels, since Pillow rounds between its two passes.
        assert np.abs(pixels.permute(1, 2, 0).numpy() - expected).max() < 1.01 / 255 / 0.26


@pytest.mark.parametrize("batch_size", [4, 50])
def test_the_figure_uses_prompts_in_turn_whatever_the_batches(score, batch_size):
    images = draw(11)
    figure = clip_figure(TensorImages(images), PROMPTS, score, batch_size)
    alone = [score(images[i : i + 1], [PROMPTS[i % 3]]).item() for i in range(11)]
    assert figure.estimate.value == pytest.approx(sum(alone) / 11, abs=1e-4)
    assert (figure.images, figure.better) == (11, "higher")


def test_long_prompts_are_cut(score):
    assert torch.isfinite(score(draw(1), ["a very long prompt without any end to it"])).all()


def test_a_model_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"CLIP model .* could not be loaded"):
        ClipScore.load(str(tmp_path))


def test_a_missing_extra_is_one_sentence_that_says_what_to_install(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(extras, "import_module", missing)
    with pytest.raises(ValueError, match=r"needs the extra 'clip', .* pip install 'iec-diffusion\[clip\]'"):
        ClipScore.load("any")
