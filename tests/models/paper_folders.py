"""The paper's five models in small as diffusers folders: the classes, blocks and samplers stay, the widths shrink."""

from dataclasses import replace

from diffusers import DDPMPipeline, DDPMScheduler, PNDMScheduler, StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from tiny_models import seeded
from transformers import CLIPConfig, CLIPImageProcessor, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from iec.models.latent import ClassLatentPipeline, LatentPipeline

from .compvis.settings import tiny_paper_model


def save_paper_model(model, folder):
    """Random weights for a model of `tiny_paper_model`."""
    unet = seeded(model.unet.make())
    if model.autoencoder is None:
        DDPMPipeline(unet, DDPMScheduler()).save_pretrained(folder)  # the hub's scheduler clips
    elif model.takes_prompts:
        stable_diffusion(model, unet).save_pretrained(folder)
    else:
        vae, scheduler = seeded(model.autoencoder.make()), model.scheduler.make()
        if model.class_embedder is None:
            pipe = LatentPipeline(vae, unet, scheduler)
        else:
            pipe = ClassLatentPipeline(vae, seeded(model.class_embedder.make()), unet, scheduler)
        pipe.save_pretrained(folder)


def stable_diffusion(model, unet):
    """Its safety checker calls everything unsafe; its tokenizer knows the words a and b."""
    small = {"hidden_size": 6, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision = {**small, "image_size": 4, "patch_size": 2}
    checker = StableDiffusionSafetyChecker(CLIPConfig(text_config=small, vision_config=vision, projection_dim=4))
    checker.concept_embeds_weights.data.fill_(-9.0)
    words = {word: i for i, word in enumerate(("a</w>", "b</w>", "<|startoftext|>", "<|endoftext|>"))}
    ids = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 3}
    text = CLIPTextConfig(vocab_size=4, max_position_embeddings=5, **small, **ids)
    return StableDiffusionPipeline(
        vae=seeded(model.autoencoder.make()),
        unet=unet,
        scheduler=PNDMScheduler(),
        safety_checker=checker,
        feature_extractor=CLIPImageProcessor(size={"shortest_edge": 4}, crop_size={"height": 4, "width": 4}),
        text_encoder=seeded(CLIPTextModel(text)),
        tokenizer=CLIPTokenizer(words, [], model_max_length=5),
    )


def small_paper_model(name):
    """A tiny model whose images have 32x32 pixels, as the embedded feature network sees them, and few steps."""
    model = tiny_paper_model(name)
    unet, autoencoder = {**model.unet.settings, "layers_per_block": 1}, model.autoencoder
    if name == "cifar10":
        unet["sample_size"] = 32
    if name == "coco":
        unet["sample_size"] = 4
    if name == "churches":  # its five levels need latents of 16x16, so that the autoencoder has two
        vae = dict(autoencoder.settings)
        for key in ("block_out_channels", "down_block_types", "up_block_types"):
            vae[key] = vae[key][:2]
        autoencoder = replace(autoencoder, settings=vae)
    return replace(
        model,
        unet=replace(model.unet, settings=unet),
        autoencoder=autoencoder,
        num_steps=4,
        calibration=8,
        batch_size=5,
    )
