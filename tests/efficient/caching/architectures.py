"""UNets of every kind of block that DeepCache cuts, and runs of them at chosen steps."""

import torch
from diffusers import UNet2DModel
from tiny_models import noise, tiny_unet

from iec.method.clock import Clock

THREE = {"block_out_channels": (8, 16, 16), "sample_size": 8}
ARCHITECTURES = {
    "plain": {},
    "one level": {"block_out_channels": (8,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)},
    "two layers and attention": {
        **THREE,
        "layers_per_block": 2,
        "add_attention": True,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    },
    "attention everywhere, resnet samplers": {
        "down_block_types": ("AttnDownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D"),
        "downsample_type": "resnet",
        "upsample_type": "resnet",
    },
    "resnet blocks": {
        **THREE,
        "layers_per_block": 2,
        "down_block_types": ("ResnetDownsampleBlock2D", "ResnetDownsampleBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "ResnetUpsampleBlock2D", "ResnetUpsampleBlock2D"),
    },
    "mixed, other embeddings": {
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "resnet_time_scale_shift": "scale_shift",
        "center_input_sample": True,
        "time_embedding_type": "fourier",
    },
    "classes": {"num_class_embeds": 3, "layers_per_block": 2},
    "no middle": {"mid_block_type": None, **THREE, "down_block_types": ("DownBlock2D",) * 3}
    | {"up_block_types": ("UpBlock2D",) * 3},
}
# 1 (the input convolution) + a ResNet per layer + a downsampler per level but the last.
ENTRIES = {
    name: 1
    + len(settings.get("block_out_channels", (8, 16))) * settings.get("layers_per_block", 1)
    + len(settings.get("block_out_channels", (8, 16)))
    - 1
    for name, settings in ARCHITECTURES.items()
}
BRANCHES = [(name, branch) for name, count in ENTRIES.items() for branch in range(count)]


def build(name, seed=0):
    return tiny_unet(seed, **ARCHITECTURES[name])


def inputs_of(unet, seed=0, batch=2):
    """The arguments of one evaluation."""
    x = noise(batch, 3, unet.config.sample_size, unet.config.sample_size, seed=seed)
    labels = {"class_labels": torch.tensor([0, 2])[:batch]} if unet.config.num_class_embeds else {}
    return (x, torch.tensor([700 - 100 * seed] * batch)), labels


def evaluate(unet, clock, step, seed=0):
    """One evaluation at `step` of the run."""
    clock.step = step
    clock.begin_pass(0)
    args, kwargs = inputs_of(unet, seed)
    with torch.no_grad():
        return unet(*args, **kwargs).sample


def plain(unet, seed=0):
    args, kwargs = inputs_of(unet, seed)
    with torch.no_grad():
        return UNet2DModel.forward(unet, *args, **kwargs).sample


def run_of(num_steps=10):
    return Clock(num_steps)


def decoder_resnets(unet):
    return [resnet for block in unet.up_blocks for resnet in block.resnets]


def skip_channels(unet):
    """The channels of every encoder entry, read off a plain evaluation with forward hooks."""
    channels = []

    def conv_in(module, args, output):
        channels.append(output.shape[1])

    def block(module, args, output):
        channels.extend(entry.shape[1] for entry in output[1])

    handles = [unet.conv_in.register_forward_hook(conv_in)]
    handles += [down.register_forward_hook(block) for down in unet.down_blocks]
    try:
        plain(unet)
    finally:
        for handle in handles:
            handle.remove()
    return channels


def reference_cached_step(unet, branch, full_seed, cached_seed):
    """The plain UNet at `cached_seed`, where the re-entry ResNet gets the main input it had at `full_seed`."""
    resnet = decoder_resnets(unet)[-1 - branch]
    skip = skip_channels(unet)[branch]
    stored = []

    def capture(module, args):
        stored.append(args[0][:, :-skip].clone())

    def replace(module, args):
        return (torch.cat([stored[0], args[0][:, -skip:]], 1), *args[1:])

    handle = resnet.register_forward_pre_hook(capture)
    plain(unet, full_seed)
    handle.remove()
    handle = resnet.register_forward_pre_hook(replace)
    output = plain(unet, cached_seed)
    handle.remove()
    return output
