import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from sslpipe.errors import SslpipeError
from sslpipe.evaluate import Features
from sslpipe.evaluate.heads import (
    HeadsSettings,
    accuracies,
    batches,
    choose_head,
    first_weights,
    heads,
    inputs,
    trained,
)
from sslpipe.evaluate.subsets import held_out

SMALL = HeadsSettings(lrs=(0.01, 0.3, 2.0), batch_size=16, iterations=40)


def data(count, *, seed=0, classes=3, dim=5, depth=6):
    """Class tokens that are the better the deeper, and patches; in the order of the uids."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(9))
    noise = torch.randn(count, depth, dim, generator=generator)
    blocks = centres[labels][:, None] * torch.linspace(0.2, 0.8, depth)[:, None] + noise
    patches = centres[labels] + 2 * torch.randn(count, dim, generator=generator)
    uids = torch.randperm(10**6, generator=generator)[:count].sort().values
    return Features(blocks.mean(1), labels, uids, blocks=blocks, patches=patches)


def pooled(features):
    return replace(features, blocks=torch.empty(0), patches=torch.empty(0))


def slow_head(train, x_ND, first_KD, lr, settings):
    """One head, by torch's own layer, loss, optimizer and schedule."""
    head = nn.Linear(x_ND.shape[1], len(first_KD))
    with torch.no_grad():
        head.weight.copy_(first_KD[:, :-1])
        head.bias.copy_(first_KD[:, -1])
    size = min(settings.batch_size, len(train.labels))
    optimizer = torch.optim.SGD(
        head.parameters(), lr * size / 256, momentum=settings.momentum, weight_decay=0
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.iterations)
    for rows in itertools.islice(batches(train, settings), settings.iterations):
        optimizer.zero_grad()
        cross_entropy(head(x_ND[rows]), train.labels[rows]).backward()
        optimizer.step()
        schedule.step()
    return head


def slow_inputs(features, most):
    """What DINOv2 gives its heads."""
    last = [features.blocks[:, i] for i in range(features.blocks.shape[1])]
    found = {}
    for name, n in (("last 1 block(s)", 1), (f"last {most} block(s)", most)):
        found[name] = torch.cat(last[-n:], dim=1)
        found[f"{name} + mean of patches"] = torch.cat([*last[-n:], features.patches], dim=1)
    return found


