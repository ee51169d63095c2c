"""From host memory to the device: buffers, the arena of a batch, hand-off. It knows no modality."""

import torch

from ..errors import SslpipeError


def find_device(name: str | torch.device | None) -> torch.device:
    """Find a device by the name that a user gives it; None: CUDA if there is one, else the CPU.

    Raises:
        SslpipeError: it is no CPU or CUDA device, or this machine does not have it.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name is None:
        return torch.device("cuda" if count else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:  # torch's own text lists dozens of kinds
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise SslpipeError(f"device {str(name)!r}: is no device of ours; choose cpu or cuda")
    if device.type == "cuda" and (device.index or 0) >= count:
        have = f"has {count} of them" if count else "has none, or this torch is built without CUDA"
        other = f"cuda:0 to cuda:{count - 1}" if count else "cpu"
        raise SslpipeError(f"device {str(name)!r}: this machine {have}; choose {other}")
    return device
