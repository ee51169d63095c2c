import inspect

import pytest
import torch

from sslpipe import methods
from sslpipe.errors import ContractError, RecipeError
from sslpipe.recipe.names import Entry, keyword_settings


class Counter(methods.Method):
    """A user's own method."""

    def __init__(self, encoder, spec, *, gain: float = 1.0):
        super().__init__()
        self.encoder, self.spec, self.gain, self.seen = encoder, spec, gain, []

    def forward(self, batch):
        return methods.Output(self.gain * self.encoder(batch.views["global"][0]).sum(), {})

    def after_step(self, progress):
        self.seen.append(progress)


@pytest.fixture
def stepped(encoder):
    """An optimizer with a gradient to follow, and a method that notes its calls."""
    for parameter in encoder.parameters():
        parameter.grad = torch.ones_like(parameter)
    return torch.optim.SGD(encoder.parameters(), 0.1), Counter(encoder, None)


def test_after_step_follows_every_optimizer_step(stepped):
    optimizer, method = stepped
    handle = methods.follow(optimizer, method, total_steps=4)
    for _ in range(4):
        optimizer.step()
    assert method.seen == [0.25, 0.5, 0.75, 1.0]
    optimizer.step()
    assert method.seen[-1] == 1.0  # a schedule must not turn back
    handle.remove()
    optimizer.step()
    assert len(method.seen) == 5


def test_a_resumed_run_goes_on_where_it_was(stepped):
    optimizer, method = stepped
    methods.follow(optimizer, method, total_steps=4, done=2)
    optimizer.step()
    assert method.seen == [0.75]


def test_hook_runs_after_the_weights_moved(stepped):
    optimizer, method = stepped
    before = method.encoder.linear.weight.detach().clone()
    moved = []
    method.after_step = lambda _: moved.append(not method.encoder.linear.weight.equal(before))
    methods.follow(optimizer, method, total_steps=4)
    optimizer.step()
    assert moved == [True]


def test_build_binds_settings_strictly(encoder, make_batch, rand):
    _, spec = make_batch({"global": rand(2, 4, 3, 8, 8)})
    entry = Entry("simclr", {"temperature": 0.5, "projector": [16, 8]}, "r.yaml:3")
    method = methods.build_method(entry, encoder, spec)
    assert isinstance(method, methods.METHODS["simclr"])
    assert method.temperature == 0.5
    assert method.encoder is encoder
    with pytest.raises(RecipeError, match=r"r\.yaml:3: .*temprature.*did you mean 'temperature'"):
        methods.build_method(Entry("simclr", {"temprature": 1}, "r.yaml:3"), encoder, spec)
    with pytest.raises(RecipeError, match="unknown method 'simcrl'; did you mean 'simclr'"):
        methods.build_method(Entry("simcrl"), encoder, spec)
    with pytest.raises(RecipeError, match=r"temperature = 0\.0; set"):
        methods.build_method(Entry("simclr", {"temperature": 0}), encoder, spec)
    with pytest.raises(ContractError):
        methods.build_method(Entry("mae"), encoder, spec)


def test_build_takes_a_users_own_class(encoder, monkeypatch, tmp_path):
    source = "from sslpipe import methods\n\n\n" + inspect.getsource(Counter)
    (tmp_path / "my_methods.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    method = methods.build_method(Entry("my_methods:Counter", {"gain": 2}), encoder, "spec")
    assert (method.encoder, method.spec, method.gain) == (encoder, "spec", 2.0)


def test_the_table_is_read_only_and_settings_are_typed():
    with pytest.raises(TypeError):
        methods.METHODS["mine"] = Counter
    for method in methods.METHODS.values():
        assert all(default is not ... for _, default in keyword_settings(method).values())
