import dataclasses

import numpy as np
import pytest
import torch

from sslpipe.batch import Batch, BatchSpec, MaskSpec, ViewSpec
from sslpipe.encoders import build_encoder
from sslpipe.encoders.patches import sincos, visible_first
from sslpipe.errors import ContractError, RecipeError
from sslpipe.methods import build_method, mae
from sslpipe.recipe.names import Entry
from tests.view_specs import square

PATCH, GRID, HIDDEN = 4, 4, 12
VIT = {"patch_size": PATCH, "embed_dim": 24, "depth": 2, "num_heads": 2, "pos_embed": "sincos"}
SMALL = {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}


@pytest.fixture
def vit():
    torch.manual_seed(0)
    return build_encoder(Entry("vit_tiny", VIT), square(PATCH * GRID)).eval()


@pytest.fixture
def masked(make_batch, rand):
    """Three images, each with its own mask of 12 of 16 patches."""
    images = rand(1, 3, 3, 16, 16).float()
    masks = rand(1, 3, GRID * GRID).argsort(dim=-1) < HIDDEN
    return make_batch({"global": images}, {"random": masks}, patch_size=PATCH)


def slow_patchify(images, patch):
    """models_mae.py, patchify, as loops: patches row-major, then row, column, channel."""
    out = []
    for image in images.numpy():
        rows = range(0, image.shape[1], patch)
        columns = range(0, image.shape[2], patch)
        cut = [image[:, r : r + patch, c : c + patch] for r in rows for c in columns]
        out.append([np.moveaxis(piece, 0, -1).ravel() for piece in cut])
    return torch.tensor(np.array(out))


def slow_mae_loss(pred, images, hidden, patch, normalise):
    target = slow_patchify(images, patch).numpy()
    errors = []
    for b, n in np.argwhere(hidden.numpy()):
        pixels = target[b, n]
        if normalise:
            pixels = (pixels - pixels.mean()) / np.sqrt(pixels.var(ddof=1) + 1e-6)
        errors.append(((pred.numpy()[b, n] - pixels) ** 2).mean())
    return float(np.mean(errors))


def test_patchify_is_the_official_order_and_unpatchify_inverts_it(rand):
    images = rand(2, 3, 8, 12)
    patches = mae.patchify(images, 4)
    assert patches.shape == (2, 6, 48)
    assert patches.equal(slow_patchify(images, 4))
    assert mae.unpatchify(patches, 4, (2, 3)).equal(images)


@pytest.mark.parametrize("normalise", [True, False])
def test_loss_is_the_error_of_hidden_patches(rand, normalise):
    images, pred = rand(2, 3, 8, 12), rand(2, 6, 48)
    hidden = rand(2, 6).argsort(-1) < 4
    loss = mae.mae_loss(pred, images, hidden, patch_size=4, normalise=normalise)
    assert loss.item() == pytest.approx(slow_mae_loss(pred, images, hidden, 4, normalise))


def test_visible_predictions_cost_nothing(rand):
    images, pred = rand(2, 3, 8, 12), rand(2, 6, 48).requires_grad_()
    hidden = rand(2, 6).argsort(-1) < 4
    loss = mae.mae_loss(pred, images, hidden, patch_size=4)
    loss.backward()
    assert pred.grad[~hidden].abs().sum() == 0
    assert (pred.grad[hidden].abs().sum(-1) > 0).all()
    wrong = pred.detach() + 100.0 * ~hidden[:, :, None]
    assert mae.mae_loss(wrong, images, hidden, patch_size=4).equal(loss.detach())


def test_flat_patches_are_scaled_by_the_root_of_variance_plus_epsilon(rand):
    images = 1e-3 * rand(1, 3, 4, 4)
    scale = (images.var() / (images.var() + 1e-6)).item()  # of variances; about a half here
    loss = mae.mae_loss(torch.zeros(1, 1, 48), images, torch.ones(1, 1), patch_size=4)
    assert 0.3 < scale < 0.7
    assert loss.item() == pytest.approx(scale * 47 / 48)


def test_predicting_the_mean_costs_just_below_one(rand):
    loss = mae.mae_loss(
        torch.zeros(2, 6, 48), rand(2, 3, 8, 12), torch.ones(2, 6, dtype=torch.bool), patch_size=4
    )
    assert loss.item() == pytest.approx(47 / 48, rel=1e-4)


def test_normalised_targets_ignore_a_patchs_brightness_and_contrast(rand):
    images, pred, hidden = rand(1, 3, 8, 8), rand(1, 4, 48), torch.ones(1, 4, dtype=torch.bool)
    loss = mae.mae_loss(pred, images, hidden, patch_size=4)
    brighter = mae.mae_loss(pred, 3.0 * images + 5.0, hidden, patch_size=4)
    assert brighter.item() == pytest.approx(loss.item(), rel=1e-5)


