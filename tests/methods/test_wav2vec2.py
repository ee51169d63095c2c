"""wav2vec 2.0's terms against slow transcriptions, and its loss against transformers'."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from sslpipe.batch import Batch, BatchSpec, MaskSpec, TargetSpec, ViewSpec
from sslpipe.encoders.wav2vec2 import Wav2Vec2Encoder
from sslpipe.errors import ContractError, RecipeError
from sslpipe.methods import build_method
from sslpipe.methods.parts.quantizer import GumbelQuantizer, code_perplexity, perplexity
from sslpipe.methods.parts.waves import ScaledGradient
from sslpipe.methods.wav2vec2 import (
    Wav2Vec2,
    contrastive_logits,
    diversity_loss,
    wav2vec2_loss,
)
from sslpipe.recipe.names import Entry

SAMPLES, FRAMES, HIDDEN, DISTRACTORS = 3600, 11, 4, 7
SIZES = {"dim": 32, "depth": 2, "heads": 4, "conv_dim": 16, "position_kernel": 16,
         "position_groups": 4}  # fmt: skip
SMALL = {"entries": 5, "dim": 12, "code_dim": 8}


def spec_of(size, **changes):
    mask = MaskSpec("wave", 1, "T", (320,), (FRAMES,), HIDDEN)
    target = TargetSpec("wave", 1, HIDDEN, (HIDDEN, DISTRACTORS))
    masks, targets = {"spans": replace(mask, **changes)}, {"distractors": target}
    return BatchSpec(size, size, {"wave": ViewSpec("wave", 1, "T", (SAMPLES,))}, masks, targets)


def batch_of(size=3, seed=0, lengths=None):
    generator = torch.Generator().manual_seed(seed)
    waves = torch.rand(1, size, SAMPLES, generator=generator) - 0.5
    hidden = torch.rand(1, size, FRAMES, generator=generator).argsort(-1).argsort(-1) < HIDDEN
    other = torch.randint(HIDDEN - 1, (1, size, HIDDEN, DISTRACTORS), generator=generator)
    other += other >= torch.arange(HIDDEN)[:, None]
    uids = torch.arange(size)
    return Batch(
        views={"wave": waves}, masks={"spans": hidden}, hidden={"spans": hidden.sum(-1).numpy()},
        targets={"distractors": other}, labels=uids, params={}, uids=uids, keys=("",) * size,
        valid=torch.ones(size, dtype=torch.bool), epoch=0, step=0,
        lengths={} if lengths is None else {"wave": torch.tensor([lengths])},
    )  # fmt: skip


def method_of(size=3, **settings):
    torch.manual_seed(0)
    spec = spec_of(size)
    encoder = Wav2Vec2Encoder(spec.views["wave"], **SIZES)
    return Wav2Vec2(encoder, spec, **SMALL | settings)


def given(seed=0, size=2, codes=3):
    generator = torch.Generator().manual_seed(seed)
    pred, target = torch.randn(2, size, HIDDEN, 6, generator=generator, dtype=torch.float64)
    ids = torch.randint(codes, (size, HIDDEN, 2), generator=generator)
    return pred, target, ids, batch_of(size, seed).targets["distractors"][0]


def slow_logits(pred, target, codes, distractors, real, temperature):
    """Model.compute_preds as loops; -inf where the choice is the target itself or padding."""
    size, hidden, count = distractors.shape
    made = np.full((size, hidden, 1 + count), -np.inf)
    for b, m in np.ndindex(size, hidden):
        for x, at in enumerate([m, *distractors[b, m].tolist()]):
            same = bool((codes[b, at] == codes[b, m]).all())
            if x == 0 or not (same or not real[b, at]):
                p, t = pred[b, m].numpy(), target[b, at].numpy()
                made[b, m, x] = p @ t / np.linalg.norm(p) / np.linalg.norm(t) / temperature
    return torch.from_numpy(made)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_logits_and_loss_are_those_of_loops(seed):
    pred, target, codes, distractors = given(seed, codes=2)
    real = torch.ones(2, HIDDEN, dtype=torch.bool)
    real[1, 2:] = False
    got = contrastive_logits(pred, target, codes, distractors, real, temperature=0.1)
    expected = slow_logits(pred, target, codes, distractors, real, 0.1)
    assert expected[..., 1:].isinf().any()
    torch.testing.assert_close(got, expected)
    errors = [
        -row[0].item() + math.log(sum(math.exp(x) for x in row.tolist()))
        for b, m in np.argwhere(real.numpy())
        for row in [expected[b, m]]
    ]
    loss = wav2vec2_loss(got, real)
    assert loss.item() == pytest.approx(sum(errors) / len(errors))


def test_distractors_of_the_same_codes_leave_a_finite_loss_of_zero():
    pred, target, codes, distractors = given()
    pred.requires_grad_()
    real = torch.ones(2, HIDDEN, dtype=torch.bool)
    alike = torch.zeros_like(codes)
    logits = contrastive_logits(pred, target, alike, distractors, real, temperature=0.1)
    loss = wav2vec2_loss(logits, real)
    loss.backward()
    assert loss.item() == 0
    assert not pred.grad.any()


def slow_diversity(logits, real):
    """gumbel_vector_quantizer.py: prob_perplexity of the hidden frames of a batch."""
    soft = logits[real].softmax(-1).mean(0)  # (G, Q)
    used = sum(math.exp(-sum(p * math.log(p + 1e-7) for p in book)) for book in soft.tolist())
    return (soft.numel() - used) / soft.numel()


def test_diversity_is_the_share_of_unused_entries():
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(3, HIDDEN, 2, 5, generator=generator)
    real = torch.rand(3, HIDDEN, generator=generator) < 0.6
    assert diversity_loss(logits, real).item() == pytest.approx(slow_diversity(logits, real))
    even = torch.zeros(3, HIDDEN, 2, 5)
    assert diversity_loss(even, real).item() == pytest.approx(0, abs=1e-5)
    one = even + 100 * torch.tensor([1.0, 0, 0, 0, 0])
    assert diversity_loss(one, real).item() == pytest.approx(0.8, abs=1e-5)


def test_the_loss_is_the_official_sum_by_the_count():
    """wav2vec_criterion.py, step by step, of what the method's parts give."""
    method, batch = method_of(dropout=0.0).eval(), batch_of(lengths=[SAMPLES, 3000, 2000])
    output = method(batch)
    encoder, hidden = method.encoder, batch.masks["spans"][0]
    features = encoder.features(batch.views["wave"][0])
    real_frames = torch.arange(FRAMES) < torch.tensor([[11], [9], [6]])  # (n - 400) // 320 + 1
    normed = encoder.normed(features)
    context = encoder.context(normed, hidden_BN=hidden, real_BN=real_frames)
    total, count, rows = 0.0, 0, []
    for b in range(3):
        places = hidden[b].nonzero()[:, 0]
        logits = method.quantizer.weight_proj(normed[b, places]).view(HIDDEN, 2, 5)
        codes, books = logits.argmax(-1), method.quantizer.codevectors.view(2, 5, 4)
        vectors = torch.cat([books[g, codes[:, g]] for g in range(2)], dim=1)
        pred, target = method.project_hid(context[b, places]), method.project_q(vectors)
        real = real_frames[b, places]
        scores = slow_logits(
            pred.detach()[None], target.detach()[None], codes[None],
            batch.targets["distractors"][0, b][None], real[None], 0.1,
        )[0]  # fmt: skip
        total += -scores.log_softmax(-1)[real, 0].sum().item()
        count += int(real.sum())
        rows.append(logits[real])
    every = torch.cat(rows)[None]
    diversity = slow_diversity(every, torch.ones(1, count, dtype=torch.bool))
    penalty = features.square().mean().item()
    official = (total + 0.1 * count * diversity + 10 * count * penalty) / count
    assert output.loss.item() == pytest.approx(official, rel=1e-5)
    assert count < 3 * HIDDEN
    assert output.weight == count
    assert output.metrics["contrast"].item() == pytest.approx(total / count, rel=1e-5)


