"""Colorization: Lab as others compute it, and what is shown and asked."""

import pytest
import torch
from kornia.color import rgb_to_lab as kornia_lab

from sslpipe.modalities.image.targets.colorization import rgb_to_lab

from .test_targets import apply, build, views_of


def test_lab_is_kornia_s():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4, 3, 16, 16, generator=generator, dtype=torch.float64)
    images[0] *= 0.05  # the straight parts of both curves
    torch.testing.assert_close(rgb_to_lab(images), kornia_lab(images), atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [
        ((1, 1, 1), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((1, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 1, 0), (87.73, -86.18, 83.18)),
        ((0, 0, 1), (32.30, 79.19, -107.86)),
    ],
)
def test_lab_of_known_colours(rgb, lab):
    made = rgb_to_lab(torch.tensor(rgb, dtype=torch.float64).view(3, 1, 1)).flatten()
    torch.testing.assert_close(made, torch.tensor(lab, dtype=torch.float64), atol=0.03, rtol=0)


def test_views_hold_lightness_alone_and_targets_the_nearest_pixels_colour():
    task, spec = build("colorization", stride=4)
    views, targets = apply(task, spec, [1, 2])
    lab = kornia_lab(views_of(spec, [1, 2])[0])
    for channel in range(3):
        torch.testing.assert_close(views[0, :, channel], lab[:, 0] / 100, atol=1e-4, rtol=0)
    assert 0 <= views.min() <= views.max() <= 1.0001
    torch.testing.assert_close(targets[0], lab[:, 1:, ::4, ::4], atol=1e-2, rtol=0)
    one, _ = build("colorization", channels=1)
    assert one.view_spec.size("C") == 1
    assert apply(one, spec, [1])[0].shape == (1, 1, 1, 32, 32)


def test_overshooting_pixels_make_no_nan():
    task, _ = build("colorization")
    views, targets = task.task.apply(torch.full((1, 1, 3, 32, 32), -0.2), None, None)
    assert torch.equal(views, torch.zeros(1, 1, 3, 32, 32))
    torch.testing.assert_close(targets, torch.zeros(1, 1, 2, 16, 16), atol=1e-4, rtol=0)
