"""Torch code that draws from the global generator, made to draw from a keyed one.

`torch.random.fork_rng` would put a seed into the global generator for a while, and views are made
in a thread beside the trainer, whose dropout would see it. A dispatch mode belongs to its thread:
it hands every random operator a generator of its own, and the global one is never touched. It costs
Python per operator: RandomAffine takes 2.8 ms of a CPU per 224-px view, and 1.4 ms under fork_rng.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class KeyedRandom(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A context in which whatever is random in torch follows `seed` alone.

    The CPU and CUDA have streams of their own, as everywhere in torch.

    Raises:
        ValueError: an operator is random and takes no generator, so it cannot be keyed.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seed = seed
        self.generators: dict[str, torch.Generator] = {}  # by type: cuda is cuda:0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run an operator; give it our generator if it is random."""
        settings = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded in func.tags and settings.get("generator") is None:
            func = with_generator(func)
            settings["generator"] = self.generator(device_of(args, settings))
        return func(*args, **settings)

    def generator(self, device: torch.device) -> torch.Generator:
        """Make the keyed generator of a device, or return the one that is there."""
        if device.type not in self.generators:
            self.generators[device.type] = torch.Generator(device).manual_seed(self.seed)
        return self.generators[device.type]


def with_generator(func: Any) -> Any:
    """Find the overload of an operator that takes a generator: rand.generator of rand.default."""
    packet, name = func.overloadpacket, func._overloadname
    for candidate in (name, "generator" if name == "default" else f"{name}_generator"):
        if candidate in packet.overloads():
            overload = getattr(packet, candidate)
            if any(argument.name == "generator" for argument in overload._schema.arguments):
                return overload
    raise ValueError(f"it draws by torch's {func}, which takes no generator, so it cannot be keyed")


def device_of(args: tuple[Any, ...], settings: dict[str, Any]) -> torch.device:
    """Find where an operator runs: as told, or where its first tensor is, or on the CPU."""
    tensors = (arg.device for arg in args if isinstance(arg, Tensor))
    return torch.device(settings.get("device") or next(tensors, "cpu"))
