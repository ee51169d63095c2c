"""The reference trainer: loop, optimizers, schedules, checkpoints, logs, distributed start."""

from .checkpoint import load_encoder
from .loop import TrainResult, train
from .record import Every
from .report import Bar, Reporter, Silent
from .run import initial_method
from .world import start_world

__all__ = [
    "Bar",
    "Every",
    "Reporter",
    "Silent",
    "TrainResult",
    "initial_method",
    "load_encoder",
    "start_world",
    "train",
]
