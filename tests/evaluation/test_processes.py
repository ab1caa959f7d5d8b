import pytest

from iec.evaluation.processes import Share


def test_without_a_launcher_there_is_one_process():
    share = Share.of_environment({"RANK": "3"})
    assert share == Share(0, 1)
    assert share.takes(0)
    assert share.takes(7)
    assert share.device("cuda") == "cuda"


def test_every_batch_is_of_one_process():
    shares = [Share.of_environment({"RANK": str(rank), "WORLD_SIZE": "3"}) for rank in range(3)]
    for number in range(20):
        assert sum(share.takes(number) for share in shares) == 1


def test_processes_of_one_machine_take_its_devices_in_turn():
    share = Share.of_environment({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"})
    assert share.device("cuda") == "cuda:1"
    assert share.device("cuda:0") == "cuda:0"
    assert share.device("cpu") == "cpu"


def test_mpi_announces_processes_by_other_names():
    world = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
    assert Share.of_environment(world) == Share(3, 4, 1)
    assert Share.of_environment({"PMI_SIZE": "4", "PMI_RANK": "2"}) == Share(2, 4, 2)


@pytest.mark.parametrize(
    "environment",
    [
        {"RANK": "2", "WORLD_SIZE": "2"},
        {"RANK": "-1", "WORLD_SIZE": "2"},
        {"RANK": "one", "WORLD_SIZE": "2"},
        {"WORLD_SIZE": "two"},
        {"RANK": "0", "WORLD_SIZE": "0"},
        {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "x"},
    ],
)
def test_a_broken_launcher_is_one_sentence(environment):
    with pytest.raises(ValueError, match="must be the whole numbers that a launcher sets"):
        Share.of_environment(environment)
