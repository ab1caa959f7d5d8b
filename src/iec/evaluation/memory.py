"""The most memory that a piece of work held at once."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

_RESET, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


class PeakMemory:
    """`with PeakMemory(network) as memory:` leaves `megabytes`: of the GPU's tensors where the network is on one, else
    of the whole process; None where the system does not tell.
    """

    megabytes: float | None = None

    def __init__(self, network: nn.Module) -> None:
        self.device = next(network.parameters()).device
        self._told = False

    def __enter__(self) -> "PeakMemory":
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return self
        try:
            _RESET.write_text("5")  # Linux: the peak begins again at what is held now
            self._told = True
        except OSError:
            pass
        return self

    def __exit__(self, *exception: Any) -> None:
        if self.device.type == "cuda":
            self.megabytes = torch.cuda.max_memory_allocated(self.device) / 1e6
        elif self._told:
            line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
            self.megabytes = int(line.split()[1]) * 1024 / 1e6
