"""What all methods of masked and latent prediction must do."""

import copy
import dataclasses

import pytest
import torch

from sslpipe import methods
from sslpipe.errors import ContractError, RecipeError
from sslpipe.recipe.names import Entry

from . import masked

NAMES = sorted(masked.SETTINGS)
MASKS = {"beit": "blocks", "data2vec2": "inverse", "ijepa": "context", "simmim": "units"}


def build(name, encoder=None, spec=None):
    encoder = masked.vit() if encoder is None else encoder
    return methods.build_method(
        Entry(name, masked.SETTINGS[name]), encoder, spec or masked.spec_of(4)
    )


@pytest.mark.parametrize("name", NAMES)
def test_everything_that_can_learn_does(name):
    method = build(name)
    output = method(masked.batch_of())
    output.loss.backward()
    for part, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.isfinite().all(), part
            assert parameter.grad.abs().sum() > 0, part
        else:
            assert parameter.grad is None, part
    assert not any(metric.requires_grad for metric in output.metrics.values())
    assert all(metric.shape == () for metric in output.metrics.values())


@pytest.mark.parametrize("name", NAMES)
def test_loss_is_fp32_under_autocast_and_near_that_without(name):
    method, batch = build(name), masked.batch_of()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = method(batch).loss
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(method(batch).loss.item(), rel=0.03)


@pytest.mark.parametrize("name", NAMES)
def test_a_few_steps_lower_the_loss(name):
    method, batch = build(name), masked.batch_of()
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], 3e-3)
    methods.follow(optimizer, method, total_steps=1000)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = method(batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("name", sorted(MASKS))
def test_what_does_not_fit_is_named(name, encoder):
    spec, mask = masked.spec_of(4), MASKS[name]
    bare = dataclasses.replace(spec, masks={})
    with pytest.raises(ContractError, match=rf"{name} needs masks\['{mask}'\].*Add masks\.{mask}"):
        build(name, spec=bare)
    with pytest.raises(ContractError, match=rf"{name} needs an encoder with tokens.*vit_base"):
        build(name, encoder=encoder)
    coarse = dataclasses.replace(spec.masks[mask], patch=(8, 8), grid=(2, 2))
    with pytest.raises(
        ContractError, match=rf"masks\.{mask}\.patch_size = 8, but the encoder's is 4"
    ):
        build(name, spec=dataclasses.replace(spec, masks=spec.masks | {mask: coarse}))
    if name in ("data2vec2", "simmim"):
        uneven = dataclasses.replace(spec.masks[mask], hidden=None)
        with pytest.raises(ContractError, match=rf"{name} needs masks\.{mask} to hide the same"):
            build(name, spec=dataclasses.replace(spec, masks={mask: uneven}))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("autoencoder", {"drop": 1.0}, r"drop = 1 leaves nothing"),
        ("data2vec2", {"top_k": 0}, r"top_k = 0; set it in \[1, 2\], the encoder's layers"),
        ("data2vec2", {"top_k": 3}, "top_k = 3; set it in"),  # not quietly the mean of two
        ("data2vec2", {"momentum": [0.9, 1.1]}, r"momentum = \(0\.9, 1\.1\); set it in"),
        ("data2vec2", {"mask_noise": -0.1}, r"mask_noise = -0\.1; set 0 or more"),
        ("data2vec2", {"decoder_groups": 5}, "decoder_groups = 5 divides not both"),
        ("data2vec2", {"decoder_depth": 0}, "decoder_depth = 0; set what is above 0"),
        ("ijepa", {"predictor_heads": 3}, "predictor_dim = 16 is no multiple of predictor_heads"),
        ("ijepa", {"predictor_heads": 0}, "predictor_heads = 0"),
        (
            "ijepa",
            {"predictor_depth": 0},
            "predictor_depth = 0; set what is above 0",
        ),  # would see no context
        ("ijepa", {"momentum": [0.9, 1.1]}, "momentum"),
    ],
)
def test_impossible_settings_are_named(name, settings, message):
    entry = Entry(name, masked.SETTINGS[name] | settings, "r.yaml:7")
    with pytest.raises(RecipeError, match=rf"r\.yaml:7: {name}: .*{message}"):
        methods.build_method(entry, masked.vit(), masked.spec_of(4))


@pytest.mark.parametrize(
    ("name", "momenta"),
    [
        ("data2vec2", {0.0: 0.5, 0.2665 / 4: 0.6, 0.2665: 0.9, 0.5: 0.9}),
        ("ijepa", {0.0: 0.996, 0.25: 0.997, 0.5: 0.998, 1.0: 1.0}),
    ],
)
def test_teachers_follow_linearly(name, momenta):
    """data2vec 2.0 anneals over 27 % of the run and then stays; I-JEPA reaches 1 at its end."""
    method = build(name)
    student = method.encoder if name == "data2vec2" else method.student
    assert method.encoder is (student if name == "data2vec2" else method.teacher)
    for mine, theirs in zip(student.parameters(), method.teacher.parameters(), strict=True):
        assert mine.equal(theirs)
        assert mine.data_ptr() != theirs.data_ptr()
        mine.data.add_(1.0)
    for progress, momentum in momenta.items():  # a quarter: where a cosine would differ
        old = copy.deepcopy(method.teacher.state_dict())
        method.after_step(progress)
        new = student.state_dict()
        for key, value in method.teacher.state_dict().items():
            torch.testing.assert_close(value, momentum * old[key] + (1 - momentum) * new[key])
    if name == "ijepa":
        held = copy.deepcopy(method.teacher.state_dict())
        method.after_step(1.0)
        assert all(v.equal(held[k]) for k, v in method.teacher.state_dict().items())
