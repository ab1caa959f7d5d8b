"""Networks quantized by other libraries are corrected as any other; correction touches neither weights nor classes.

The libraries come with `pip install 'iec-diffusion[quantizers]'`; `make slow` installs and runs them.
"""

import copy

import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn

import iec

from .repeated_timesteps import RepeatedTimesteps
from .tiny_diffusers import dit, generators, piped, vae

# What these libraries warn of when they are imported is not ours.
pytestmark = pytest.mark.filterwarnings("ignore")
CONFIG = iec.IECConfig(relaxation=0.5, num_iterations=2, tolerance=0.0)
REASON = "needs {}: pip install 'iec-diffusion[quantizers]'"


def library(name):
    return pytest.importorskip(name, reason=REASON.format(name.split(".")[0]))


def torchao(config, **settings):
    def quantize(network):
        quantization = library("torchao.quantization")
        quantization.quantize_(network, getattr(quantization, config)(**settings))

    return quantize


def quanto(weights):
    def quantize(network):
        optimum = library("optimum.quanto")
        optimum.quantize(network, weights=getattr(optimum, weights))
        optimum.freeze(network)

    return quantize


def bitsandbytes(kind):
    def quantize(network):
        layers = library("bitsandbytes").nn

        def replacement(linear):
            sizes = linear.in_features, linear.out_features, linear.bias is not None
            if kind == "nf4":
                new = layers.Linear4bit(*sizes, compute_dtype=torch.float32, quant_type="nf4")
                weight = layers.Params4bit(linear.weight.data.clone(), requires_grad=False, quant_type="nf4")
            else:
                new = layers.Linear8bitLt(*sizes, has_fp16_weights=False)
                weight = layers.Int8Params(linear.weight.data.clone(), requires_grad=False, has_fp16_weights=False)
            new.weight, new.bias = weight, linear.bias
            return new.to("cpu")

        replace_linear(network, replacement)

    return quantize


def gguf(network):
    quants = library("gguf")
    from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter

    def replacement(linear):
        kind = quants.GGMLQuantizationType.Q8_0
        packed = torch.from_numpy(quants.quants.quantize(linear.weight.numpy(), kind).copy())
        new = GGUFLinear(linear.in_features, linear.out_features, linear.bias is not None, compute_dtype=torch.float32)
        new.weight, new.bias = GGUFParameter(packed, quant_type=kind), linear.bias
        return new

    replace_linear(network, replacement)


def replace_linear(network, replacement):
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear and child.in_features % 32 == 0:
                setattr(module, name, replacement(child))


QUANTIZERS = {
    "torchao, int8 weights": torchao("Int8WeightOnlyConfig", version=2),
    "torchao, int8 dynamic": torchao("Int8DynamicActivationInt8WeightConfig", version=2),
    "torchao, float8 weights": torchao("Float8WeightOnlyConfig"),
    "quanto, int8": quanto("qint8"),
    "quanto, int4": quanto("qint4"),
    "bitsandbytes, nf4": bitsandbytes("nf4"),
    "bitsandbytes, int8": bitsandbytes("int8"),
    "GGUF, Q8_0": gguf,
}


def draw(pipe):
    return torch.as_tensor(pipe([1, 7], num_inference_steps=3, generator=generators(), output_type="np").images)


def parameters(network):
    return {name: (type(value), value.data_ptr()) for name, value in network.named_parameters()}


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_quantized_network_is_corrected_and_left_as_it_was(name, record_property):
    transformer = copy.deepcopy(dit(width=32))  # the libraries change it; their blocks are 32 wide
    pipe = piped("DiTPipeline", DDIMScheduler(beta_end=2e-3, clip_sample=False), transformer=transformer, vae=vae())
    full_precision = draw(pipe)
    QUANTIZERS[name](transformer)
    record_property("quantizer", name)
    plain = draw(pipe)
    assert not torch.equal(plain, full_precision)
    before = parameters(transformer), [type(module) for module in transformer.modules()]
    iec.enable(pipe, CONFIG)
    corrected = draw(pipe)
    iec.enable(pipe, iec.IECConfig(relaxation=0.0))
    assert torch.equal(draw(pipe), plain)
    iec.disable(pipe)
    assert torch.equal(draw(pipe), plain)
    assert (parameters(transformer), [type(module) for module in transformer.modules()]) == before
    pipe.scheduler = RepeatedTimesteps(DDIMScheduler(beta_end=2e-3, clip_sample=False))
    assert torch.equal(draw(pipe), corrected)
    assert (corrected - plain).abs().max() > 1e-3
