import dataclasses

import pytest
import torch
from torch.nn import functional

from sslpipe.methods import ijepa, mae
from sslpipe.methods.parts.patches import padded, real_keys, xavier

from . import masked

SMALL = {"predictor_dim": 16, "predictor_depth": 2, "predictor_heads": 2}


@pytest.fixture
def method():
    return ijepa.IJEPA(masked.vit(), masked.spec_of(4), **SMALL)


def sample(batch, b):
    """Sample b of a batch, alone."""
    return dataclasses.replace(
        batch,
        views={k: v[:, b : b + 1] for k, v in batch.views.items()},
        masks={k: m[:, b : b + 1] for k, m in batch.masks.items()},
        hidden={k: h[:, b : b + 1] for k, h in batch.hidden.items()},
    )


def test_loss_is_smooth_l1_over_real_tokens(rand):
    pred, target = (2.0 * rand(3, 4, 5)).requires_grad_(), rand(3, 4, 5).requires_grad_()
    real = torch.arange(4) < torch.tensor([[4], [2], [3]])
    loss = ijepa.ijepa_loss(pred, target, real)
    errors = []
    for r, t in real.nonzero().tolist():
        for x, y in zip(pred[r, t].tolist(), target[r, t].tolist(), strict=True):
            d = abs(x - y)
            errors.append(0.5 * d * d if d < 1.0 else d - 0.5)
    assert len(errors) == 9 * 5
    assert loss.item() == pytest.approx(sum(errors) / len(errors))
    everything = ijepa.ijepa_loss(pred, target, torch.ones(3, 4, dtype=torch.bool))
    torch.testing.assert_close(everything, functional.smooth_l1_loss(pred, target))
    loss.backward()
    assert target.grad is None
    assert pred.grad[~real].abs().sum() == 0


def test_targets_are_layer_normed_tokens_at_the_target_places(rand):
    tokens, index = rand(2, 6, 8), torch.tensor([[0, 3], [5, 1], [2, 4], [4, 0]])
    targets = ijepa.ijepa_targets(tokens, index)
    for row in range(4):  # block by block: rows 0, 1 are block 0 of images 0, 1
        for t in range(2):
            token = tokens[row % 2, index[row, t]]
            normed = (token - token.mean()) / (token.var(correction=0) + 1e-5).sqrt()
            torch.testing.assert_close(targets[row, t], normed)


def test_padding_lists_what_is_chosen_and_says_what_is_real():
    chosen = torch.tensor([[True, False, True, True], [False, True, False, False]])
    found = padded(chosen, chosen.sum(-1).numpy())
    assert found.index_BS.tolist() == [[0, 2, 3], [1, 0, 2]]
    assert found.real_BS.tolist() == [[True, True, True], [True, False, False]]
    assert not found.even
    assert real_keys(found, found).equal(found.real_BS.repeat(1, 2))
    even = padded(chosen[:1], chosen[:1].sum(-1).numpy())
    assert even.even
    assert real_keys(even, even) is None


def test_masks_of_different_lengths_change_nothing(method):
    """Every sample of a padded batch is predicted as if it stood alone, without padding."""
    method.double().eval()  # weights start small: what padding would add is below 1e-5
    batch = masked.batch_of(dtype=torch.float64)
    assert len(set(batch.hidden["context"][0].tolist())) == 4
    together = run(method, batch)
    for b in range(4):
        for m in range(2):
            alone = dataclasses.replace(sample(batch, b))
            alone.masks["targets"] = alone.masks["targets"][m : m + 1]
            alone.hidden["targets"] = alone.hidden["targets"][m : m + 1]
            pred = run(method, alone)
            assert pred.shape[1] == batch.hidden["targets"][m, b]
            torch.testing.assert_close(together[m * 4 + b, : pred.shape[1]], pred[0])


def run(method, batch):
    """The predictions of a batch."""
    found = []
    with torch.no_grad():
        hook = method.predictor.register_forward_hook(lambda _, args, out: found.append(out))
        method(batch)
        hook.remove()
    return found[0]


def with_moved_pixels(batch, patches_BN):
    patches = mae.patchify(batch.views["global"][0], 4) + 9.0 * patches_BN[:, :, None]
    return dataclasses.replace(
        batch, views={"global": mae.unpatchify(patches, 4, masked.GRID)[None]}
    )


def test_the_student_sees_the_context_and_the_teacher_everything(method):
    method.eval()
    batch = masked.batch_of()
    hidden = batch.masks["context"][0]
    pred, other = run(method, batch), with_moved_pixels(batch, hidden)
    real = ijepa.IJEPA.chosen(batch)[1].real_BS
    torch.testing.assert_close(run(method, other)[real], pred[real])
    changed = run(method, with_moved_pixels(batch, ~hidden)) - pred
    assert changed[real].abs().max() > 1e-4
    assert (method(other).loss - method(batch).loss).abs() > 1e-4  # other targets


def test_forward_is_the_loss_of_its_parts(method):
    method.predictor.apply(xavier)  # weights start so small that the context hardly counts
    batch = masked.batch_of()
    images = batch.views["global"][0]
    whole = method.teacher.tokens(images)[:, 1:]
    errors = []
    for b in range(4):
        context = (~batch.masks["context"][0, b]).nonzero()[:, 0]
        tokens = method.student.tokens(images[b : b + 1], context[None])[:, 1:]
        for m in range(2):
            places = batch.masks["targets"][m, b].nonzero()[:, 0]
            net = method.predictor
            queries = net.mask_token_11D[0, 0] + net.positions_ND[places]
            x = torch.cat([net.embed(tokens)[0] + net.positions_ND[context], queries])[None]
            for block in net.blocks:
                x = block(x)
            pred = net.predict(net.norm(x))[0, len(context) :]
            target = functional.layer_norm(whole[b, places], (24,))
            errors += functional.smooth_l1_loss(pred, target, reduction="none").flatten().tolist()
    assert method(batch).loss.item() == pytest.approx(sum(errors) / len(errors), rel=1e-5)


def test_weights_start_as_officially():
    method = ijepa.IJEPA(
        masked.vit(), masked.spec_of(4), predictor_dim=96, predictor_depth=4, predictor_heads=4
    )
    net = method.predictor
    for block in net.blocks:  # init_model draws anew what the constructor had scaled by its depth
        for layer in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert block.mlp.fc2.bias.abs().sum() == 0
    assert not any("positions" in name for name, _ in net.named_parameters())