def test_the_contrastive_term_is_that_of_transformers():
    from transformers import Wav2Vec2Config, Wav2Vec2ForPreTraining

    config = Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        conv_dim=(16,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
        num_codevectors_per_group=5, num_codevector_groups=2, codevector_dim=8,
        proj_codevector_dim=12, layerdrop=0,
    )  # fmt: skip
    torch.manual_seed(3)
    theirs, method, batch = Wav2Vec2ForPreTraining(config).eval(), method_of().eval(), batch_of()
    state = {
        name.replace("wav2vec2.", "encoder.", 1): tensor
        for name, tensor in theirs.state_dict().items()
    }
    method.load_state_dict(state | {"steps": method.steps})
    hidden = batch.masks["spans"][0]
    frames = torch.stack([row.nonzero()[:, 0] for row in hidden])  # (B, M)
    negatives = torch.zeros(3, FRAMES, DISTRACTORS, dtype=torch.long)
    for b in range(3):
        chosen = frames[b][batch.targets["distractors"][0, b]] + b * FRAMES
        negatives[b, frames[b]] = chosen
    expected = theirs(
        batch.views["wave"][0], mask_time_indices=hidden, sampled_negative_indices=negatives
    )
    output = method(batch)
    mean = expected.contrastive_loss.item() / (3 * HIDDEN)
    assert output.metrics["contrast"].item() == pytest.approx(mean, rel=1e-5)


