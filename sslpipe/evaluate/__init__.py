"""What a representation is worth: features once, then protocols. Labels are read here only."""

from .command import encode, evaluate
from .features import Features, extract
from .knn import KNN, knn, leave_one_out
from .linear import Linear, cross_validated, linear
from .results import Evaluation, Measure
from .settings import EvalSettings
from .subjects import Subject, open_subject

__all__ = [
    "KNN",
    "EvalSettings",
    "Evaluation",
    "Features",
    "Linear",
    "Measure",
    "Subject",
    "cross_validated",
    "encode",
    "evaluate",
    "extract",
    "knn",
    "leave_one_out",
    "linear",
    "open_subject",
]
