"""Jigsaw and relative patches: views are encoded alike, joined in order, and asked about."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from sslpipe.batch import TargetSpec
from sslpipe.errors import ContractError
from sslpipe.methods.jigsaw import Jigsaw
from sslpipe.methods.relative_patch import RelativePatch

from .maps_encoder import NoWait


@pytest.fixture
def puzzle(make_batch, rand):
    views = {"global": rand(9, 5, 3, 8, 8).float()}
    batch, spec = make_batch(views, targets={"jigsaw": torch.tensor([[0, 3, 6, 2, 3]])})
    return batch, replace(spec, targets={"jigsaw": TargetSpec("global", 1, 7)})


@pytest.fixture
def pair(make_batch, rand):
    views = {"global": rand(2, 5, 3, 8, 8).float()}
    batch, spec = make_batch(views, targets={"relative_patch": torch.tensor([[0, 3, 6, 2, 7]])})
    return batch, replace(spec, targets={"relative_patch": TargetSpec("global", 1, 8)})


def test_jigsaw_joins_the_tiles_in_the_order_shown(encoder, puzzle):
    batch, spec = puzzle
    method = Jigsaw(encoder, spec, tile_dim=4, hidden=16)
    output = method(batch)
    assert encoder.calls == [(45, 3, 8, 8)]  # one pass: BN must see all tiles together
    losses = []
    for b in range(5):
        tiles = [method.siamese.project(encoder(batch.views["global"][v, b][None]))
                 for v in range(9)]  # fmt: skip
        logits = method.head(torch.cat(tiles, 1))
        losses.append(F.cross_entropy(logits, batch.targets["jigsaw"][0, b][None]))
    assert output.loss.item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)
    turned = replace(batch, views={"global": batch.views["global"].roll(1, 0)})
    assert method(turned).loss.item() != pytest.approx(output.loss.item(), rel=1e-5)


def test_pairs_are_asked_both_ways_round(encoder, pair):
    batch, spec = pair
    method = RelativePatch(encoder, spec, patch_dim=4, hidden=16).eval()
    z1, z2 = (method.siamese.project(encoder(v)) for v in batch.views["global"])
    place = batch.targets["relative_patch"][0]
    there = F.cross_entropy(method.head(torch.cat([z1, z2], 1)), place)
    back = F.cross_entropy(method.head(torch.cat([z2, z1], 1)), 7 - place)
    encoder.calls.clear()
    loss = method(batch).loss
    assert encoder.calls == [(10, 3, 8, 8)]
    assert loss.item() == pytest.approx(((there + back) / 2).item(), rel=1e-5)
    # so the swapped pair with the opposite place is the same question
    swapped = replace(
        batch,
        views={"global": batch.views["global"].flip(0)},
        targets={"relative_patch": 7 - batch.targets["relative_patch"]},
    )
    assert method(swapped).loss.item() == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize(("build", "fixture"), [(Jigsaw, "puzzle"), (RelativePatch, "pair")])
def test_gradients_reach_all_nothing_waits_and_one_batch_is_learned(
    build, fixture, encoder, request
):
    batch, spec = request.getfixturevalue(fixture)
    method = build(encoder, spec, hidden=32)
    optimizer = torch.optim.Adam(method.parameters(), 0.003)
    with NoWait():
        first = method(batch)
        first.loss.backward()
        method.after_step(1.0)
    assert all(p.grad is not None for p in method.parameters())
    assert method.encoder is encoder
    for _ in range(30):
        optimizer.zero_grad()
        last = method(batch)
        last.loss.backward()
        optimizer.step()
    assert last.loss < 0.5 * first.loss
    assert first.metrics["accuracy"].shape == ()


def test_what_they_need_is_said_at_construction(encoder, puzzle, pair):
    with pytest.raises(ContractError, match=r"jigsaw needs targets\['jigsaw'\]"):
        Jigsaw(encoder, pair[1])
    ids = {"relative_patch": TargetSpec("global", 1, 8)}
    with pytest.raises(ContractError, match="needs 2 'global' views; this recipe makes 9"):
        RelativePatch(encoder, replace(puzzle[1], targets=ids))
    numbers = {"jigsaw": TargetSpec("global", 1, None)}
    with pytest.raises(ContractError, match="needs class ids"):
        Jigsaw(encoder, replace(puzzle[1], targets=numbers))
    with pytest.raises(ValueError, match="hidden = 0; set what is above 0"):
        Jigsaw(encoder, puzzle[1], hidden=0)
    with pytest.raises(ValueError, match="patch_dim = 0; set what is above 0"):
        RelativePatch(encoder, pair[1], patch_dim=0)