def test_heads_trained_together_are_those_trained_alone():
    train = data(50)
    first = first_weights(inputs(train, SMALL), 3, SMALL)
    together, x = trained(train, SMALL), slow_inputs(train, 4)
    assert set(together) == set(x)
    for name, row in itertools.product(x, range(3)):
        head = slow_head(train, x[name], first[name][row], SMALL.lrs[row], SMALL)
        expected = torch.cat([head.weight, head.bias[:, None]], dim=1)
        torch.testing.assert_close(together[name][row], expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(first[name][row], expected, atol=1e-3)


def test_the_whole_is_slow_heads_one_after_another():
    train, test = data(120), data(90, seed=1)
    held = held_out(train, 0.2, seed=0, purpose="heads/held-out")
    fitted, judged = train.at(~held), train.at(held)
    first = first_weights(inputs(train, SMALL), 3, SMALL)

    def share(on, tested, name, row, start):
        x, z = slow_inputs(on, 4)[name], slow_inputs(tested, 4)[name]
        head = slow_head(on, x, start, SMALL.lrs[row], SMALL)
        return float((head(z).argmax(1) == tested.labels).double().mean())

    names = inputs(train, SMALL)
    grid = {(n, r): share(fitted, judged, n, r, first[n][r]) for n in names for r in range(3)}
    name, row = max(grid, key=grid.get)
    head, count = choose_head(train, SMALL)
    assert (head.inputs, head.lr, count) == (name, SMALL.lrs[row], 12)
    assert head.chosen_by == pytest.approx(grid[name, row])
    one = replace(SMALL, lrs=(SMALL.lrs[row],))
    start = first_weights(inputs(train, one), 3, one)[name][0]
    (found,) = heads(train, test, SMALL)
    assert found.value == pytest.approx(share(train, test, name, row, start))
    assert 0.5 < found.value < 1.0
    for part in (
        f"best of 12 heads on 20% of the training labels ({name}, lr {head.lr:g} x batch/256)",
        "without augmentation",
        "40 iterations of 16",
        "trained on 120 samples, tested on 90",
    ):
        assert part in found.protocol


def test_test_labels_choose_nothing():
    """Whatever they are, the same head is chosen."""
    train, test = data(120), data(90, seed=1)
    scrambled = replace(test, labels=test.labels.roll(1))
    (true,), (false,) = (heads(train, t, SMALL) for t in (test, scrambled))
    assert true.protocol == false.protocol
    assert true.value > false.value + 0.2


def test_inputs_are_what_the_encoder_has():
    whole = data(9)
    assert list(inputs(pooled(whole), SMALL)) == ["pooled"]
    assert list(inputs(replace(whole, blocks=torch.empty(0)), SMALL)) == [
        "pooled", "pooled + mean of patches",
    ]  # fmt: skip
    shallow = replace(whole, blocks=whole.blocks[:, -2:])
    found = inputs(shallow, SMALL)
    assert set(found) == set(slow_inputs(shallow, 2))
    for name, x in slow_inputs(shallow, 2).items():
        assert found[name].equal(torch.cat([x, torch.ones(9, 1)], dim=1))


def test_the_official_grid():
    settings = HeadsSettings()
    assert len(settings.lrs) * len(inputs(data(9), settings)) == 52
    assert (min(settings.lrs), max(settings.lrs)) == (1e-5, 0.1)
    assert (settings.batch_size, settings.iterations, settings.momentum) == (128, 12_500, 0.9)


def test_every_epoch_has_every_sample_once_in_another_order():
    train = data(50)
    taken = torch.cat(list(itertools.islice(batches(train, SMALL), 25))).reshape(8, 50)  # 8 epochs
    assert (taken.sort(dim=1).values == torch.arange(50)).all()
    assert len({tuple(order) for order in taken.tolist()}) == 8


def test_a_head_that_diverges_is_never_right():
    train = data(60)
    weights = {"last 1 block(s)": torch.full((2, 3, 6), math.nan)}
    weights["last 1 block(s)"][1] = 0.0
    ((_, shares),) = accuracies(weights, train, SMALL)
    assert shares == [0.0, pytest.approx(1 / 3)]
    wild = replace(SMALL, lrs=(0.3, 1e38))
    assert choose_head(train, wild)[0].lr == 0.3


def test_without_a_test_set_a_fifth_is_kept_and_copies_are_not():
    train = data(120)
    (found,) = heads(train, None, SMALL)
    assert "trained on 96 samples, tested on held-out 24" in found.protocol
    assert found.value > 0.5
    generator = torch.Generator().manual_seed(0)
    x, rows = torch.randn(60, 100, generator=generator), torch.arange(60).repeat(2)
    seen = Features(x[rows], (torch.arange(60) % 2)[rows], torch.arange(120), contents=rows)
    assert "trained on 48 samples, tested on held-out 12" in heads(seen, None, SMALL)[0].protocol


def test_the_order_of_rows_changes_nothing_and_the_global_generator_is_left_alone():
    train, test = data(120), data(90, seed=1)
    rows = torch.randperm(120, generator=torch.Generator().manual_seed(3))
    state = torch.get_rng_state()
    assert heads(train.at(rows), test, SMALL) == heads(train, test, SMALL)
    assert heads(train.at(rows), None, SMALL) == heads(train, None, SMALL)
    assert torch.get_rng_state().equal(state)


def test_errors():
    train = data(30)
    with pytest.raises(SslpipeError, match="none of the 30 samples has a label"):
        heads(replace(train, labels=torch.full((30,), -1)))
    with pytest.raises(SslpipeError, match="heads: 10 usable samples are of 1 class"):
        heads(train.at(train.labels == 1))
    with pytest.raises(SslpipeError, match="no class of 3 training samples has two"):
        heads(train.at(torch.arange(3)), train, SMALL)
    with pytest.raises(SslpipeError, match="patch tokens are not finite"):
        heads(replace(train, patches=train.patches.log()), None, SMALL)
    with pytest.raises(SslpipeError, match="class tokens are not finite"):
        heads(train, replace(train, blocks=train.blocks.log()), SMALL)
    with pytest.raises(SslpipeError, match="features of uid"):
        heads(replace(train, features=train.features.log()))
