"""Corrections that cost no evaluation, as `sample_to_folder` takes and records them."""

import json

import pytest
from diffusers import DDPMScheduler, PNDMScheduler
from tiny_models import ddim_pipe, tiny_unet

import iec
from iec.efficient import DeepCacheConfig, QuantizationConfig, apply, calibrate
from iec.evaluation.corrections import recorded_correction
from iec.evaluation.sampling import sample_to_folder
from iec.pipelines import CorrectionPlan


def sample(folder, correction, steps=4, scheduler=None, **settings):
    pipe = ddim_pipe(tiny_unet(), scheduler)
    return sample_to_folder(pipe, folder, 2, steps, batch_size=2, correction=correction, **settings)


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    """Two folders with plans of the same model, from other trajectories."""
    folders = [tmp_path_factory.mktemp("plans") / name for name in ("first", "second")]
    for seed, folder in enumerate(folders):
        iec.calibrate_correction(ddim_pipe(tiny_unet()), 4, samples=8, seed=seed).save_pretrained(folder)
    return folders


def test_records_tell_corrections_apart_and_those_of_iec_are_as_they_were(plans):
    first, second = map(CorrectionPlan.from_pretrained, plans)
    found = [
        recorded_correction(correction, 4)
        for correction in (None, iec.IECConfig(), iec.AdamsConfig(), iec.AdamsConfig(0.6), first, second)
    ]
    assert found[:2] == [None, iec.IECConfig().to_dict()]
    assert len({json.dumps(record) for record in found}) == len(found)
    assert recorded_correction(CorrectionPlan.from_pretrained(plans[0]), 4) == found[4]
    # The default of Adams' correction is its number.
    assert recorded_correction(iec.AdamsConfig(iec.AdamsConfig().relaxation_over(4)), 4) == found[2]


def test_a_plan_or_its_folder_corrects_and_another_one_is_refused(plans, tmp_path):
    sample(tmp_path, plans[0])
    images = (tmp_path / "000000.png").read_bytes()
    (tmp_path / "000000.png").unlink()
    folder = sample(tmp_path, CorrectionPlan.from_pretrained(plans[0]))
    assert (tmp_path / "000000.png").read_bytes() == images
    assert folder.to_dict()["cost"]["full_evaluations"] == 4
    for other in (plans[1], iec.AdamsConfig(), None):
        with pytest.raises(ValueError, match="holds a run with correction"):
            sample(tmp_path, other)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"steps": 5}, "calibrated for 4 steps, but the run has 5"),
        ({"technique": DeepCacheConfig(2)}, "calibrated with the technique 'none'"),
        ({"scheduler": PNDMScheduler(skip_prk_steps=True)}, "calibrated with DDIMScheduler"),
    ],
)
def test_a_plan_of_another_run_is_refused_before_the_folder_is_touched(plans, tmp_path, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        sample(tmp_path / "out", plans[0], **settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("scheduler", "sentence"),
    [
        (PNDMScheduler(skip_prk_steps=True), "extrapolates earlier outputs already"),
        (DDPMScheduler(), "draws noise at its steps"),
    ],
)
def test_adams_beside_another_extrapolation_or_noise_is_refused_before_the_folder_is_touched(
    tmp_path, scheduler, sentence
):
    with pytest.raises(ValueError, match=sentence):
        sample(tmp_path / "out", iec.AdamsConfig(), scheduler=scheduler)
    assert not (tmp_path / "out").exists()


def test_the_correction_inside_a_techniques_folder_is_no_part_of_its_identity(tmp_path):
    pipe = ddim_pipe(tiny_unet())
    calibrate(pipe, QuantizationConfig(), 4, samples=8).save_pretrained(tmp_path / "plan")
    before = sample(tmp_path / "out", None, technique=tmp_path / "plan").settings["plan"]
    apply(pipe, tmp_path / "plan")
    iec.calibrate_correction(pipe, 4, samples=8).save_pretrained(tmp_path / "plan" / "correction")
    assert sample(tmp_path / "out", None, technique=tmp_path / "plan").settings["plan"] == before
