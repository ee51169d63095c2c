import pytest
import torch
from torch.nn import functional

from sslpipe.errors import ContractError
from sslpipe.methods.rotation import Rotation


@pytest.fixture
def turned(make_batch, rand):
    turns = torch.arange(4)[:, None].expand(4, 5).contiguous()
    return make_batch({"global": rand(4, 5, 3, 8, 8).float()}, targets={"rotation": turns})


def test_loss_is_cross_entropy_over_all_views_and_samples(encoder, turned):
    batch, spec = turned
    method = Rotation(encoder, spec)
    output = method(batch)
    assert encoder.calls == [(20, 3, 8, 8)]  # one pass: BN must see all turns together
    losses, hits = [], []
    for v in range(4):
        for b in range(5):
            logits = method.head(encoder(batch.views["global"][v, b][None]))
            losses.append(functional.cross_entropy(logits, torch.tensor([v])))
            hits.append(float(logits.argmax() == v))
    assert output.loss.item() == pytest.approx(torch.stack(losses).mean().item())
    assert output.metrics["accuracy"].item() == pytest.approx(sum(hits) / 20)
    output.loss.backward()
    assert encoder.linear.weight.grad.abs().sum() > 0


def test_untrained_head_costs_ln_4(encoder, turned):
    batch, spec = turned
    method = Rotation(encoder, spec)
    torch.nn.init.zeros_(method.head.weight)
    torch.nn.init.zeros_(method.head.bias)
    assert method(batch).loss.item() == pytest.approx(1.3862944)


def test_targets_are_required(encoder, make_batch, rand):
    _, spec = make_batch({"global": rand(4, 5, 3, 8, 8)})
    with pytest.raises(ContractError, match=r"rotation needs targets\['rotation'\]"):
        Rotation(encoder, spec)
