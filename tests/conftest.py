"""For all tests; also makes this folder importable, so that every test package finds `tiny_models`."""

import pytest
import torch
from hypothesis import settings

settings.register_profile("busy", deadline=None, max_examples=60)
settings.load_profile("busy")


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Tiny tensors: a second thread costs more than it brings."""
    torch.set_num_threads(1)
