"""What is exported: an encoder of a checkpoint, and all that is known of how it was trained."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..encoders.wav2vec2 import Wav2Vec2Encoder
from ..errors import SslpipeError, StateError
from ..methods import METHODS, Method
from ..recipe import Recipe, parse_recipe
from ..recipe.names import choose
from ..train.checkpoint import Checkpoint, encoder_of, in_run, read_checkpoint


@dataclass(frozen=True, slots=True)
class Trained:
    """An encoder in eval mode on the CPU, and where it comes from."""

    path: Path  # of the checkpoint
    encoder: nn.Module
    branch: str  # "teacher", "student", "image"; "encoder" where its method does not say which
    recipe: Recipe
    recipe_yaml: str  # as the checkpoint holds it
    view: Mapping[str, Any]  # that the encoder was built for: checkpoint.view_record
    step: int
    data: str  # fingerprint of the shards that it was trained on
    start: Mapping[str, str] | None  # the weights that training began with: WarmStart.record
    method_state: Mapping[str, Tensor]  # all that was trained, the encoder too
    files: str  # which files beside recipe and shards it depended on, with their fingerprints

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what the encoder was built for: (C, H, W), a clip's (C, T, H, W), or a row's (L,)."""
        return tuple(self.view["shape"])

    def examples(self, count: int) -> Tensor:
        """Noise in the shape of images, (B, C, H, W), or of clips, the same each time."""
        generator = torch.Generator().manual_seed(count)
        return torch.randn(count, *self.shape, generator=generator)

    @torch.no_grad()
    def features(self, images_BCHW: Tensor) -> Tensor:
        """What every exported form must give, too: (B, D)."""
        features_BD: Tensor = self.encoder(images_BCHW)
        return features_BD


def read_trained(path: Path, branch: str = "auto") -> Trained:
    """Read the encoder of a checkpoint, or of the last one in the folder of a run.

    `branch` "auto" is the one that the method keeps, which is what its paper evaluates.

    Raises:
        StateError: the checkpoint is missing or damaged, or its encoder cannot be rebuilt.
        SslpipeError: the method has no such branch.
    """
    path = in_run(path)
    content = read_checkpoint(path)
    name, state = branch_weights(path, content, branch)
    encoder, recipe = encoder_of(path, replace(content, encoder=state))
    exported = content.view["axes"] in ("CHW", "CTHW", "L")
    if not exported and not isinstance(encoder, Wav2Vec2Encoder):
        raise SslpipeError(
            f"{path}: its encoder takes {content.view['axes']}, and exports are of encoders of "
            "images, CHW, clips, CTHW, text, L, and of wav2vec2's of waveforms, T; take its "
            "weights with "
            "sslpipe.train.load_encoder"
        )
    return Trained(
        path=path,
        encoder=encoder.eval(),
        branch=name,
        recipe=recipe,
        recipe_yaml=content.recipe,
        view=content.view,
        step=content.step,
        data=str(content.stream.get("manifest")),
        start=content.start,
        method_state=content.method,
        files=str(content.stream.get("recipe")),
    )


def branch_weights(path: Path, content: Checkpoint, branch: str) -> tuple[str, dict[str, Tensor]]:
    """Find the weights of a branch among those of the method; give them with its name.

    Raises:
        SslpipeError: the method has no such branch, or it is no encoder of images.
        StateError: it should have, but the checkpoint does not hold it.
    """
    places = branches(content, path)
    kept = next(iter(places), "encoder")
    if branch in ("auto", kept):
        return kept, content.encoder
    if branch not in places:
        raise SslpipeError(
            f"{path}: its method has no {branch!r}; --from takes {', '.join(['auto', *places])}"
        )
    prefix = f"{places[branch]}."
    state = {n.removeprefix(prefix): t for n, t in content.method.items() if n.startswith(prefix)}
    if not state:
        raise StateError(
            f"{path}: holds no {branch} at {places[branch]!r}; export it with the code that wrote "
            "it, or take --from auto"
        )
    if state.keys() != content.encoder.keys():
        raise SslpipeError(
            f"{path}: exports are of encoders of images, and its {branch!r} is none; take --from "
            f"{kept}, or the weights under {prefix!r} of the checkpoint's method"
        )
    return branch, state


def branches(content: Checkpoint, path: Path) -> dict[str, str]:
    """Where the method of a checkpoint holds its encoders, by name; {}: it does not say."""
    recipe = parse_recipe(content.recipe, path=f"{path} (recipe)", seen=False)
    assert recipe.method is not None
    method = choose(recipe.method, METHODS, "method")
    says = isinstance(method, type) and issubclass(method, Method)
    return dict(method.encoders) if says and method.encoder is Method.encoder else {}
