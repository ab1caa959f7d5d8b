"""In a refreshing pass, a sample whose correction is not finite keeps its features, and the others get new ones."""

import torch

import iec
from iec.method import current_clock

from .techniques import TECHNIQUES, parametrized

# The others decide by a mean over the batch, which a broken sample changes.
APART = [parameter for parameter in TECHNIQUES if not parameter.values[0].adaptive]
# Where the latents enter each network: the module, and which of its arguments they are.
ENTRIES = {
    "Flux": ("x_embedder", 0),
    "Wan": ("patch_embedding", 0),
    "CogVideoX": ("patch_embed", 1),
    "StableDiffusion": ("conv_in", 0),
}


@parametrized(APART)
def test_each_of_two_samples_keeps_or_refreshes_its_own_features(technique):
    pipe = technique.pipe()
    name, place = ENTRIES[technique.kind.__name__]

    def spoil_sample_1(module, args):
        if current_clock().pass_index == 0:
            return args
        latents = args[place].clone()
        latents.unflatten(0, (-1, 2))[:, 1] = torch.inf  # in every part of a guided batch
        return (*args[:place], latents, *args[place + 1 :])

    uncorrected = technique.draw(pipe)
    iec.enable(pipe, iec.IECConfig(cache="refresh"))
    healthy = technique.draw(pipe)
    getattr(technique.network(pipe), name).register_forward_pre_hook(spoil_sample_1)
    result = technique.draw(pipe)
    corrected = [record for record in iec.summary(pipe).steps if record.corrected]
    assert corrected
    assert all(record.samples_fell_back == [1] for record in corrected)
    assert torch.equal(result[0], healthy[0])
    assert torch.equal(result[1], uncorrected[1])
    assert (healthy - uncorrected).flatten(1).abs().amax(1).gt(1e-3).all()
