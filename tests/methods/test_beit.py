import math

import numpy as np
import pytest
import torch
from torch import nn

from sslpipe import methods
from sslpipe.errors import RecipeError
from sslpipe.methods import beit, mae
from sslpipe.recipe.names import Entry

from . import masked

PATCH, SMALL = 4, {"random_projection": {"vocabulary": 10}}


def build(**settings):
    return methods.build_method(
        Entry("beit", settings, "r.yaml:5"), masked.vit(), masked.spec_of(4)
    )


def slow_beit_loss(logits, ids, real):
    losses = []
    for b, s in np.argwhere(real.numpy()):
        exps = [math.exp(x) for x in logits[b, s].tolist()]
        losses.append(-math.log(exps[ids[b, s]] / sum(exps)))
    return sum(losses) / len(losses)


def test_loss_is_cross_entropy_over_hidden_patches(rand):
    logits, ids = rand(3, 5, 7).requires_grad_(), torch.arange(15).view(3, 5) % 7
    real = torch.arange(5) < torch.tensor([[5], [3], [4]])
    loss = beit.beit_loss(logits, ids, real)
    assert loss.item() == pytest.approx(slow_beit_loss(logits.detach(), ids, real))
    loss.backward()
    assert logits.grad[~real].abs().sum() == 0
    # every patch weighs alike, however many its image hides
    hot = nn.functional.one_hot(ids, 7)
    expected = (logits.detach().softmax(-1) - hot) / 12
    torch.testing.assert_close(logits.grad[real], expected[real])


def test_uniform_logits_cost_the_log_of_the_vocabulary():
    ids, real = torch.zeros(2, 3, dtype=torch.int64), torch.ones(2, 3, dtype=torch.bool)
    assert beit.beit_loss(torch.zeros(2, 3, 8192), ids, real).item() == pytest.approx(
        math.log(8192)
    )


def test_forward_scores_the_hidden_patches_and_no_others():
    method, batch = build(tokenizer=SMALL).eval(), masked.batch_of()
    images, hidden = batch.views["global"][0], batch.masks["blocks"][0]
    assert len(set(hidden.sum(-1).tolist())) == 3  # images hide different numbers
    seen = []
    method.head.register_forward_hook(lambda _, args, out: seen.append(args[0].shape))
    output = method(batch)
    assert seen == [(4, 7, 24)]  # the head, the dearest part, sees the most hidden of an image
    tokens = method.encoder.tokens(
        images, hidden_BN=hidden, mask_token_D=method.mask_token_11D[0, 0]
    )
    logits, ids = method.head(tokens[:, 1:]).detach(), method.tokenizer.tokenize(images)
    expected = slow_beit_loss(logits, ids, hidden)
    assert output.loss.item() == pytest.approx(expected, rel=1e-5)
    hits = (logits.argmax(-1) == ids)[hidden].float().mean()
    assert output.metrics["accuracy"].item() == pytest.approx(hits.item())
    share = torch.bincount(ids[hidden], minlength=10) / hidden.sum()
    entropy = -sum(p * math.log(p) for p in share.tolist() if p > 0)
    assert output.metrics["token_entropy"].item() == pytest.approx(entropy, rel=1e-5)


def test_the_tokenizer_sees_hidden_pixels_and_the_encoder_does_not():
    method, batch = build(tokenizer=SMALL).eval(), masked.batch_of()
    images, hidden = batch.views["global"][0], batch.masks["blocks"][0]
    noise = torch.randn(4, 16, 48, generator=torch.Generator().manual_seed(1))
    other = mae.unpatchify(
        mae.patchify(images, PATCH) + 9.0 * noise * hidden[:, :, None], PATCH, masked.GRID
    )
    options = {"hidden_BN": hidden, "mask_token_D": method.mask_token_11D[0, 0]}
    tokens = method.encoder.tokens(images, **options)
    torch.testing.assert_close(method.encoder.tokens(other, **options), tokens)
    changed = method.tokenizer.tokenize(images) != method.tokenizer.tokenize(other)
    assert changed[hidden].float().mean() > 0.5
    assert not changed[~hidden].any()


def test_ids_are_the_nearest_codes_of_projected_patches(rand):
    quantizer = beit.RandomProjection(PATCH, 3, vocabulary=20, dim=5)
    images = rand(2, 3, 8, 8).float()
    ids = quantizer.tokenize(images)
    assert ids.shape == (2, 4)
    assert ids.dtype == torch.int64
    projection, codes = (
        quantizer.projection_PE.double().numpy(),
        quantizer.codes_KE.double().numpy(),
    )
    np.testing.assert_allclose(np.linalg.norm(codes, axis=1), 1, rtol=1e-6)
    for b, patches in enumerate(mae.patchify(images.double(), PATCH).numpy()):
        for n, patch in enumerate(patches):
            code = (patch - patch.mean()) / patch.std(ddof=1) @ projection
            distances = np.linalg.norm(codes - code / np.linalg.norm(code), axis=1)
            assert ids[b, n] == distances.argmin()


def test_ids_depend_on_seed_and_patch_alone(rand):
    make = beit.RandomProjection
    images = rand(2, 3, 16, 16).float()
    state = torch.get_rng_state()
    ids = make(PATCH, 3, vocabulary=50).tokenize(images)
    assert torch.get_rng_state().equal(state)  # the caller's generator is left alone
    assert make(PATCH, 3, vocabulary=50).tokenize(images).equal(ids)
    assert not make(PATCH, 3, vocabulary=50, seed=1).tokenize(images).equal(ids)
    assert make(PATCH, 3, vocabulary=50).tokenize(2.0 * images + 3.0).equal(ids)
    assert len(ids.unique()) > 10
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    moved = mae.unpatchify(mae.patchify(images, PATCH)[:, order], PATCH, (4, 4))
    assert make(PATCH, 3, vocabulary=50).tokenize(moved).equal(ids[:, order])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert make(PATCH, 3, vocabulary=50).tokenize(images).equal(ids)


def test_a_users_tokenizer_is_frozen_and_stays_in_eval_mode(monkeypatch, tmp_path):
    (tmp_path / "my_tokenizer.py").write_text(
        "import torch\nfrom torch import nn\n\n\n"
        "class Means(nn.Module):\n"
        "    def __init__(self, patch_size, channels, *, vocabulary: int):\n"
        "        super().__init__()\n"
        "        self.pool = nn.Conv2d(channels, vocabulary, patch_size, patch_size)\n"
        "        self.vocabulary = vocabulary\n\n"
        "    def tokenize(self, images):\n"
        "        assert not self.training and not torch.is_grad_enabled()\n"
        "        return self.pool(images).flatten(2).argmax(1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    method = build(tokenizer={"my_tokenizer:Means": {"vocabulary": 6}}).train()
    assert method.head.out_features == 6
    method(masked.batch_of()).loss.backward()
    assert method.training
    assert all(p.grad is None and not p.requires_grad for p in method.tokenizer.parameters())
    assert method.encoder.model.patch_embed.proj.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        ("dvae", "unknown tokenizer 'dvae'.*random_projection"),
        ({"random_projection": {"codes": 9}}, "no setting 'codes'"),
        ({"random_projection": {"vocabulary": 1}}, "vocabulary = 1 must be 2 or more"),
        ({"a": {}, "b": {}}, "give one name"),
    ],
)
def test_impossible_tokenizers_are_named(tokenizer, message):
    with pytest.raises(RecipeError, match=message):
        build(tokenizer=tokenizer)
