"""Tiny pipelines whose transformer can be cached, each with its guided model output written out beside it."""

from contextlib import contextmanager

import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    WanPipeline,
    WanTransformer3DModel,
)
from tiny_models import noise, seeded

STEPS = 6
GUIDANCE = 2.0


class Kind:
    """One pipeline: how to make it, to draw from it, and to loop over its schedule by hand."""

    denoiser = "transformer"
    shape: tuple[int, ...]

    def start(self, batch=2):
        return noise(batch, *self.shape, seed=3)

    def network_of(self, pipe):
        return getattr(pipe, self.denoiser)


class Flux(Kind):
    """One call per step, in the cache context `cond`."""

    parts = "vae text_encoder tokenizer text_encoder_2 tokenizer_2"
    shape = (16, 4)

    def network(self):
        settings = {"num_layers": 1, "num_single_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2}
        sizes = {"joint_attention_dim": 8, "pooled_projection_dim": 8, "axes_dims_rope": (2, 2, 4)}
        return seeded(FluxTransformer2DModel(patch_size=1, in_channels=4, **settings, **sizes))

    def pipe(self, network=None):
        scheduler = FlowMatchEulerDiscreteScheduler()
        return _quiet(
            FluxPipeline(scheduler, transformer=network or self.network(), **dict.fromkeys(self.parts.split()))
        )

    def draw(self, pipe, batch=2, steps=STEPS, **kwargs):
        inputs = {"prompt_embeds": noise(batch, 5, 8, seed=1), "pooled_prompt_embeds": noise(batch, 8, seed=2)}
        sizes = {"height": 64, "width": 64, "num_inference_steps": steps, "output_type": "latent"}
        return pipe(**inputs, latents=self.start(batch), **sizes, **kwargs).images

    def schedule(self, steps=STEPS):
        """The timesteps, and (i, x, e) -> x_{t-1}."""
        scheduler = FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps(steps, sigmas=torch.linspace(1, 1 / steps, steps).numpy())
        sigmas = scheduler.sigmas
        return scheduler.timesteps, lambda i, x, e: x + (sigmas[i + 1] - sigmas[i]) * e

    def guided(self, network, x, t, i=0, steps=STEPS):
        """The model output that the pipeline steps with."""
        ids = torch.zeros(16, 3)
        ids[:, 1], ids[:, 2] = torch.arange(16) // 4, torch.arange(16) % 4
        with network.cache_context("cond"):
            return network(
                hidden_states=x,
                timestep=t.expand(len(x)) / 1000,
                pooled_projections=noise(len(x), 8, seed=2),
                encoder_hidden_states=noise(len(x), 5, 8, seed=1),
                txt_ids=torch.zeros(5, 3),
                img_ids=ids,
                return_dict=False,
            )[0]


class Wan(Kind):
    """Guidance in two calls per step, in the cache contexts `cond` and `uncond`."""

    parts = "vae text_encoder tokenizer"
    shape = (4, 1, 4, 4)

    def network(self):
        settings = {"num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 3, "ffn_dim": 16}
        sizes = {"in_channels": 4, "out_channels": 4, "text_dim": 8, "freq_dim": 8, "rope_max_seq_len": 8}
        return seeded(WanTransformer3DModel(**settings, **sizes, cross_attn_norm=True))

    def pipe(self, network=None):
        parts = dict.fromkeys(self.parts.split())
        return _quiet(
            WanPipeline(scheduler=FlowMatchEulerDiscreteScheduler(), transformer=network or self.network(), **parts)
        )

    def draw(self, pipe, batch=2, steps=STEPS, **kwargs):
        prompts = {"prompt_embeds": noise(batch, 5, 8, seed=1), "negative_prompt_embeds": noise(batch, 5, 8, seed=2)}
        sizes = {"height": 32, "width": 32, "num_frames": 1, "num_inference_steps": steps, "output_type": "latent"}
        return pipe(**prompts, latents=self.start(batch), guidance_scale=GUIDANCE, **sizes, **kwargs).frames

    def schedule(self, steps=STEPS):
        scheduler = FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps(steps)
        sigmas = scheduler.sigmas
        return scheduler.timesteps, lambda i, x, e: x + (sigmas[i + 1] - sigmas[i]) * e

    def guided(self, network, x, t, i=0, steps=STEPS):
        sigmas = [*(self.schedule(steps)[0] / 1000), 0.0]
        outputs = []
        for context, seed in (("cond", 1), ("uncond", 2)):
            embeddings = noise(len(x), 5, 8, seed=seed)
            place = {"step_index": i, "sigma": float(sigmas[i]), "num_inference_steps": steps}
            with network.cache_context(context, **place):
                outputs.append(network(x, t.expand(len(x)), embeddings, return_dict=False)[0])
        conditional, unconditional = outputs
        return unconditional + GUIDANCE * (conditional - unconditional)


class CogVideoX(Kind):
    """Guidance in one call of a doubled batch."""

    parts = "vae text_encoder tokenizer"
    shape = (2, 4, 4, 4)

    def network(self):
        settings = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 3, "time_embed_dim": 4}
        sizes = {"in_channels": 4, "out_channels": 4, "text_embed_dim": 8, "sample_width": 4, "sample_height": 4}
        return seeded(CogVideoXTransformer3DModel(**settings, **sizes, sample_frames=5, max_text_seq_length=5))

    def pipe(self, network=None):
        parts = dict.fromkeys(self.parts.split())
        return _quiet(
            CogVideoXPipeline(scheduler=CogVideoXDDIMScheduler(), transformer=network or self.network(), **parts)
        )

    def draw(self, pipe, batch=2, steps=STEPS, **kwargs):
        prompts = {"prompt_embeds": noise(batch, 5, 8, seed=1), "negative_prompt_embeds": noise(batch, 5, 8, seed=2)}
        sizes = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": steps, "output_type": "latent"}
        return pipe(**prompts, latents=self.start(batch), guidance_scale=GUIDANCE, **sizes, **kwargs).frames

    def schedule(self, steps=STEPS):
        scheduler = CogVideoXDDIMScheduler()
        scheduler.set_timesteps(steps)
        return scheduler.timesteps, lambda i, x, e: scheduler.step(e, scheduler.timesteps[i], x, return_dict=False)[0]

    def guided(self, network, x, t, i=0, steps=STEPS):
        embeddings = torch.cat([noise(len(x), 5, 8, seed=2), noise(len(x), 5, 8, seed=1)])
        with network.cache_context("cond_uncond"):
            output = network(
                hidden_states=torch.cat([x, x]),
                encoder_hidden_states=embeddings,
                timestep=t.expand(2 * len(x)),
                return_dict=False,
            )[0]
        unconditional, conditional = output.chunk(2)
        return unconditional + GUIDANCE * (conditional - unconditional)


class StableDiffusion(Kind):
    """A UNet; guidance in one call of a doubled batch."""

    denoiser = "unet"
    parts = "vae text_encoder tokenizer safety_checker feature_extractor"
    shape = (4, 8, 8)

    def network(self):
        blocks = {
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "block_out_channels": (4, 8),
        }
        sizes = {"sample_size": 8, "cross_attention_dim": 8, "attention_head_dim": 2, "norm_num_groups": 2}
        return seeded(UNet2DConditionModel(in_channels=4, out_channels=4, layers_per_block=1, **blocks, **sizes))

    def scheduler(self):
        return DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1, beta_end=2e-3)

    def pipe(self, network=None):
        parts = dict.fromkeys(self.parts.split())
        unet = network or self.network()
        return _quiet(
            StableDiffusionPipeline(**parts, scheduler=self.scheduler(), unet=unet, requires_safety_checker=False)
        )

    def draw(self, pipe, batch=2, steps=STEPS, **kwargs):
        prompts = {"prompt_embeds": noise(batch, 5, 8, seed=1), "negative_prompt_embeds": noise(batch, 5, 8, seed=2)}
        sizes = {"num_inference_steps": steps, "output_type": "latent"}
        return pipe(**prompts, latents=self.start(batch), guidance_scale=GUIDANCE, **sizes, **kwargs).images

    def schedule(self, steps=STEPS):
        scheduler = self.scheduler()
        scheduler.set_timesteps(steps)
        return scheduler.timesteps, lambda i, x, e: scheduler.step(e, scheduler.timesteps[i], x).prev_sample

    def guided(self, network, x, t, i=0, steps=STEPS):
        embeddings = torch.cat([noise(len(x), 5, 8, seed=2), noise(len(x), 5, 8, seed=1)])
        output = network(torch.cat([x, x]), t, encoder_hidden_states=embeddings, return_dict=False)[0]
        unconditional, conditional = output.chunk(2)
        return unconditional + GUIDANCE * (conditional - unconditional)


class Computed:
    """Counts the rows that pass through linear and convolutional layers of a network, while it exists."""

    def __init__(self, network):
        layers = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.Conv3d)
        self.rows = 0
        for module in network.modules():
            if isinstance(module, layers):
                module.register_forward_hook(self._count)

    def _count(self, module, args, output):
        self.rows += len(args[0])

    @contextmanager
    def during(self):
        """The rows of a block of code, as the only item of a list that is filled at its end."""
        result, before = [], self.rows
        yield result
        result.append(self.rows - before)


def _quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe
