"""Tiny settings of every method, and batches with all that any of them asks for.

Two 16-px views of 4 x 4 patches, three of 8 px, MSN's groups, and every mask and target. For
methods on text a row of 12 tokens: two documents and padding. CLIP and SigLIP take it for a
caption, and the mask makes FLIP of them. For those on sound waveforms of 16 frames, of which every
third one ends early.
"""

import functools

import torch
from torch import nn

from sslpipe import methods
from sslpipe.batch import IGNORED, Batch, BatchSpec, MaskSpec, TargetSpec, ViewSpec
from sslpipe.encoders import build_encoder
from sslpipe.encoders.albert import ALBERT
from sslpipe.encoders.t5 import T5
from sslpipe.encoders.text import BERT, GPT
from sslpipe.encoders.wav2vec2 import Wav2Vec2Encoder
from sslpipe.recipe.names import Entry
from tests.view_specs import square

SIDE, SMALL_SIDE, PATCH, PATCHES = 16, 8, 4, 16
VIT = {"patch_size": PATCH, "embed_dim": 24, "depth": 2, "num_heads": 2}
PROJECTOR = {"projector": [16, 8]}
PREDICTOR = PROJECTOR | {"predictor_hidden": 16}
PROTOTYPES = {"prototypes": 12, "hidden": 16, "bottleneck": 8, "momentum": 0.5}
FROZEN = {"freeze_last_layer": 0.4}  # of three steps the first
SETTINGS = {
    "autoencoder": {"bottleneck": 4, "hidden": 8},
    "barlow_twins": PROJECTOR,
    "beit": {"tokenizer": {"random_projection": {"vocabulary": 10}}},
    "byol": PREDICTOR | {"momentum": 0.5},
    "causal_lm": {},
    "clip": {"dim": 8, "text": {"dim": 16, "depth": 2, "heads": 2}},
    "colorization": {"decoder": [4]},
    "data2vec2": {"top_k": 2, "momentum": [0.5, 0.9], "mask_noise": 0.0, "decoder_dim": 16,
                  "decoder_depth": 2, "decoder_groups": 4},
    "deepcluster_v2": PROJECTOR | {"prototypes": 3},
    "dino": PROTOTYPES | FROZEN,
    "dinov2": PROTOTYPES | FROZEN | {"heads": "separate", "centering": "sinkhorn"},
    "electra": {"generator": 0.5},
    "hubert": {"dim": 8},
    "ibot": PROTOTYPES | FROZEN,
    "ijepa": {"predictor_dim": 16, "predictor_depth": 2, "predictor_heads": 2},
    "inpainting": {"decoder": [4], "overlap": 1},
    "jigsaw": {"tile_dim": 4, "hidden": 8},
    "lejepa": PROJECTOR | {"slices": 8},
    "mae": {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2},
    "mlm": {},
    "moco": PROJECTOR | {"queue": 8, "momentum": 0.5, "bn_groups": 2},
    "moco_v3": PREDICTOR | {"momentum": 0.5},
    "msn": PROJECTOR | {"prototypes": 6, "momentum": 0.5},
    "nnclr": PREDICTOR | {"queue": 8},
    "nsp": {"weight": 0.5},
    "relative_patch": {"patch_dim": 4, "hidden": 8},
    "rotation": {},
    "siglip": {"dim": 8, "bias": -1.0, "text": {"dim": 16, "depth": 2, "heads": 2}},
    "simclr": PROJECTOR,
    "simcse": {},
    "simmim": {},
    "simsiam": PREDICTOR,
    "sop": {},
    "swav": PROJECTOR | {"prototypes": 6, "queue": 8, "freeze_prototypes": 0.4},
    "t5": {},
    "vicreg": PROJECTOR,
    "wav2vec2": {"entries": 4, "dim": 8, "code_dim": 8},
}  # fmt: skip
LENGTH, WRITTEN, VOCABULARY = 12, 5, 20
TEXT = {  # method on text -> its encoder
    "causal_lm": GPT, "electra": BERT, "mlm": BERT, "nsp": BERT, "sop": ALBERT, "t5": T5,
    "simcse": functools.partial(BERT, dropout=0.1),
}  # fmt: skip
SAMPLES, HOP = 128, 8
WAVES = functools.partial(Wav2Vec2Encoder, conv_dim=8, kernels=(4, 2), strides=(4, 2),
                          position_kernel=4, position_groups=2)  # fmt: skip
