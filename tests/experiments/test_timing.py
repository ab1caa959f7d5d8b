import json
from types import SimpleNamespace

import pytest

import iec
from iec.efficient import DeepCacheConfig
from iec.experiments import measuring, timing
from iec.experiments.measuring import Measurements
from iec.experiments.plans import Calibration
from iec.experiments.settings import Setting
from iec.experiments.timing import measured_overheads

from .tiny import tiny_pipeline

CORRECTIONS = (None, iec.IECConfig.paper(), iec.IECConfig(steps="first"))


@pytest.fixture
def evaluations(monkeypatch):
    """The network evaluations so far; the clock of the timings goes by them."""
    counted = []

    def counting(**settings):
        pipe = tiny_pipeline(**settings)
        pipe.unet.conv_in.register_forward_hook(lambda *call: counted.append(1))
        return pipe

    monkeypatch.setattr(measuring, "load_pipeline", counting)
    monkeypatch.setattr(timing, "time", SimpleNamespace(process_time=lambda: float(len(counted))))
    return counted


@pytest.mark.parametrize(
    ("technique", "expected"),
    [
        (None, [0, 100, 25]),  # 4 evaluations; 8; 5
        (DeepCacheConfig(2), [0, 50, 25]),  # of a cache of 2 the steps 0 and 2 are corrected
    ],
)
def test_the_overhead_is_in_percent_of_the_uncorrected_time_and_measured_once(
    evaluations, tmp_path, technique, expected
):
    measurements = Measurements(tmp_path, "float32", 4, Calibration(4, 4))
    settings = [Setting(4, technique, correction) for correction in CORRECTIONS]
    assert measured_overheads(measurements, settings, "quad") == pytest.approx(expected)
    done = len(evaluations)
    [kept] = (tmp_path / "timings").iterdir()
    assert len(json.loads(kept.read_text())["seconds"]) == 3
    assert measured_overheads(measurements, settings, "quad") == pytest.approx(expected)
    assert len(evaluations) == done


def test_settings_of_several_systems_are_refused(tmp_path):
    measurements = Measurements(tmp_path, "float32", 4, Calibration(4, 4))
    with pytest.raises(ValueError, match="Only corrections of one system"):
        measured_overheads(measurements, [Setting(4), Setting(4, DeepCacheConfig(2))], "quad")
