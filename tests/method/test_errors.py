"""Which samples are finite, against testing every value."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from iec.method.errors import NonFiniteError, finite_samples, require_finite

VALUES = st.sampled_from([0.0, -0.0, 1.0, -3e4, 6e4, float("inf"), -float("inf"), float("nan"), 1e-40])


@given(
    rows=st.lists(st.lists(VALUES, min_size=4, max_size=4), min_size=1, max_size=5),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)
def test_a_sample_is_finite_where_all_of_its_values_are(rows, dtype):
    state = torch.tensor(rows, dtype=dtype).view(-1, 2, 2)
    assert finite_samples(state).tolist() == [bool(row.isfinite().all()) for row in state]


@pytest.mark.parametrize("shape", [(0, 3, 2), (2, 0), (0, 0)])
def test_what_holds_no_value_is_finite(shape):
    assert finite_samples(torch.zeros(shape)).tolist() == [True] * shape[0]


def test_the_error_names_the_step_and_counts_the_samples():
    state = torch.zeros(3, 2, 2)
    assert require_finite(state, 4, 17) is state
    state[1, 0, 1] = float("nan")
    with pytest.raises(NonFiniteError, match=r"At step 4 \(timestep 17\), 1 of 3 samples"):
        require_finite(state, 4, 17)
    with pytest.raises(NonFiniteError, match="At step 4, 1 of 3"):
        require_finite(state, 4, None)