def test_loss_is_fp32_for_half_precision(rand):
    images, pred = rand(2, 3, 8, 12), rand(2, 6, 48)
    hidden = torch.ones(2, 6, dtype=torch.bool)
    loss = mae.mae_loss(pred.bfloat16(), images.bfloat16(), hidden, patch_size=4)
    assert loss.dtype == torch.float32


def test_visible_patches_come_first_in_raster_order():
    hidden = torch.tensor([[True, False, True, False], [False, False, True, True]])
    assert visible_first(hidden).tolist() == [[1, 3, 0, 2], [0, 1, 2, 3]]


def hide_other_pixels(images, hidden):
    """The same visible patches, other hidden ones."""
    patches = mae.patchify(images, PATCH)
    return mae.unpatchify(patches + 9.0 * hidden[:, :, None], PATCH, (GRID, GRID))


def test_encoder_sees_the_visible_patches_only(vit, masked):
    batch, _ = masked
    images, hidden = batch.views["global"][0], batch.masks["random"][0]
    visible = visible_first(hidden)[:, : GRID * GRID - HIDDEN]
    tokens = vit.tokens(images, visible)
    assert tokens.shape == (3, 1 + 4, 24)  # class token and visible patches: no mask tokens
    torch.testing.assert_close(vit.tokens(hide_other_pixels(images, hidden), visible), tokens)
    other = (
        images
        + 9.0
        - 9.0 * mae.unpatchify(hidden[:, :, None].expand(-1, -1, 48).float(), PATCH, (GRID, GRID))
    )
    assert not torch.allclose(vit.tokens(other, visible), tokens, atol=1e-2)


def test_masks_are_per_sample(vit, masked):
    batch, _ = masked
    images, hidden = batch.views["global"][0], batch.masks["random"][0]
    visible = visible_first(hidden)[:, :4]
    together = vit.tokens(images, visible)
    for b in range(3):
        alone = vit.tokens(images[b : b + 1], visible[b : b + 1])
        torch.testing.assert_close(together[b : b + 1], alone)
    assert len({tuple(row) for row in visible.tolist()}) == 3


def test_decoder_puts_every_token_back_in_its_place(vit, masked):
    batch, spec = masked
    decoder = mae.MAE(vit, spec, **SMALL).decoder
    order = visible_first(batch.masks["random"][0])
    seen = []
    decoder.blocks.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    tokens = torch.arange(3 * 5 * 24.0).view(3, 5, 24) / 100
    assert decoder(tokens, order).shape == (3, 16, 48)
    x, embedded = seen[0] - decoder.positions, decoder.embed(tokens)
    torch.testing.assert_close(x[:, 0], embedded[:, 0])
    for b, hidden in enumerate(batch.masks["random"][0]):
        torch.testing.assert_close(x[b, 1:][~hidden], embedded[b, 1:])
        torch.testing.assert_close(x[b, 1:][hidden], decoder.mask_token[0].expand(HIDDEN, -1))


def test_the_decoder_starts_as_officially(vit, masked):
    decoder = mae.MAE(vit, masked[1], **SMALL | {"decoder_dim": 64}).decoder
    for layer in (decoder.embed, decoder.blocks[0].attn.qkv, decoder.predict):
        bound = (6 / sum(layer.weight.shape)) ** 0.5  # xavier, uniform
        assert layer.weight.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
        assert layer.bias.abs().sum() == 0
    assert decoder.mask_token.std().item() == pytest.approx(0.02, rel=0.3)
    assert decoder.mask_token.requires_grad
    # its class token has a place, too, and positions are learned by nobody
    assert decoder.positions.shape == (1, 1 + GRID * GRID, 64)
    assert "positions" not in dict(decoder.named_parameters())


def spectrograms(patch=4, hidden=24):
    """Three spectrograms of 16 mels x 32 frames, and masks of 24 of 4 x 8 patches."""
    generator = torch.Generator().manual_seed(0)
    views = torch.randn(1, 3, 1, 16, 32, generator=generator)
    masks = torch.rand(1, 3, 32, generator=generator).argsort(-1).argsort(-1) < hidden
    uids = torch.arange(3)
    batch = Batch(
        views={"global": views}, masks={"random": masks}, hidden={}, targets={}, labels=uids,
        params={}, uids=uids, keys=("",) * 3, valid=torch.ones(3, dtype=torch.bool), epoch=0,
        step=0,
    )  # fmt: skip
    view = ViewSpec("global", 1, "CFT", (1, 16, 32))
    mask = MaskSpec("global", 1, "FT", (patch, patch), (4, 8), hidden)
    return batch, BatchSpec(3, 3, {"global": view}, {"random": mask}, {})


def test_spectrograms_are_rebuilt_as_pictures_are():
    torch.manual_seed(0)
    batch, spec = spectrograms()
    vit = build_encoder(Entry("vit_tiny", VIT), spec.views["global"])
    method = mae.MAE(vit, spec, **SMALL)
    views, hidden = batch.views["global"][0], batch.masks["random"][0]
    order = visible_first(hidden)
    pred = method.decoder(vit.tokens(views, order[:, :8]), order)
    assert pred.shape == (3, 32, 16)
    loss = method(batch).loss
    assert loss.item() == pytest.approx(slow_mae_loss(pred.detach(), views, hidden, 4, True))


