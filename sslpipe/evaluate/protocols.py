"""What `sslpipe eval` can measure, by name: on frozen features, of two towers, or by training.

The order is that in which they run: cheap ones first. A protocol of your own on features is a
function (train, test) -> measures; call it with what `evaluation.features` holds.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType

import torch

from ..encoders import BlockEncoder
from ..errors import SslpipeError
from ..recipe.names import suggest
from .clustering import clustering
from .features import Features
from .few_labels import few_labels
from .few_shot import few_shot
from .finetune import finetune
from .finetune_settings import MAE_BASE, RESNET
from .heads import heads
from .knn import neighbours
from .label_free import label_free
from .linear import logistic
from .linear_probe import MAE, MOCO, ProbeSettings, dino_of, linear_probe
from .pseudo_labels import pseudo_labels
from .results import Measure
from .retrieval import retrieval
from .subjects import Subject
from .towers import PAIRED

Measures = tuple[Measure, ...]
Frozen = Callable[[Features, Features | None], Measures]
Trained = Callable[..., Measures]  # (subject, shards, test, device=) -> measures

FROZEN: Mapping[str, Frozen] = MappingProxyType(
    {
        "label_free": label_free,
        "knn": neighbours,
        "linear": logistic,
        "retrieval": retrieval,
        "clustering": clustering,
        "few_shot": few_shot,
        "few_labels": few_labels,
        "pseudo_labels": pseudo_labels,
        "heads": heads,
    }
)
GUESSING = "perplexity"  # quick, for runs whose method guesses tokens; see perplexity.py
QUICK = ("label_free", "knn", "linear", "retrieval", "clustering", "few_shot")
ON_PIXELS = ("knn", "linear")  # what raw pixels are measured by: the baselines of the field


def dino_probe(
    subject: Subject,
    shards: Path,
    test: Path | None,
    *,
    device: torch.device,
    epochs: int | None = None,
) -> Measures:
    """DINO's linear probe, whose input is another for a ViT-B."""
    settings: ProbeSettings = dino_of(subject.encoder)
    return linear_probe(subject, shards, test, settings, device=device, epochs=epochs)


def official_finetune(
    subject: Subject,
    shards: Path,
    test: Path | None,
    *,
    device: torch.device,
    epochs: int | None = None,
) -> Measures:
    """MAE's fine-tuning for what has blocks, that of ResNets for the rest."""
    settings = MAE_BASE if isinstance(subject.encoder, BlockEncoder) else RESNET
    return finetune(subject, shards, test, settings, device=device, epochs=epochs)


TRAINED: Mapping[str, Trained] = MappingProxyType(
    {
        "probe_mae": partial(linear_probe, settings=MAE),
        "probe_dino": dino_probe,
        "probe_moco": partial(linear_probe, settings=MOCO),
        "finetune": official_finetune,
    }
)

ORDER = (GUESSING, *FROZEN, *PAIRED, *TRAINED)


def chosen_protocols(names: Sequence[str]) -> tuple[str, ...]:
    """Give the names of protocols in the order in which they run; `quick` and `all` are several.

    `all` is all on frozen features of images: what trains takes as long as its paper says, and
    few runs have a text tower, so these are named.

    Raises:
        SslpipeError: there is no such protocol.
    """
    known = {"quick": QUICK, "all": tuple(FROZEN), **{name: (name,) for name in ORDER}}
    wanted: set[str] = set()
    for name in names:
        if name not in known:
            given = ",".join(names)
            raise SslpipeError(f"--protocols {given}: no {name!r}; {suggest(name, known)}")
        wanted.update(known[name])
    return tuple(name for name in ORDER if name in wanted)
