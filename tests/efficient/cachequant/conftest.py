"""Plans of the small run, made once."""

import pytest

from iec.efficient import calibrate

from .small import CACHE, QUANTIZED, SETTINGS, STEPS, pipe_of


@pytest.fixture(scope="session")
def cache_plan():
    return calibrate(pipe_of(), CACHE, STEPS, **SETTINGS)


@pytest.fixture(scope="session")
def plan():
    return calibrate(pipe_of(), QUANTIZED, STEPS, **SETTINGS)
