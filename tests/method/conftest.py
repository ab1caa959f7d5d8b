"""Settings for a machine that may be busy: no deadlines, and one thread for tensors this small."""

import pytest
import torch
from hypothesis import settings

settings.register_profile("method", deadline=None, max_examples=60)
settings.load_profile("method")


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
