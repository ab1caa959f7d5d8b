"""The memory that a piece of work took at its peak."""

import ctypes
from pathlib import Path
from typing import Any

import torch
from torch import nn

_RESET, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


class PeakMemory:
    """`with PeakMemory(network) as memory:` leaves `megabytes`: the peak above what was held at the start.

    Of the GPU's tensors where the network is on one, else of the whole process; None where the system does not tell.
    """

    megabytes: float | None = None

    def __init__(self, network: nn.Module) -> None:
        self.device = next(network.parameters()).device
        self._held: int | None = None

    def __enter__(self) -> "PeakMemory":
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._held = torch.cuda.memory_allocated(self.device)
            return self
        try:
            _give_back()
            _RESET.write_text("5")  # Linux: the peak begins again at what is held now
            self._held = _status("VmRSS")
        except OSError:
            pass
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._held is None:
            return
        cuda = self.device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(self.device) if cuda else _status("VmHWM")
        self.megabytes = max(0, peak - self._held) / 1e6


def _give_back() -> None:
    """Let the C library return what earlier work freed: else this work would take it again unseen."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def _status(name: str) -> int:
    """Bytes by the name that Linux gives them."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024
