"""Tiny models with random weights from a fixed seed, and what the tests of several rooms need around them."""

from contextlib import contextmanager

import torch
from diffusers import DDIMPipeline, DDIMScheduler, ModelMixin, UNet2DModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode


class TinyNet(ModelMixin, ConfigMixin):
    """One convolution and the timestep behind the interface of a UNet2DModel: a tenth of a millisecond a call."""

    @register_to_config
    def __init__(self, sample_size=6, in_channels=3):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, in_channels, 3, padding=1)

    def forward(self, sample, timestep, return_dict=True):
        t = torch.as_tensor(timestep).reshape(-1, 1, 1, 1).to(sample.dtype)
        output = torch.tanh(self.conv(sample) + torch.sin(sample + t / 300))
        return UNet2DOutput(sample=output) if return_dict else (output,)


def tiny_net(seed=0, **settings):
    return seeded(TinyNet(**settings), seed)


def tiny_unet(seed=0, **settings):
    """A UNet2DModel of two levels; `settings` change its architecture."""
    defaults = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "layers_per_block": 1,
        "attention_head_dim": 4,
        "add_attention": False,
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
    }
    return seeded(UNet2DModel(**{**defaults, **settings}), seed)


def seeded(model, seed=0):
    """Random weights everywhere, biases and norms included, so that no zero hides an effect."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            fan_in = max(1, parameter[0].numel() if parameter.dim() > 1 else 1)
            noise = torch.randn(parameter.shape, generator=generator)
            scaled = noise / fan_in**0.5 if parameter.dim() > 1 else 0.2 * noise
            is_scale = parameter.dim() == 1 and name.endswith("weight")
            parameter.copy_(scaled + 1 if is_scale else scaled)
    return model.eval().requires_grad_(False)


def ddim_pipe(unet=None, scheduler=None, **settings):
    """A DDIMPipeline without a progress bar; few steps leave its state near [-1, 1] since the betas are small."""
    settings = {"beta_end": 2e-3, "clip_sample": False, **settings}
    pipe = DDIMPipeline(tiny_net() if unet is None else unet, DDIMScheduler(**settings))
    if scheduler is not None:
        pipe.scheduler = scheduler  # past the constructor, which makes a DDIMScheduler of any other
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, steps=4, batch=2, seed=0, **kwargs):
    """The images of one call, as a tensor, each from its own generator."""
    generators = image_generators(batch, seed)
    output = pipe(batch_size=batch, generator=generators, num_inference_steps=steps, output_type="pt", **kwargs)
    return output.images


def image_generators(count, seed=0):
    return [torch.Generator().manual_seed(1000 * seed + i) for i in range(count)]


def noise(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def first_layer(model):
    return model.conv if isinstance(model, TinyNet) else model.conv_in


@contextmanager
def recorded_inputs(model):
    """The inputs of every evaluation of `model`, seen from inside it, where no interception takes place."""
    inputs = []
    with on_evaluation(model, lambda x: inputs.append(x.clone())):
        yield inputs


@contextmanager
def on_evaluation(model, action):
    """Call `action(x)` at every evaluation of `model`."""

    def hook(module, args):
        action(args[0])  # what it returns would replace the input

    handle = first_layer(model).register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


class LiveTensors(TorchDispatchMode):
    """The bytes of all storages that were made while it is on and are still alive; `peak` is their maximum."""

    def __init__(self):
        super().__init__()
        self.storages = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(output):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.storages.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
        self.peak = max(self.peak, self.bytes)
        return output

    @property
    def bytes(self):
        self.storages = {key: entry for key, entry in self.storages.items() if not entry[0].expired()}
        return sum(size for _, size in self.storages.values())
