import pytest
import torch
from torch import nn
from torch.nn import functional

from sslpipe.encoders.patches import visible_first
from sslpipe.errors import ContractError
from sslpipe.methods import data2vec2, mae
from sslpipe.methods.data2vec2 import ConvDecoder

from . import masked

SMALL = {"top_k": 2, "decoder_dim": 16, "decoder_depth": 2, "decoder_groups": 4}


def slow_targets(outputs, top_k):
    """`make_targets` of data2vec2.py with the switches of the configuration for images."""
    layers = [layer.transpose(1, 2) for layer in outputs[-top_k:]]  # BTC -> BCT
    layers = [functional.instance_norm(layer.double()).transpose(1, 2) for layer in layers]
    return functional.layer_norm(sum(layers) / len(layers), layers[0].shape[-1:])


@pytest.fixture
def method():
    return data2vec2.Data2Vec2(masked.vit(), masked.spec_of(4), **SMALL)


@pytest.mark.parametrize("top_k", [1, 3, 9])
def test_targets_are_the_official_ones(rand, top_k):
    outputs = rand(4, 2, 6, 8)
    targets = data2vec2.data2vec_targets(outputs, top_k=top_k)
    torch.testing.assert_close(targets, slow_targets(outputs, top_k))


def test_targets_ignore_a_layers_scale_and_what_all_patches_share(rand):
    outputs, factor = rand(3, 2, 50, 8), torch.tensor([1.0, 10.0, 100.0])[:, None, None, None]
    targets = data2vec2.data2vec_targets(outputs, top_k=3)
    scaled = data2vec2.data2vec_targets(outputs * factor + rand(3, 2, 1, 8), top_k=3)
    torch.testing.assert_close(scaled, targets, atol=1e-4, rtol=0)
    # an output that is the same everywhere is worth nothing: no constant solves the task
    assert data2vec2.data2vec_targets(torch.ones(3, 2, 50, 8), top_k=3).abs().sum() == 0


def test_loss_is_the_squared_error_over_root_d_of_hidden_patches(rand):
    pred, target = rand(3, 2, 6, 8).requires_grad_(), rand(2, 6, 8).requires_grad_()
    hidden = rand(3, 2, 6).argsort(-1) < 4
    loss = data2vec2.data2vec_loss(pred, target, hidden)
    errors = [
        (pred[m, b, n] - target[b, n]).square().sum().item() / 8**0.5
        for m, b, n in hidden.nonzero().tolist()
    ]
    assert len(errors) == 3 * 2 * 4
    assert loss.item() == pytest.approx(sum(errors) / len(errors))
    loss.backward()
    assert target.grad is None
    assert pred.grad[~hidden].abs().sum() == 0
    assert (pred.grad[hidden].abs().sum(-1) > 0).all()


def test_the_teacher_sees_an_image_once_and_whole_the_student_every_mask(method):
    batch, seen = masked.batch_of(), {}
    for name in ("encoder", "teacher"):
        part = getattr(method, name).model.blocks[0]
        part.register_forward_pre_hook(
            lambda _, args, name=name: seen.setdefault(name, []).append(args[0].shape)
        )
    method(batch)
    assert seen == {"teacher": [(4, 17, 24)], "encoder": [(3 * 4, 5, 24)]}  # 4 of 16 are visible


def test_forward_is_the_loss_of_its_parts():
    method = data2vec2.Data2Vec2(
        masked.vit(), masked.spec_of(4), **SMALL, mask_noise=0.0, cls_weight=0.5
    )
    batch = masked.batch_of()
    images, hidden = batch.views["global"][0], batch.masks["inverse"]
    target = slow_targets(method.teacher.feed_forwards(images)[:, :, 1:].detach(), 2)
    patch_losses, cls_losses = [], []
    for m in range(3):
        order = visible_first(hidden[m])
        tokens = method.encoder.tokens(images, order[:, :4])
        error = (method.decoder(tokens, order) - target).square().sum(-1) / 24**0.5
        patch_losses.append(error[hidden[m]].mean().item())
        cls_error = (tokens[:, 0] - target.mean(1)).square().sum(-1) / 24**0.5
        cls_losses.append(cls_error.mean().item())
    output = method(batch)
    patch, cls = sum(patch_losses) / 3, sum(cls_losses) / 3
    assert output.metrics["patch_loss"].item() == pytest.approx(patch, rel=1e-5)
    assert output.metrics["cls_loss"].item() == pytest.approx(cls, rel=1e-5)
    assert output.loss.item() == pytest.approx(patch + 0.5 * cls, rel=1e-5)


def test_the_student_never_sees_hidden_pixels(method):
    batch = masked.batch_of()
    images, hidden = batch.views["global"][0], batch.masks["inverse"][0]
    order = visible_first(hidden)
    patches = mae.patchify(images, 4) + 9.0 * hidden[:, :, None]
    other = mae.unpatchify(patches, 4, masked.GRID)
    tokens = method.encoder.tokens(images, order[:, :4])
    torch.testing.assert_close(method.encoder.tokens(other, order[:, :4]), tokens)
    targets = [method.teacher.feed_forwards(x)[-1] for x in (images, other)]
    assert not torch.allclose(*targets, atol=1e-2)


def decoder(noise, dim=24, depth=2):
    torch.manual_seed(0)
    return ConvDecoder(24, (4, 4), dim=dim, depth=depth, groups=4, noise=noise)


def test_the_decoder_puts_tokens_in_their_places_and_noise_elsewhere(rand):
    hidden = rand(200, 16).argsort(-1) < 12
    visible = rand(200, 4, 24).float()
    whole = decoder(0.01).whole(visible, visible_first(hidden))
    assert whole[~hidden].equal(visible.flatten(0, 1))
    assert whole[hidden].std().item() == pytest.approx(0.01, rel=0.02)
    assert whole[hidden].mean().abs() < 1e-4
    assert decoder(0.0).whole(visible, visible_first(hidden))[hidden].abs().sum() == 0


def test_the_decoder_is_the_official_one(rand):
    """Decoder2d with loops: convolution, layer norm over channels, GELU, plus what went in."""
    net, tokens = decoder(0.0), rand(2, 17, 24).float()
    order = torch.arange(16).expand(2, 16)
    x = tokens[:, 1:].transpose(1, 2).reshape(2, 24, 4, 4)
    for convolution in net.convolutions:
        y = functional.conv2d(x, convolution.weight, convolution.bias, padding=1, groups=4)
        mean, var = y.mean(1, keepdim=True), y.var(1, correction=0, keepdim=True)
        x = x + functional.gelu((y - mean) / (var + 1e-5).sqrt())
    expected = net.predict(x.reshape(2, 24, 16).transpose(1, 2))
    torch.testing.assert_close(net(tokens, order), expected)
    assert decoder(0.0, dim=16)(tokens, order).shape == (2, 16, 24)  # no residual into a new width


def test_drop_path_is_the_students_alone():
    method = data2vec2.Data2Vec2(masked.vit(drop_path_rate=0.5), masked.spec_of(4), **SMALL)
    images = masked.batch_of().views["global"][0]
    assert method.teacher.feed_forwards(images).equal(method.teacher.feed_forwards(images))
    assert not method.encoder.tokens(images).equal(method.encoder.tokens(images))


def test_an_encoder_without_layers_is_named():
    class Flat(nn.Module):
        dim, patch_size = 24, 4

        def tokens(self, images):
            return images

    with pytest.raises(ContractError, match="data2vec2 needs an encoder with feed_forwards"):
        data2vec2.Data2Vec2(Flat(), masked.spec_of(4))
