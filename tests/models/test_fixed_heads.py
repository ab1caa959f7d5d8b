import pytest
import torch
from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention, AttnProcessor
from tiny_models import noise, seeded

from iec.models.fixed_heads import FixedHeadsUNet2DModel

SETTINGS = {
    "sample_size": 8,
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "down_block_types": ("AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D"),
}


def heads(unet):
    return {module.heads for module in unet.modules() if isinstance(module, Attention)}


@torch.no_grad()
def test_where_the_widths_agree_it_is_diffusers_own_unet():
    widths = {"block_out_channels": (8, 8)}
    theirs = seeded(UNet2DModel(**SETTINGS, **widths, attention_head_dim=2))
    ours = seeded(FixedHeadsUNet2DModel(4, **SETTINGS, **widths))
    x, t = noise(2, 3, 8, 8), torch.tensor([3, 500])
    assert torch.equal(ours(x, t).sample, theirs(x, t).sample)
    for module in ours.modules():
        if isinstance(module, Attention):
            module.set_processor(AttnProcessor())  # reads the scale, which the fused one works out itself
    assert torch.allclose(ours(x, t).sample, theirs(x, t).sample, rtol=0, atol=1e-5)
    other = seeded(FixedHeadsUNet2DModel(2, **SETTINGS, **widths))
    assert not torch.allclose(other(x, t).sample, theirs(x, t).sample)


def test_the_number_of_heads_is_the_same_at_every_level_and_is_saved(tmp_path):
    unet = FixedHeadsUNet2DModel(num_attention_heads=4, block_out_channels=(8, 16), **SETTINGS)
    assert heads(unet) == {4}
    unet.save_pretrained(tmp_path)
    loaded = FixedHeadsUNet2DModel.from_pretrained(tmp_path)
    assert heads(loaded) == {4}
    assert (loaded.config.num_attention_heads, loaded.config.block_out_channels) == (4, [8, 16])
    x, t = noise(2, 3, 8, 8), torch.tensor([3, 500])
    with torch.no_grad():
        assert torch.equal(loaded(x, t).sample, unet.eval()(x, t).sample)


def test_heads_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(ValueError, match="3 heads do not divide the 8 channels of 'down_blocks"):
        FixedHeadsUNet2DModel(3, block_out_channels=(8, 16), **SETTINGS)
