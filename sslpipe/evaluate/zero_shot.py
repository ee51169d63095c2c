"""Zero-shot classification: is the text of its class the nearest to an image?

Radford et al. 2021, arXiv:2103.00020, section 3.1.4, and open_clip, zero_shot_classifier.py.
Letters: N images, C classes, T templates, D features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from ..errors import SslpipeError
from ..process import regular_file
from .results import Measure

# short and plain: they suit photos of things; of other data a file is better
TEMPLATES = ("a photo of a {}.", "a photo of the {}.", "a photo of {}", "a picture of {}", "{}")
ROUNDING = 1e-6  # of a cosine: what is nearer than that is a tie
HOLE = "{}"


@dataclass(frozen=True, slots=True)
class ZeroShot:
    """Shares of images whose class is the first, and among the first five; `count` images."""

    top1: float
    top5: float
    count: int


def prompts(names: Sequence[str], templates: Sequence[str]) -> list[list[str]]:
    """Every template with every name, a list for each class: C of T texts."""
    return [[template.replace(HOLE, name) for template in templates] for name in names]


def read_templates(path: Path) -> tuple[str, ...]:
    """The templates of a file, one a line, with `{}` where the class stands.

    Raises:
        SslpipeError: it cannot be read, is empty, or a line has no place for the class.
    """
    try:
        read = regular_file(path).read_text(encoding="utf-8")
        lines = [line.strip() for line in read.splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise SslpipeError(f"{path}: cannot be read ({error}); name a file of templates") from error
    templates = tuple(line for line in lines if line)
    wrong = [line for line in templates if HOLE not in line]
    if wrong or not templates:
        said = f"{wrong[0]!r} has no {HOLE}" if wrong else "there is no line"
        raise SslpipeError(f"{path}: {said}; write one template a line, such as a photo of a {{}}.")
    return templates


def class_features(texts_CTD: Tensor) -> Tensor:
    """One vector a class, (C, D): texts are normalised, averaged, and normalised again.

    Without the second, classes whose templates agree would have longer vectors, and win more often.
    """
    return F.normalize(F.normalize(texts_CTD.double(), dim=-1).mean(1), dim=-1)


def zero_shot(images_ND: Tensor, classes_CD: Tensor, labels_N: Tensor) -> ZeroShot:
    """Rank the classes for each image by their cosine.

    A class that is as near as the image's own counts as nearer: whoever maps all to one point
    finds nothing. labels: (N,) int64 in [0, C).

    Raises:
        SslpipeError: there are no images.
    """
    if not len(images_ND):
        raise SslpipeError("zero_shot: there is no labelled image; evaluate on labelled shards")
    cosines_NC = F.normalize(images_ND.double(), dim=1) @ F.normalize(classes_CD.double(), dim=1).T
    own_N1 = cosines_NC.gather(1, labels_N[:, None])
    before_N = (cosines_NC >= own_N1 - ROUNDING).sum(1) - 1
    top1, top5 = ((before_N < k).double().mean().item() for k in (1, 5))
    return ZeroShot(top1, top5, len(images_ND))


def zero_shot_measures(
    images_ND: Tensor, texts_CTD: Tensor, labels_N: Tensor
) -> tuple[Measure, ...]:
    """What `sslpipe eval` shows: top-1 and, of more than five classes, top-5."""
    labelled = labels_N >= 0
    found = zero_shot(images_ND[labelled], class_features(texts_CTD), labels_N[labelled])
    classes, templates = texts_CTD.shape[:2]
    how = f"zero-shot: {found.count:,} images, {classes} class names in {templates} templates"
    first = Measure("zero-shot top-1", found.top1, how, chance=1 / classes)
    if classes <= 5:
        return (first,)
    return first, Measure("zero-shot top-5", found.top5, how, chance=5 / classes)


def named_classes(names: Sequence[str], where: str) -> Sequence[str]:
    """The names of the classes, as words of a template.

    Raises:
        SslpipeError: there are none, or they are numbers.
    """
    if not names or all(name.isdigit() for name in names):
        raise SslpipeError(
            f"{where}: its classes have no names, which zero_shot makes texts of; pack it from "
            "folders, or tars with .cls members, that are called as the classes"
        )
    return [name.replace("_", " ") for name in names]
