import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from tiny_models import ddim_pipe, tiny_unet

from iec.experiments.compared_model import load_compared
from iec.models.loading import load_pipeline
from iec.models.unconditional import UnconditionalPipeline


def saved(tmp_path, unet=None, scheduler=None, **settings):
    small = {"sample_size": 32, "block_out_channels": (4, 4), "norm_num_groups": 2}
    pipe = ddim_pipe(tiny_unet(**{**small, **settings}), **(scheduler or {}))
    pipe.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_a_folder_is_sampled_with_ddim_on_the_spacing_asked_for(tmp_path):
    pipe = load_compared(saved(tmp_path), torch.float32, "linspace")
    assert type(pipe).__name__ == "UnconditionalPipeline"
    assert pipe.scheduler.config.spacing == "linspace"
    assert pipe.scheduler.config.beta_end == 2e-3


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"out_channels": 6}, "6 channels of 3"),
        ({"num_class_embeds": 10}, "needs class labels"),
        ({"scheduler": {"prediction_type": "v_prediction"}}, "must predict the noise"),
    ],
)
def test_a_model_that_cannot_be_sampled_is_refused(tmp_path, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_compared(saved(tmp_path, **settings), torch.float32, "quad")


def test_a_model_of_flow_matching_is_refused_wherever_ddim_should_take_it(tmp_path):
    pipe = ddim_pipe(tiny_unet())
    UnconditionalPipeline(pipe.unet, FlowMatchEulerDiscreteScheduler()).save_pretrained(tmp_path / "model")
    for load in (
        lambda: load_compared(tmp_path / "model", torch.float32, "linspace"),
        lambda: load_pipeline(tmp_path / "model", spacing="uniform"),
    ):
        with pytest.raises(ValueError, match="FlowMatchEulerDiscreteScheduler has no noise levels alpha-bar"):
            load()


def test_an_unknown_spacing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="one time grid: use the spacing quad, uniform, linspace"):
        load_compared("anything", torch.float32, "scheduler")
