"""Protocols of runs with a text tower: images and texts in one space, trained and untrained.

Both towers are rebuilt from the checkpoint's method; what they give goes to the pure functions of
zero_shot.py and cross_retrieval.py.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn

from ..encoders.monitors import evaluating
from ..errors import SslpipeError
from ..methods import METHODS
from ..methods.parts.two_towers import TwoTowers
from ..modalities.text.caption_views import CaptionDecider
from ..modalities.text.captions import CaptionDecode
from ..pipeline import load
from ..recipe import Recipe
from ..recipe.names import Entry, choose
from .cross_retrieval import cross_retrieval_measures
from .features import Features, central, central_batches, extract_all
from .results import Measure
from .subjects import Subject, parts_and_spec, whole_methods
from .zero_shot import TEMPLATES, named_classes, prompts, zero_shot_measures

BATCH = 256  # texts that are encoded at once
ByTowers = dict[str, tuple[Measure, ...]]  # "trained", "untrained"


@dataclass(frozen=True, slots=True)
class TowerPair:
    """A method with two towers as it was trained, and as it began; what their texts are."""

    recipe: Recipe
    methods: Mapping[str, TwoTowers]
    captions: CaptionDecider

    def tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Rows (n, L) int64 of texts as captions are, and their segments (2, n, L)."""
        decode: CaptionDecode = self.captions.decode
        length, pad = self.captions.settings.length, self.captions.vocabulary.pad
        tokens_BL = torch.full((len(texts), length), pad)
        for row, text in zip(tokens_BL, texts, strict=True):
            ids = decode.ids(decode.cleaned(text))
            row[: len(ids)] = torch.from_numpy(ids).long()
        real_BL = (tokens_BL != pad).long()
        return tokens_BL, torch.stack([real_BL - 1, torch.arange(length) * real_BL])


class ImageSide(nn.Module):
    """The image tower of a method with its projection, as an encoder."""

    def __init__(self, method: TwoTowers) -> None:
        super().__init__()
        self.method = method

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Give (B, D) of the common space."""
        return self.method.embedded_images(images_BCHW)


def open_towers(subject: Subject, *, untrained: bool) -> TowerPair:
    """Rebuild both towers of a run.

    Raises:
        SslpipeError: it is no run, or its method has no text tower.
        StateError: a damaged checkpoint.
    """
    check_towers(subject)
    parts, spec = parts_and_spec(subject.recipe)
    (captions,) = (part.decider for part in parts if isinstance(part.decider, CaptionDecider))
    methods = whole_methods(subject, spec, untrained=untrained)
    pairs = {name: method for name, method in methods.items() if isinstance(method, TwoTowers)}
    return TowerPair(subject.recipe, pairs, captions)


def check_towers(subject: Subject) -> None:
    """Check that a subject has two towers, without making them.

    Raises:
        SslpipeError: it is no run, or its method has no text tower.
    """
    if subject.checkpoint is None:
        raise SslpipeError(
            f"{subject.name}: is no run of ours, and zero_shot and cross_retrieval need its text "
            "tower; name the folder of a run of clip or siglip, or its last.pt"
        )
    method = subject.recipe.method
    found = choose(method, METHODS, "method") if method else None
    if not (isinstance(found, type) and issubclass(found, TwoTowers)):
        raise SslpipeError(
            f"{subject.checkpoint}: its method, {method.name if method else 'none'}, has no text "
            "tower, which zero_shot and cross_retrieval need; name a run of clip or siglip"
        )


def zero_shot_of(
    pair: TowerPair, shards: Path, device: torch.device, templates: Sequence[str] = TEMPLATES
) -> ByTowers:
    """Zero-shot classification of a set by the names of its classes."""
    images = embedded_images(pair, shards, device)
    names = named_classes(images["trained"].classes, str(shards))
    texts = prompts(names, templates)
    tokens = pair.tokens([text for each in texts for text in each])
    found = {}
    for name, method in pair.methods.items():
        texts_CTD = embedded_texts(method, tokens, device).view(len(names), len(templates), -1)
        features = images[name]
        found[name] = zero_shot_measures(features.features, texts_CTD, features.labels)
    return found


def cross_retrieval_of(
    pair: TowerPair, shards: Path, device: torch.device, templates: Sequence[str] = TEMPLATES
) -> ByTowers:
    """Retrieval of a set's images by their captions and the other way; templates have no part."""
    images = embedded_images(pair, shards, device)
    tokens, uids_M = all_captions(pair, shards)
    places = {uid: place for place, uid in enumerate(images["trained"].uids.tolist())}
    owners_M = torch.tensor([places[uid] for uid in uids_M.tolist()])
    return {
        name: cross_retrieval_measures(
            images[name].features, embedded_texts(method, tokens, device), owners_M
        )
        for name, method in pair.methods.items()
    }


def embedded_images(pair: TowerPair, shards: Path, device: torch.device) -> dict[str, Features]:
    """The images of a set in the common space, by each method."""
    sides = {name: ImageSide(method) for name, method in pair.methods.items()}
    with central_batches(pair.recipe, shards=shards, device=device) as batches:
        return extract_all(sides, batches, device)


def embedded_texts(
    method: TwoTowers, tokens: tuple[Tensor, Tensor], device: torch.device
) -> Tensor:
    """Embed n rows of tokens in the common space: (n, D) float32, on the CPU."""
    tokens_BL, segments_2BL = (each.to(device) for each in tokens)
    with evaluating(method.to(device)):
        found = [
            method.embedded_texts(tokens_BL[at : at + BATCH], segments_2BL[:, at : at + BATCH])
            for at in range(0, len(tokens_BL), BATCH)
        ]
    return torch.cat(found).float().cpu()


def all_captions(pair: TowerPair, shards: Path) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """All captions of a set as rows and segments, and the uid of the sample of each, (M,).

    The set is read once for each caption that its richest sample has; pictures are not decoded.
    """
    group, tokens, segments, uids = pair.captions.group, [], [], []
    number, most = 0, 1
    while number < most:
        recipe = of_captions(pair, number)
        with load(recipe, shards=shards, device="cpu", rank=0, world_size=1, epochs=1) as batches:
            for batch in batches:
                chosen_B, counts_B = batch.params[group][0].long().unbind(1)
                keep_B = chosen_B == number  # a sample with fewer captions shows another one
                most = max(most, int(counts_B.max()))
                tokens.append(batch.views[group][0][keep_B])
                segments.append(batch.segments[group][:, keep_B])
                uids.append(batch.uids[keep_B])
        number += 1
    return (torch.cat(tokens), torch.cat(segments, dim=1)), torch.cat(uids)


def of_captions(pair: TowerPair, number: int) -> Recipe:
    """The recipe whose only view is the caption of this number, of samples in packed order."""
    view = pair.recipe.views[pair.captions.group]
    settings = {**view.ops[0].settings, "choice": number}
    view = view.model_copy(update={"ops": (Entry("Captions", settings, f"caption {number}"),)})
    return central(pair.recipe).model_copy(update={"views": {pair.captions.group: view}})


Paired = Callable[[TowerPair, Path, torch.device, Sequence[str]], ByTowers]
PAIRED: Mapping[str, Paired] = MappingProxyType(
    {"zero_shot": zero_shot_of, "cross_retrieval": cross_retrieval_of}
)