def test_hidden_frames_reach_the_context_by_the_targets_alone():
    """What is under the mask changes the targets, and no prediction."""
    method, batch = method_of(dropout=0.0).eval(), batch_of()
    seen = []
    method.project_hid.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    features = method.encoder.features(batch.views["wave"][0]).detach()
    other = torch.where(batch.masks["spans"][0][..., None], features.flip(0), features)
    for each in (features, other):
        method.encoder.features = lambda _, each=each: each
        method(batch)
    torch.testing.assert_close(seen[0], seen[1])


def test_the_quantiser_chooses_entries_exactly_and_learns_straight_through():
    torch.manual_seed(0)
    quantizer = GumbelQuantizer(6, books=2, entries=5, dim=8)
    x = torch.randn(2, 3, 6, requires_grad=True)
    found = quantizer(x, torch.tensor(2.0))
    books = quantizer.codevectors.view(2, 5, 4)
    for g in range(2):
        picked = books[g][found.codes_BMG[..., g]]
        assert torch.equal(found.vectors_BMD[..., 4 * g : 4 * g + 4], picked)
    found.vectors_BMD.square().sum().backward()
    assert x.grad.abs().sum() > 0
    assert quantizer.weight_proj.weight.grad.abs().sum() > 0
    torch.manual_seed(5)
    first = quantizer(x, torch.tensor(2.0)).codes_BMG
    torch.manual_seed(5)
    again = quantizer(x, torch.tensor(2.0)).codes_BMG
    assert torch.equal(first, again)
    best = quantizer.eval()(x, torch.tensor(2.0))
    assert torch.equal(best.codes_BMG, best.logits_BMGQ.argmax(-1))


def test_noise_chooses_by_the_softmax():
    quantizer = GumbelQuantizer(1, books=1, entries=3, dim=2)
    torch.nn.init.zeros_(quantizer.weight_proj.weight)
    quantizer.weight_proj.bias.data = torch.tensor([0.5, 0.3, 0.2]).log()
    torch.manual_seed(0)
    codes = quantizer(torch.zeros(1, 10_000, 1), torch.tensor(0.5)).codes_BMG
    shares = codes.flatten().bincount() / 10_000
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.3, 0.2]), rtol=0, atol=0.02)


