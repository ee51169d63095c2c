"""The published view policies, stated once as data, and every recipe compared with them.

Values: the official code of each method. One row per view group; `p`s are one value per view.
"""

from dataclasses import dataclass

import numpy as np
import pytest

import sslpipe
from sslpipe import masks
from sslpipe.modalities.image import ops
from sslpipe.modalities.image.decider import ImageDecider
from sslpipe.recipe import find_recipe, load_recipe
from sslpipe.rng import Place

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SWAV_SLIP = ((0.485, 0.456, 0.406), (0.228, 0.224, 0.225))
STRONG, MEDIUM, WEAK = (0.8, 0.8, 0.8, 0.2), (0.4, 0.4, 0.4, 0.1), (0.4, 0.4, 0.2, 0.1)
MOCO_V1, BEIT = (0.4, 0.4, 0.4, 0.4), (0.4, 0.4, 0.4, 0.0)
SIGMA = (0.1, 2.0)
NEVER = (0.0, 0.0)


@dataclass(frozen=True)
class Group:
    """A view group as a paper's table states it."""

    views: int
    size: int
    scale: tuple[float, float]
    resample: str
    order: str
    flip: tuple[float, ...] = ()
    jitter: tuple[float, ...] = ()  # brightness, contrast, saturation, hue
    jitter_p: tuple[float, ...] = ()
    grey: tuple[float, ...] = ()
    kernel: int = 0
    sigma: tuple[float, float] = NEVER
    blur: tuple[float, ...] = ()
    solarize: tuple[float, ...] = ()
    norm: tuple = ()


def coloured(views, size, scale, resample, order, jitter, blur, **rest):
    """A group with flip .5, jitter .8, grey .2 and a blur of 23 taps, unless said otherwise."""
    usual = {"flip": (0.5,) * views, "jitter_p": (0.8,) * views, "grey": (0.2,) * views}
    usual |= {"kernel": 23, "sigma": SIGMA, "norm": IMAGENET}
    return Group(views, size, scale, resample, order, jitter=jitter, blur=blur, **usual | rest)


FLIP_FIRST = "crop flip jitter grey blur norm"
FLIP_FIRST_SOLAR = "crop flip jitter grey blur solarize norm"
FLIP_LAST = "crop jitter grey blur flip norm"
FLIP_LAST_SOLAR = "crop jitter grey blur solarize flip norm"
TWO = {"blur": (1.0, 0.1), "solarize": (0.0, 0.2)}  # BYOL's asymmetry, taken over by many
MOCO_V2 = coloured(2, 224, (0.2, 1.0), "bilinear", FLIP_LAST, MEDIUM, (0.5, 0.5))
BYOL = coloured(2, 224, (0.08, 1.0), "bicubic", FLIP_FIRST_SOLAR, WEAK, **TWO)


def moco_v3(least):
    return {"global": coloured(2, 224, (least, 1.0), "bilinear", FLIP_LAST_SOLAR, WEAK, **TWO)}


def dino(cut, local, *, globals_blur=(1.0, 0.1), least=0.05, kernel=23):
    """Two global and `local` local crops, which share the area at `cut`."""
    bicubic = {"resample": "bicubic", "jitter": WEAK, "kernel": kernel}
    return {
        "global": coloured(2, 224, (cut, 1.0), order=FLIP_FIRST_SOLAR, blur=globals_blur,
                           solarize=(0.0, 0.2), **bicubic),
        "local": coloured(local, 96, (least, cut), order=FLIP_FIRST, blur=(0.5,) * local,
                          **bicubic),
    }  # fmt: skip


def msn(views, size, scale):
    return coloured(views, size, scale, "bilinear", FLIP_FIRST, MEDIUM, (0.5,) * views)


def swav(views, size, scale):
    blur = (0.5,) * views
    return coloured(views, size, scale, "bilinear", FLIP_FIRST, STRONG, blur, norm=SWAV_SLIP)


def masked(scale, resample, order="crop flip norm", **rest):
    flip = (0.5,) if "flip" in order else ()
    return {"global": Group(1, 224, scale, resample, order, flip=flip, norm=IMAGENET, **rest)}