SOUND = {"hubert": WAVES, "wav2vec2": WAVES}  # method on waveforms -> its encoder, of 16 frames
COUNTS = {"global": 2, "local": 3, "target": 1, "anchor": 1, "focal": 2}
# name -> view, and how many patches each sample hides; samples in turn where they differ
MASKS = {
    "random": ("global", [[12]]),
    "units": ("global", [[8]]),
    "hole": ("global", [[4]]),
    "inverse": ("global", [[12], [12], [12]]),
    "drop": ("anchor", [[3]]),
    "context": ("global", [[8, 9, 10, 11]]),
    "targets": ("global", [[2, 3, 4, 2], [3, 4, 2, 3]]),
    "spans": ("wave", [[6]]),
    "blocks": ("global", [[5, 3, 0, 0], [1, 4, 0, 0]]),  # the second of two ranks has none
}
TARGETS = {
    "rotation": TargetSpec("global", 2, 4),
    "jigsaw": TargetSpec("global", 1, 7),
    "relative_patch": TargetSpec("global", 1, 8),
    "colorization": TargetSpec("global", 2, None, (2, 4, 4)),
    "distractors": TargetSpec("wave", 1, 6, (6, 5)),
    "frame_labels": TargetSpec("wave", 1, 5, (16,)),
}
WRITINGS = {
    "mlm": TargetSpec("tokens", 1, VOCABULARY, (LENGTH,)),
    "nsp": TargetSpec("tokens", 1, 2),
    "sop": TargetSpec("tokens", 1, 2),
    "t5": TargetSpec("tokens", 1, VOCABULARY, (WRITTEN,)),
}


def vit() -> nn.Module:
    return build_encoder(Entry("vit_tiny", VIT), square(SIDE))


def build(name: str, spec: BatchSpec, encoder: nn.Module | None = None, **more) -> nn.Module:
    """The method, on a ViT of two narrow blocks."""
    entry = Entry(name, SETTINGS[name] | more)
    return methods.build_method(entry, encoder_of(name, spec) if encoder is None else encoder, spec)


def encoder_of(name: str, spec: BatchSpec) -> nn.Module:
    """Two narrow blocks that see what the method is for."""
    if name in SOUND:
        return SOUND[name](spec.views["wave"], dim=16, depth=2, heads=2)
    if name not in TEXT:
        return vit()
    return TEXT[name](spec.views["tokens"], dim=16, depth=2, heads=2)


def side(group: str) -> int:
    return SMALL_SIDE if group in ("local", "focal") else SIDE