def test_the_quantiser_stays_in_fp32_under_autocast():
    quantizer = GumbelQuantizer(6, books=2, entries=5, dim=8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = quantizer(torch.randn(2, 3, 6).bfloat16(), torch.tensor(2.0))
    assert found.logits_BMGQ.dtype == found.vectors_BMD.dtype == torch.float32


def test_temperature_falls_by_a_factor_each_step_to_a_floor():
    method = method_of(gumbel=(2.0, 0.5, 0.9))
    seen = []
    for _ in range(20):
        seen.append(method.gumbel_temperature.item())
        method.after_step(0.5)
    assert seen == pytest.approx([max(2 * 0.9**u, 0.5) for u in range(20)])
    assert method.state_dict()["steps"] == 20  # a resumed run goes on from there
    official = method_of()
    official.steps += 277_259
    assert official.gumbel_temperature.item() == pytest.approx(0.5, abs=1e-5)


def test_gradients_of_the_convolutions_are_scaled_and_values_are_not():
    x = torch.randn(4, requires_grad=True)
    y = ScaledGradient.apply(x, 0.1)
    assert torch.equal(x, y)
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.full((4,), 0.1))
    grads = []
    for scale in (1.0, 0.1):
        method = method_of(feature_grad=scale, dropout=0.0).eval()
        method(batch_of()).loss.backward()
        grads.append(method.encoder.feature_extractor["conv_layers"][2].conv.weight.grad)
    torch.testing.assert_close(grads[1], 0.1 * grads[0])


def test_signs_of_collapse():
    method = method_of()
    few, right = method.collapse_signs
    assert few({"code_perplexity": 2.0}, {}).bad  # one entry of both books
    assert not few({"code_perplexity": 26.0}, {}).bad
    assert right({"accuracy": 1.0}, {}).bad
    assert not right({"accuracy": 0.6}, {}).bad
    assert few({}, {}) is right({}, {}) is None
    assert method.chance_loss == pytest.approx(math.log(1 + DISTRACTORS))
    even = torch.full((2, 320), 1 / 320)
    assert perplexity(even).item() == pytest.approx(640, rel=1e-3)


def test_a_quantiser_of_one_entry_is_seen():
    method, batch = method_of().eval(), batch_of()
    torch.nn.init.zeros_(method.quantizer.weight_proj.weight)
    method.quantizer.weight_proj.bias.data[[0, 5]] = 9.0
    metrics = method(batch).metrics
    assert metrics["code_perplexity"].item() == pytest.approx(2, abs=1e-4)
    assert metrics["accuracy"] == 1  # all distractors are left out
    assert metrics["contrast"] == 0


def test_perplexity_counts_real_frames_alone():
    quantizer = GumbelQuantizer(1, books=1, entries=4, dim=2).eval()
    found = quantizer(torch.zeros(1, 4, 1), torch.tensor(1.0))
    found = found._replace(logits_BMGQ=torch.eye(4)[None, :, None])
    real = torch.tensor([[True, True, False, False]])
    assert code_perplexity(found, real).item() == pytest.approx(2, rel=1e-4)


def test_contract_errors_say_what_to_change(vit):
    encoder = method_of().encoder
    with pytest.raises(ContractError, match=r"a ViT makes no frames of waveforms.*to wav2vec2"):
        Wav2Vec2(vit, spec_of(3))
    said = r"covers 12 steps.*11 frames of 3600 samples; set its patch_size to 320 and receptive"
    with pytest.raises(ContractError, match=said):
        Wav2Vec2(encoder, spec_of(3, grid=(12,)))
    with pytest.raises(ContractError, match="hides 5 of 'wave'"):
        Wav2Vec2(encoder, spec_of(3, hidden=5))
    with pytest.raises(ContractError, match=r"masks\.spans to hide the same number"):
        Wav2Vec2(encoder, spec_of(3, hidden=None))
    with pytest.raises(ContractError, match=r"wav2vec2 needs targets\['distractors'\]"):
        Wav2Vec2(encoder, replace(spec_of(3), targets={}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"code_dim": 7}, "code_dim = 7 is no multiple of codebooks = 2"),
        ({"temperature": 0}, "temperature = 0"),
        ({"gumbel": [2.0, 0.5, 1.5]}, r"gumbel = \(2.0, 0.5, 1.5\); set its last"),
        ({"penalty_weight": -1.0}, "penalty_weight = -1.0; set 0 or more"),
    ],
)
def test_impossible_settings_are_errors_of_the_recipe(settings, message):
    entry, encoder = Entry("wav2vec2", SMALL | settings, "r.yaml:9"), method_of().encoder
    with pytest.raises(RecipeError, match=rf"r\.yaml:9: wav2vec2: {message}"):
        build_method(entry, encoder, spec_of(3))
