"""Rows of a paper table with every kind of correction, on tiny models of the paper's classes."""

from dataclasses import replace

import pytest
from models.paper_folders import save_paper_model, small_paper_model

import iec
from iec.efficient import DeepCacheConfig, QuantizationConfig
from iec.experiments.corrections import CALIBRATED, FITTED_IEC, FittedCorrection
from iec.experiments.paper.sampling import PaperSampler
from iec.experiments.settings import Setting
from iec.models.paper import load_paper_model

CORRECTIONS = [None, iec.IECConfig.paper(), iec.AdamsConfig(), CALIBRATED, FITTED_IEC]


@pytest.fixture
def sampler_of(tmp_path):
    """The sampler of a data set's tiny model."""

    def make(name):
        model = replace(small_paper_model(name), calibration=8)
        save_paper_model(model, tmp_path / name)
        pipe = load_paper_model(model, tmp_path / name)
        prompts = ("a", "b a") if model.takes_prompts else ()
        return PaperSampler(pipe, model, name, tmp_path / "results", 10, 10, prompts=prompts)

    return make


@pytest.mark.parametrize(("name", "technique"), [("cifar10", QuantizationConfig()), ("imagenet", DeepCacheConfig(2))])
def test_every_kind_of_correction_is_fitted_once_and_sampled(sampler_of, name, technique):
    sampler = sampler_of(name)
    images = set()
    for correction in CORRECTIONS:
        setting = Setting(4, technique, correction)
        folder, told = sampler.sample(setting), []
        assert folder.complete
        images.add(folder.image(0).read_bytes())
        assert sampler.sample(setting, on_calibration=lambda done, total, told=told: told.append(done)).complete
        assert not told
    assert len(images) >= len(CORRECTIONS) - 1  # where IEC explains nothing, its fitted lambdas are 0
    plans = {path.name for path in (sampler.folder / "plans").iterdir()}
    fitted = [name for name in plans if name.endswith(("-calibrated", "-iec-fitted"))]
    assert len(fitted) == 2
    assert len(plans) == 2 + isinstance(technique, QuantizationConfig)


def test_what_a_sampler_does_not_take_is_refused_before_any_work(sampler_of):
    sampler = sampler_of("coco")  # PLMS extrapolates by itself
    with pytest.raises(ValueError, match="extrapolates earlier outputs already: use a first-order one"):
        sampler.sample(Setting(4, QuantizationConfig(), iec.AdamsConfig()))
    with pytest.raises(ValueError, match="bands must be 1, 3 or None"):
        sampler.sample(Setting(4, QuantizationConfig(), FittedCorrection(bands=2)))
    assert not sampler.folder.exists()
