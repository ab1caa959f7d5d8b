"""The state of a cache as a value."""

from collections import OrderedDict, defaultdict

import torch

from iec.pipelines.caches.state import copied, mixed


def test_what_the_cache_writes_into_is_copied_and_its_tensors_are_shared():
    tensor, scalar = torch.zeros(2), torch.tensor(1.0)
    value = {"list": [tensor, {"deeper": [1]}], "tuple": ([2],), "set": {3}, "default": defaultdict(int, a=4)}
    copy = copied({**value, "scalar": scalar})
    scalar += 1
    value["list"][1]["deeper"].append(0)
    value["tuple"][0].append(0)
    value["set"].add(0)
    value["default"]["a"] = 0
    assert copy["list"][0] is tensor
    assert copy["list"][1] == {"deeper": [1]}
    assert (copy["tuple"], copy["set"], copy["scalar"].item()) == (([2],), {3}, 1.0)
    assert copy["default"]["a"] == 4
    assert copy["default"]["unknown"] == 0


def test_other_objects_are_left_as_they_are():
    other = OrderedDict(a=[1])
    assert copied(other) is other
    assert mixed(other, OrderedDict(a=[2]), torch.tensor([True])) is other


def test_rows_of_the_chosen_samples_come_from_the_old_state_and_counters_do_not():
    samples = torch.tensor([True, False])
    old = {"rows": torch.zeros(4, 1), "nested": [(torch.zeros(2),), 7], "other": torch.zeros(3), "count": 1, "gone": 1}
    new = {"rows": torch.ones(4, 1), "nested": [(torch.ones(2),), 8], "other": torch.ones(2), "count": 2, "late": [1]}
    mix = mixed(new, old, samples)
    assert mix["rows"].flatten().tolist() == [0, 1, 0, 1]  # unconditional and conditional
    assert mix["nested"][0][0].tolist() == [0, 1]
    assert mix["nested"][1] == 8
    assert mix["other"].tolist() == [1, 1]
    assert mix["count"] == 2
    assert set(mix) == set(new)
    assert new["rows"].flatten().tolist() == [1, 1, 1, 1]


def test_tensors_without_one_row_per_sample_stay_new():
    samples = torch.tensor([True, True])
    for shape in ((), (3,)):
        assert torch.equal(mixed(torch.ones(shape), torch.zeros(shape), samples), torch.ones(shape))
    assert mixed([torch.ones(2)], [torch.zeros(2)] * 2, samples)[0].tolist() == [1, 1]
    assert mixed(torch.ones(2), None, samples).tolist() == [1, 1]