def lejepa(views, size, scale):
    often = {"blur": (0.5,) * views, "solarize": (0.2,) * views}
    return coloured(views, size, scale, "bilinear", FLIP_FIRST_SOLAR, WEAK, **often)


SWAV = {"global": swav(2, 224, (0.14, 1.0)), "local": swav(6, 96, (0.05, 0.14))}
SIMCLR = {"global": coloured(2, 224, (0.08, 1.0), "bicubic", "crop flip jitter grey blur", STRONG,
                             (0.5, 0.5), norm=())}  # fmt: skip
PUBLISHED = {
    "simclr": SIMCLR,
    "moco_v1": {"global": Group(2, 224, (0.2, 1.0), "bilinear", "crop grey jitter flip norm",
                                flip=(0.5, 0.5), jitter=MOCO_V1, jitter_p=(1.0, 1.0),
                                grey=(0.2, 0.2), norm=IMAGENET)},
    "moco_v2": {"global": MOCO_V2},
    "moco_v3": moco_v3(0.08),
    "moco_v3_r50": moco_v3(0.2),
    "byol": {"global": BYOL},
    "simsiam": {"global": MOCO_V2},
    "barlow_twins": {"global": BYOL},
    "vicreg": {"global": BYOL},
    "swav": SWAV,
    "deepcluster_v2": SWAV,
    "nnclr": SIMCLR,
    "lejepa": {"global": lejepa(2, 224, (0.3, 1.0)), "local": lejepa(6, 98, (0.05, 0.3))},
    "dino": dino(0.4, 8),
    "ibot": dino(0.25, 10),
    "dinov2": dino(0.32, 8, globals_blur=(0.0, 0.9), kernel=9),
    "dinov2_documented": dino(0.32, 8, kernel=9),
    "msn": {"target": msn(1, 224, (0.3, 1.0)), "anchor": msn(1, 224, (0.3, 1.0)),
            "focal": msn(10, 96, (0.05, 0.3))},
    "mae": masked((0.2, 1.0), "bicubic"),
    "data2vec2": masked((0.2, 1.0), "bicubic"),
    "simmim": masked((0.67, 1.0), "bilinear"),
    "beit": masked((0.08, 1.0), "bicubic", "crop jitter flip norm", jitter=BEIT, jitter_p=(1.0,)),
    "ijepa": masked((0.3, 1.0), "bilinear", "crop norm"),
}  # fmt: skip
SIXTEEN, FOURTEEN = (14, 14), (16, 16)  # grids of 224 px in patches of 16 and 14 px
DINOV2_BLOCKS = masks.DINOv2Blocks(
    probability=0.5, ratio=(0.1, 0.5), min_patches=4, aspect=0.3, finish="stop", mode="reference"
)


def ijepa(part):
    return masks.Multiblock(
        part=part, blocks=4, scale=(0.15, 0.2), aspect=(0.75, 1.5), context_scale=(0.85, 1.0),
        min_keep=10, mode="reference",
    )  # fmt: skip


MASKS = {  # recipe -> mask -> sampler, view group, masks, grid, hidden patches
    "mae": {"random": (masks.RandomPatches(ratio=0.75), "global", 1, SIXTEEN, 196 - 49)},
    "msn": {"drop": (masks.RandomPatches(ratio=0.15, mode="reference"), "anchor", 1, SIXTEEN,
                     196 - int(196 * 0.85))},
    "simmim": {"units": (masks.SimMIMUnits(ratio=0.6, unit=2), "global", 1, SIXTEEN, 4 * 30)},
    "data2vec2": {"inverse": (masks.InverseBlock(ratio=0.8, adjust=0.07, length=3), "global", 16,
                              SIXTEEN, 196 - 39)},
    "beit": {"blocks": (masks.Blockwise(patches=75, min_patches=16, aspect=0.3, finish="stop"),
                        "global", 1, SIXTEEN, None)},
    "ibot": {"blocks": (masks.IBotBlocks(ratio=(0.0, 0.3), spread=(0.0, 0.2), aspect=0.3),
                        "global", 2, SIXTEEN, None)},
    "dinov2": {"blocks": (DINOV2_BLOCKS, "global", 2, SIXTEEN, None)},
    "dinov2_documented": {"blocks": (DINOV2_BLOCKS, "global", 2, SIXTEEN, None)},
    "ijepa": {"context": (ijepa("context"), "global", 1, FOURTEEN, None),
              "targets": (ijepa("targets"), "global", 4, FOURTEEN, None)},
}  # fmt: skip
# and *_cifar: not in the table of 224-px view policies
OTHER_SETTINGS = {
    *{"autoencoder", "colorization", "demo", "denoising_autoencoder", "inpainting", "jigsaw"},
    *{"relative_patch", "rotation"},
}