def moved_by(decoder, order):
    """Which patches' predictions the first visible patch of the first row moves, (4, 8) bool."""
    tokens = torch.randn(3, 9, 24)
    other = tokens.clone()
    other[0, 1] += 1
    with torch.no_grad():
        moved = decoder(tokens, order)[0] != decoder(other, order)[0]
    return moved.any(-1).view(4, 8)


def test_windows_keep_the_decoder_s_attention_near():
    torch.manual_seed(0)
    batch, spec = spectrograms()
    vit = build_encoder(Entry("vit_tiny", VIT), spec.views["global"])
    order = visible_first(batch.masks["random"][0])
    row, column = divmod(order[0, 0].item(), 8)
    window = (row // 2 * 2, column // 2 * 2)
    one = mae.MAE(vit, spec, **SMALL | {"decoder_window": 2}).decoder
    expected = torch.zeros(4, 8, dtype=torch.bool)
    expected[window[0] : window[0] + 2, window[1] : window[1] + 2] = True
    assert torch.equal(moved_by(one, order), expected)
    two = mae.MAE(vit, spec, **SMALL | {"decoder_window": 2, "decoder_depth": 2}).decoder
    # the second block is shifted by a patch along time alone, and windows do not wrap around
    expected[window[0] : window[0] + 2, max(0, window[1] - 1) : window[1] + 3] = True
    assert torch.equal(moved_by(two, order), expected)
    assert not torch.equal(one.positions[0, 0], one.positions[0, 1])
    output = mae.MAE(vit, spec, **SMALL | {"decoder_window": 2})(batch)
    assert output.loss.isfinite()


def test_forward_trains_encoder_and_decoder(vit, masked):
    batch, spec = masked
    method = mae.MAE(vit, spec, **SMALL)
    output = method(batch)
    images, hidden = batch.views["global"][0], batch.masks["random"][0]
    order = visible_first(hidden)
    pred = method.decoder(vit.tokens(images, order[:, :4]), order)
    expected = slow_mae_loss(pred.detach(), images, hidden, PATCH, True)
    assert output.loss.item() == pytest.approx(expected, rel=1e-5)
    output.loss.backward()
    trained = [p for p in method.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)
    assert not vit.model.pos_embed.requires_grad
    assert output.metrics["prediction_std"] > 0
    assert not output.metrics["prediction_std"].requires_grad


def test_sincos_is_the_official_table():
    table = sincos(8, (2, 3))
    assert table.shape == (1, 7, 8)
    assert table[0, 0].abs().sum() == 0  # class token
    for n in range(6):
        row, column = divmod(n, 3)
        expected = []
        for position in (column, row):  # "here w goes first"
            angles = [position / 10000 ** (i / 2) for i in range(2)]
            expected += [*np.sin(angles), *np.cos(angles)]
        assert table[0, 1 + n].tolist() == pytest.approx(expected, abs=1e-6)


def test_contract_errors_say_what_to_change(vit, encoder, masked, make_batch, rand):
    _, spec = masked
    with pytest.raises(ContractError, match=r"mae needs an encoder with tokens.*vit_base"):
        mae.MAE(encoder, spec)
    _, bare = make_batch({"global": rand(1, 3, 3, 16, 16)})
    with pytest.raises(ContractError, match=r"mae needs masks\['random'\].*Add masks\.random"):
        mae.MAE(vit, bare)
    mask = spec.masks["random"]
    other = dataclasses.replace(spec, masks={"random": dataclasses.replace(mask, patch=(8, 8))})
    with pytest.raises(ContractError, match=r"patch_size = 8, but the encoder's is 4"):
        mae.MAE(vit, other)
    local = dataclasses.replace(spec, masks={"random": dataclasses.replace(mask, view="local")})
    with pytest.raises(ContractError, match="not 'local'"):
        mae.MAE(vit, local)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decoder_dim": 20, "decoder_heads": 3}, "decoder_dim = 20 is no multiple"),
        ({"decoder_heads": 0}, "decoder_heads = 0; set what is above 0"),
        ({"decoder_depth": 0}, "decoder_depth = 0; set what is above 0"),
        ({"decoder_dim": 18, "decoder_heads": 2}, "width 18 of a sin-cos embedding"),
        ({"decoder_window": -1}, "decoder_window = -1 is for a grid of two axes, and 1 or more"),
    ],
)
def test_impossible_decoders_are_errors_of_the_recipe(vit, masked, settings, message):
    with pytest.raises(RecipeError, match=rf"r\.yaml:9: mae: {message}"):
        build_method(Entry("mae", SMALL | settings, "r.yaml:9"), vit, masked[1])
