import numpy as np
import pytest
import torch

from sslpipe.methods import mae, simmim

from . import masked

PATCH = 4


def slow_simmim_loss(pred, images, hidden, patch):
    """simmim.py:95-104 with loops; without the 1e-5 that guards against masks of nothing."""
    pred, images, hidden = pred.numpy(), images.numpy(), hidden.numpy()
    columns = images.shape[3] // patch
    total, pixels = 0.0, 0
    for b, n in np.argwhere(hidden):
        row, column = divmod(n, columns)
        for y in range(row * patch, (row + 1) * patch):
            for x in range(column * patch, (column + 1) * patch):
                total += sum(abs(pred[b, c, y, x] - images[b, c, y, x]) for c in range(3))
                pixels += 1
    return total / pixels / 3


def test_loss_is_the_absolute_error_of_hidden_pixels(rand):
    pred, images = rand(2, 3, 8, 12).requires_grad_(), rand(2, 3, 8, 12)
    hidden = rand(2, 6).argsort(-1) < 4
    loss = simmim.simmim_loss(pred, images, hidden, patch_size=PATCH)
    expected = slow_simmim_loss(pred.detach(), images, hidden, PATCH)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    loss.backward()
    grad_BNP = mae.patchify(pred.grad, PATCH)
    assert grad_BNP[~hidden].abs().sum() == 0
    # every hidden value weighs alike: 1 / (hidden pixels * channels)
    torch.testing.assert_close(grad_BNP[hidden].abs(), torch.full((8, 48), 1 / (8 * 48.0)).double())


def test_targets_are_not_scaled_patch_by_patch(rand):
    pred, images = torch.zeros(2, 3, 8, 12), rand(2, 3, 8, 12)
    hidden = torch.ones(2, 6, dtype=torch.bool)
    once = simmim.simmim_loss(pred, images, hidden, patch_size=PATCH)
    twice = simmim.simmim_loss(pred, 2.0 * images, hidden, patch_size=PATCH)
    torch.testing.assert_close(twice, 2.0 * once)


@pytest.fixture
def method():
    return simmim.SimMIM(masked.vit(), masked.spec_of(4)).eval()


def shown_pixels_moved(batch, hidden):
    """The batch with other pixels in the patches that `hidden` marks."""
    patches = mae.patchify(batch.views["global"][0], PATCH) + 9.0 * hidden[:, :, None]
    return mae.unpatchify(patches, PATCH, masked.GRID)


def test_the_encoder_sees_mask_tokens_and_not_hidden_pixels(method):
    batch = masked.batch_of()
    images, hidden = batch.views["global"][0], batch.masks["units"][0]
    options = {"hidden_BN": hidden, "mask_token_D": method.mask_token_11D[0, 0]}
    tokens = method.encoder.tokens(images, **options)
    assert tokens.shape == (4, 17, 24)  # mask tokens stand in the encoder, unlike in MAE
    same = method.encoder.tokens(shown_pixels_moved(batch, hidden), **options)
    torch.testing.assert_close(same, tokens)
    other = method.encoder.tokens(shown_pixels_moved(batch, ~hidden), **options)
    assert not torch.allclose(other, tokens, atol=1e-2)


def test_mask_tokens_replace_embedded_patches_before_positions_are_added(method):
    batch = masked.batch_of()
    images, hidden = batch.views["global"][0], batch.masks["units"][0]
    seen = []
    method.encoder.model.norm_pre.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    method.encoder.tokens(images, hidden_BN=hidden, mask_token_D=method.mask_token_11D[0, 0])
    patches = (seen[0] - method.encoder.model.pos_embed)[:, 1:]
    expected = method.mask_token_11D[0].expand(int(hidden.sum()), -1)
    torch.testing.assert_close(patches[hidden], expected, atol=1e-6, rtol=0)
    embedded = method.encoder.model.patch_embed(images).flatten(1, 2)
    torch.testing.assert_close(patches[~hidden], embedded[~hidden], atol=1e-6, rtol=0)


def test_a_token_becomes_the_pixels_of_its_own_patch(method, rand):
    """A 1 x 1 convolution, then channel (c, y, x) of a token is pixel (y, x) of c."""
    tokens = rand(1, 16, 24).float()
    pixels = method.decoder(tokens.mT.view(1, 24, 4, 4))
    convolution = method.decoder[0]
    values = tokens @ convolution.weight[:, :, 0, 0].T + convolution.bias
    for n in range(16):
        row, column = divmod(n, 4)
        patch = pixels[0, :, row * 4 : row * 4 + 4, column * 4 : column * 4 + 4]
        torch.testing.assert_close(patch.flatten(), values[0, n])


def test_forward_is_the_loss_of_its_parts(method):
    batch = masked.batch_of()
    images, hidden = batch.views["global"][0], batch.masks["units"][0]
    tokens = method.encoder.tokens(
        images, hidden_BN=hidden, mask_token_D=method.mask_token_11D[0, 0]
    )
    pred = method.decoder(tokens[:, 1:].mT.reshape(4, 24, 4, 4)).detach()
    expected = slow_simmim_loss(pred, images, hidden, PATCH)
    assert method(batch).loss.item() == pytest.approx(expected, rel=1e-5)
