"""Methods whose memories change from step to step are compiled a few times, not at every step."""

import pytest
import torch
from torch import Tensor, nn

from sslpipe.train.compiling import Graphs
from tests.methods.every_method import build, make_batch, make_spec

STEPS = 12  # torch gives up after 8 recompiles


class Means(nn.Module):
    """A linear layer of the mean colour: little to compile."""

    dim = 6

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 6)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(images.mean((2, 3)))


def losses(name: str, graphs: Graphs | None = None) -> list[float]:
    torch.manual_seed(0)
    more = {"bn_groups": 1} if name == "moco" else {}  # else it draws an order, which is not traced
    method = build(name, make_spec(4), Means(), **more).double()
    if graphs is not None:
        method.compile(backend=graphs)
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 0.05)
    found = []
    for step in range(STEPS):
        loss = method(make_batch(4, step, dtype=torch.float64)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.after_step((step + 1) / STEPS)
        found.append(loss.item())
    return found


@pytest.mark.slow
# SwAV has phases: prototypes that learn, a queue that is full
@pytest.mark.parametrize(
    ("name", "count"), [("deepcluster_v2", 1), ("moco", 1), ("nnclr", 1), ("swav", 3)]
)
def test_what_a_method_remembers_is_no_reason_to_compile_again(name, count):
    torch._dynamo.reset()
    graphs = Graphs("eager")
    compiled = losses(name, graphs)
    torch._dynamo.reset()
    assert graphs.count == count
    assert compiled == pytest.approx(losses(name), rel=1e-9)
