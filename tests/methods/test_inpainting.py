"""Context encoder: the hole, its visible rim, and the loss on both."""

from dataclasses import replace

import pytest
import torch

from sslpipe.errors import ContractError
from sslpipe.methods.inpainting import Inpainting, inpainting_loss, pixels_of, without_margin

from .maps_encoder import MapsEncoder, NoWait


@pytest.fixture
def holed(make_batch, rand):
    hidden = torch.zeros(1, 3, 4, 4, dtype=torch.bool)
    hidden[:, 0, 1:3, 1:3] = True
    hidden[:, 1, :2, :2] = True
    hidden[:, 2, 2:, 1:3] = True
    views = {"global": rand(1, 3, 3, 32, 32).float()}
    return make_batch(views, masks={"hole": hidden.flatten(2)}, patch_size=8)


def build(holed, **settings):
    torch.manual_seed(0)
    return Inpainting(MapsEncoder(), holed[1], decoder=(4, 4), overlap=2, **settings)


def slow_loss(pred, images, region, overlap, weight):
    """Pixel by pixel: the rim is what is nearer than `overlap` px to a visible pixel."""
    total, count = 0.0, 0
    size, channels, height, width = images.shape
    for b in range(size):
        for y in range(height):
            for x in range(width):
                if not region[b, y, x]:
                    continue
                near = region[b, max(0, y - overlap) : y + overlap + 1,
                              max(0, x - overlap) : x + overlap + 1]  # fmt: skip
                factor = 1 if bool(near.all()) else weight
                for c in range(channels):
                    total += factor * float(pred[b, c, y, x] - images[b, c, y, x]) ** 2
                    count += 1
    return total / count


def test_loss_is_that_of_the_paper_pixel_by_pixel(rand):
    images, pred = rand(2, 3, 12, 12), rand(2, 3, 12, 12)
    hidden = torch.tensor([[0, 0, 0, 0, 1, 1, 0, 1, 1], [1, 1, 0, 1, 1, 0, 0, 0, 0]]).bool()
    region = pixels_of(hidden, (3, 3), 4)
    assert region.shape == (2, 1, 12, 12)
    assert torch.equal(region[1, 0, :8, :8], torch.ones(8, 8))
    loss = inpainting_loss(pred, images, region, without_margin(region, 1), overlap_weight=7.0)
    slow = slow_loss(pred, images, region[:, 0].bool(), 1, 7.0)
    assert loss.item() == pytest.approx(slow, rel=1e-6)


def test_what_is_visible_costs_nothing(rand):
    images, pred = rand(1, 3, 8, 8), rand(1, 3, 8, 8)
    region = pixels_of(torch.tensor([[True, False, False, False]]), (2, 2), 4)
    pred.requires_grad_()
    inpainting_loss(pred, images, region, region).backward()
    assert pred.grad[:, :, :4, :4].abs().min() > 0
    assert pred.grad[:, :, 4:].abs().max() == 0


def test_the_encoder_never_sees_the_hole_and_sees_its_rim(holed):
    batch, _ = holed
    method = build(holed, fill=0.25)
    first = method(batch).loss
    seen = method.encoder.seen
    images = batch.views["global"][0]
    hole = torch.zeros(32, 32, dtype=torch.bool)
    hole[10:22, 10:22] = True  # 8 to 24, less 2 px of rim
    assert (seen[0][:, hole] == 0.25).all()
    assert torch.equal(seen[0][:, ~hole], images[0][:, ~hole])
    assert (seen[1][:, :14, :14] == 0.25).all()  # the edge of the picture is no rim
    assert torch.equal(seen[1][:, 14:], images[1][:, 14:])
    images[0][:, 10:22, 10:22] += 1
    method(batch)
    assert torch.equal(method.encoder.seen[0], seen[0])
    assert method(batch).loss > first


def test_gradients_reach_all_and_nothing_waits(holed):
    method = build(holed)
    with NoWait():
        output = method(holed[0])
        output.loss.backward()
        method.after_step(1.0)
    assert all(p.grad.abs().sum() > 0 for p in method.parameters())
    assert not output.metrics["prediction_std"].requires_grad


def test_what_it_needs_is_said_at_construction(holed, encoder):
    batch, spec = holed
    with pytest.raises(ContractError, match=r"needs an encoder with maps.* gives none\. Set train"):
        Inpainting(encoder, spec, overlap=1)
    with pytest.raises(ContractError, match="overlap = 4 px either side may close a hole"):
        Inpainting(MapsEncoder(), spec, overlap=4)
    with pytest.raises(ContractError, match=r"needs masks\['hole'\]"):
        Inpainting(MapsEncoder(), replace(spec, masks={}))
    uneven = replace(spec.masks["hole"], hidden=None)
    with pytest.raises(ContractError, match=r"needs masks\.hole to hide the same number"):
        Inpainting(MapsEncoder(), replace(spec, masks={"hole": uneven}))
    with pytest.raises(ValueError, match=r"overlap_weight = -1\.0"):
        Inpainting(MapsEncoder(), spec, overlap=1, overlap_weight=-1.0)
    with pytest.raises(ValueError, match=r"decoder = \(\); set what is above 0"):
        Inpainting(MapsEncoder(), spec, decoder=(), overlap=1)
    assert batch.masks["hole"].shape == (1, 3, 16)