def views_of(name):
    recipe = load_recipe(find_recipe(name))
    return ImageDecider.of_recipe(recipe, list(recipe.views))


def described(policy):
    """A built policy in the words of the table."""
    names, found = [], {}
    for op in (step.op for step in policy.steps):
        name, settings = describe(op, policy.count)
        names.append(name)
        assert not found.keys() & settings.keys(), "an op stands twice"
        found |= settings
    return Group(views=policy.count, order=" ".join(names), **found)


def describe(op, views):
    """(name in the table, what the table says of it) of one op."""
    p = tuple(np.broadcast_to(getattr(op, "p", 0.0), (views,)).tolist())
    match op:
        case ops.RandomResizedCrop(size=(height, width), ratio=ratio, antialias=True):
            assert height == width
            assert ratio == pytest.approx((3 / 4, 4 / 3))
            return "crop", {"size": height, "scale": op.scale, "resample": op.resample}
        case ops.RandomHorizontalFlip():
            return "flip", {"flip": p}
        case ops.ColorJitter():
            jitter = (op.brightness, op.contrast, op.saturation, op.hue)
            return "jitter", {"jitter": jitter, "jitter_p": p}
        case ops.RandomGrayscale():
            return "grey", {"grey": p}
        case ops.RandomGaussianBlur(kernel_size=(height, width)):
            assert height == width
            return "blur", {"kernel": height, "sigma": op.sigma, "blur": p}
        case ops.RandomSolarize(thresholds=(0.5, 0.5)):  # PIL's 128 of 255, BYOL's .5
            return "solarize", {"solarize": p}
        case ops.Normalize():
            return "norm", {"norm": (op.mean, op.std)}
    raise AssertionError(f"{op} is in no published policy")


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_recipes_are_the_published_policies(name):
    policies = views_of(name).policies
    assert {group: described(policy) for group, policy in policies.items()} == PUBLISHED[name]
    assert not any(policy.shared for policy in policies.values())


def test_every_recipe_at_224_px_is_in_the_table():
    images = {name for name, path in sslpipe.recipes().items() if path.parent.name == "image"}
    named = {name for name in images if not name.endswith("_cifar")}
    assert named - OTHER_SETTINGS == set(PUBLISHED)


def test_first_views_are_blurred_and_second_solarized_as_often_as_said():
    rng = np.random.default_rng(0)
    for name, blur, solarize in (
        ("byol", (1.0, 0.1), (0.0, 0.2)),
        ("dinov2", (0.0, 0.9), (0.0, 0.2)),
        ("moco_v2", (0.5, 0.5), None),
    ):
        table_VBP = (
            views_of(name)
            .decide(
                epochs=np.zeros(4000, dtype=np.int64),
                uids=rng.integers(0, 2**62, 4000),
                place=Place(0, np.arange(4000), 4000),
                extents=np.tile([375, 500], (4000, 1)),
            )
            .params["global"]
        )
        columns = views_of(name).views["global"].columns
        gates = table_VBP.mean(1)[:, columns.index("RandomGaussianBlur.on")]
        np.testing.assert_allclose(gates, blur, atol=0.03)  # 3.8 standard errors at p .5
        if solarize:
            gates = table_VBP.mean(1)[:, columns.index("RandomSolarize.on")]
            np.testing.assert_allclose(gates, solarize, atol=0.03)


def test_masks_that_belong_to_a_policy():
    for name, published in MASKS.items():
        built = views_of(name).maskers
        assert {
            mask: (made.sampler, made.spec.view, made.spec.count, made.spec.grid, made.spec.hidden)
            for mask, made in built.items()
        } == published
    assert {name for name in PUBLISHED if views_of(name).maskers} == set(MASKS)