def make_spec(size: int, world: int = 1) -> BatchSpec:
    """Of a global batch of `size` samples."""
    views = {
        name: ViewSpec(name, n, "CHW", (3, side(name), side(name))) for name, n in COUNTS.items()
    }
    views["tokens"] = ViewSpec("tokens", 1, "L", (LENGTH,), torch.int64, vocabulary=VOCABULARY)
    views["wave"] = ViewSpec("wave", 1, "T", (SAMPLES,))
    grids = {"wave": ("T", (HOP,), (PATCHES,))}
    images = ("HW", (PATCH, PATCH), (SIDE // PATCH, SIDE // PATCH))
    masks = {
        name: MaskSpec(view, len(counts), *grids.get(view, images),
                       counts[0][0] if len(counts[0]) == 1 else None)
        for name, (view, counts) in MASKS.items()
    }  # fmt: skip
    return BatchSpec(size // world, size, views, masks, TARGETS | WRITINGS, epoch_size=size)


def make_batch(
    size: int, step: int = 0, rank: int = 0, world: int = 1, dtype: torch.dtype = torch.float32
) -> Batch:
    """This rank's share of `size` random samples; the step is the epoch."""
    generator = torch.Generator().manual_seed(step)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def share(x: torch.Tensor) -> torch.Tensor:
        return x.chunk(world, dim=1)[rank].contiguous()

    views = {k: normal(n, size, 3, side(k), side(k)).to(dtype) for k, n in COUNTS.items()}
    views["wave"] = (0.1 * normal(1, size, SAMPLES)).to(dtype)
    lengths = torch.where(torch.arange(size) % 3 == 2, 90, SAMPLES)[None]
    masks = {k: share(mask(counts, size, normal)) for k, (_, counts) in MASKS.items()}
    targets = {
        name: 40 * normal(t.count, size, *t.shape).to(dtype) if t.classes is None
        else torch.randint(t.classes, (t.count, size, *t.shape), generator=generator)
        for name, t in TARGETS.items()
    }  # fmt: skip
    tokens = {k: share(v) for k, v in token_tensors(size, generator).items()}
    targets |= {name: tokens.pop(f"{name} targets") for name in WRITINGS}
    asked = {k: (targets[k] != IGNORED).sum(-1).numpy() for k in WRITINGS}
    segments = {name: tokens.pop(f"{name} segments") for name in ("tokens", "t5")}
    views |= tokens
    uids = (3 * torch.arange(size) + 2).chunk(world)[rank]
    if step == 2 and rank == world - 1:  # a sample that was not met before, on one rank alone
        uids = torch.cat([uids[:-1], uids[-1:] + 1])
    return Batch(
        views={k: v if k == "tokens" else share(v) for k, v in views.items()}, masks=masks,
        hidden={k: m.sum(-1).numpy() for k, m in masks.items()} | asked,
        targets={k: t if k in WRITINGS else share(t) for k, t in targets.items()},
        segments=segments, lengths={"wave": share(lengths)},
        labels=uids, params={}, uids=uids, keys=("",) * len(uids),
        valid=torch.ones(len(uids), dtype=torch.bool), epoch=step, step=step,
    )  # fmt: skip


def token_tensors(size: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Rows of documents of 7 and 3 tokens and two of padding; each row hides 1 to 4 of them."""

    def runs(lengths: list[int]) -> torch.Tensor:
        documents = [torch.full((n,), i) for i, n in enumerate(lengths[:-1])]
        documents.append(torch.full((lengths[-1],), -1))
        positions = torch.cat([torch.arange(len(d)) for d in documents])
        return torch.stack([torch.cat(documents), positions])[:, None].repeat(1, size, 1)

    documents, written = runs([7, 3, 2]), runs([3, 1, 1])
    real = documents[:1] >= 0
    tokens = torch.randint(4, VOCABULARY, (1, size, LENGTH), generator=generator)
    tokens = torch.where(real, tokens, 0)
    turn = torch.rand(1, size, LENGTH, generator=generator).masked_fill(~real, 2.0)
    hidden = turn.argsort(-1).argsort(-1) <= torch.arange(size)[:, None] % 4
    answers = torch.randint(4, VOCABULARY, (1, size, WRITTEN), generator=generator)
    return {
        "tokens": torch.where(hidden, 3, tokens), "tokens segments": documents,
        "mlm targets": torch.where(hidden, tokens, IGNORED),
        "nsp targets": torch.arange(size)[None] % 2,
        "sop targets": torch.where(torch.arange(size)[None] % 4 == 3, IGNORED, 1),
        "t5 targets": torch.where(written[:1] >= 0, answers, IGNORED), "t5 segments": written,
    }  # fmt: skip


def mask(counts, size, normal) -> torch.Tensor:
    """(M, B, N) bool with random places."""
    counts_MB = torch.tensor(counts)[:, torch.arange(size) % len(counts[0])]
    return normal(len(counts), size, PATCHES).argsort(-1).argsort(-1) < counts_MB[..., None]
