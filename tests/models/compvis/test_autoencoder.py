import pytest
import torch
from tiny_models import noise

from iec.models.compvis import convert_autoencoder
from iec.models.paper import paper_model

from .reference_autoencoder import FirstStage
from .settings import FIRST_STAGES, NAMES, tiny_first_stage, tiny_paper_model


@pytest.mark.parametrize("name", ["churches", "bedrooms"])
@torch.no_grad()
def test_the_converted_autoencoder_computes_what_the_compvis_one_does(name):
    config, theirs = tiny_paper_model(name).autoencoder, tiny_first_stage(name)
    ours = config.make()
    ours.load_state_dict(convert_autoencoder(theirs.state_dict(), config))
    latents, images = noise(2, config.settings["latent_channels"], 4, 4), noise(2, 3, 32, 32)
    decoded = theirs.decode(latents)
    assert decoded.std() > 0.1
    assert torch.allclose(ours.decode(latents).sample, decoded, rtol=0, atol=1e-5)
    encoded = ours.encode(images)
    moments = encoded.latents if name == "bedrooms" else encoded.latent_dist.parameters
    assert torch.allclose(moments, theirs.encode(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_at_full_size_every_number_is_used_exactly_once(name):
    with torch.device("meta"):
        theirs = FirstStage(**FIRST_STAGES[name]).state_dict()
    config = paper_model(name).autoencoder
    converted = convert_autoencoder(theirs, config)
    assert {key: tensor.shape for key, tensor in converted.items()} == config.shapes()
    assert sum(tensor.numel() for tensor in theirs.values()) == sum(tensor.numel() for tensor in converted.values())


def test_the_wrong_first_stage_is_refused_in_one_sentence():
    with pytest.raises(ValueError, match=r"These are not the weights of this autoencoder: .*is missing"):
        convert_autoencoder(tiny_first_stage("churches").state_dict(), tiny_paper_model("bedrooms").autoencoder)
