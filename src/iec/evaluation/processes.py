"""This process among those that sample together, as torchrun and `accelerate launch` announce it.

The processes share the output folder and nothing else: none waits for another, so one that dies leaves no other behind.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

# The world's size, the rank, and the rank on the machine: by torchrun, Intel's MPI, and Open MPI.
_NAMES = (
    ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE"),
    ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK"),
    ("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK"),
)


@dataclass(frozen=True)
class Share:
    """Process `rank` of `world`, `local` on its machine, takes the batches whose number is rank modulo world.

    Raises ValueError where the rank is not one of the world's.
    """

    rank: int = 0
    world: int = 1
    local: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise ValueError(f"RANK must lie in 0..WORLD_SIZE-1, but they are {self.rank} and {self.world}.")

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] | None = None) -> "Share":
        """From WORLD_SIZE, RANK and LOCAL_RANK, or what MPI calls them; without a world, the only process."""
        found = os.environ if environment is None else environment
        world, rank, local = (next((found[name] for name in names if name in found), None) for names in _NAMES)
        if world is None:
            return cls()
        try:
            chosen = int(rank or 0)
            return cls(chosen, int(world), chosen if local is None else int(local))
        except ValueError as error:
            raise ValueError(
                "RANK, WORLD_SIZE and LOCAL_RANK must be the whole numbers that a launcher sets, with RANK below "
                f"WORLD_SIZE, but are {rank}, {world} and {local}."
            ) from error

    def takes(self, number: int) -> bool:
        """Whether this process samples the batch of that number."""
        return number % self.world == self.rank

    def device(self, name: str) -> str:
        """The device of this process: its own of several, where `name` is `cuda` and processes are several."""
        return f"{name}:{self.local}" if self.world > 1 and name == "cuda" else name


#: The only process.
ALONE = Share()
