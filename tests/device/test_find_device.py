"""What a user may write for a device, and what they are told where it is not there."""

import pytest
import torch

import sslpipe
from sslpipe.device.handoff import find_device
from sslpipe.errors import SslpipeError
from sslpipe.evaluate import extract
from sslpipe.train import start_world


@pytest.fixture
def cards(monkeypatch):
    """Make torch see a number of CUDA devices."""

    def see(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return see


@pytest.mark.parametrize(("count", "default"), [(0, "cpu"), (2, "cuda")])
def test_the_default_is_cuda_if_there_is_one(cards, count, default):
    cards(count)
    assert find_device(None) == torch.device(default)
    assert find_device("cpu") == find_device(torch.device("cpu")) == torch.device("cpu")


def test_a_card_is_found_by_its_number(cards):
    cards(2)
    assert find_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(SslpipeError, match="'cuda:2': this machine has 2 of them; choose cuda:0"):
        find_device("cuda:2")
    for wrapped in ("cuda:256", "cuda:257", "cuda:99999", "cuda:255"):
        with pytest.raises(SslpipeError, match=f"'{wrapped}': this machine has 2 of them"):
            find_device(wrapped)


@pytest.mark.parametrize("name", ["tpu", "gpu", "mps", "cuda:x", "cpu:3", "", torch.device("meta")])
def test_what_is_no_device_of_ours(name):
    with pytest.raises(SslpipeError, match=f"device '{name}': is no device.*choose cpu or cuda"):
        find_device(name)


def test_no_cuda_is_one_line_wherever_a_device_is_named(cards, recipe, packed):
    cards(0)
    calls = [
        lambda: sslpipe.load(recipe, shards=packed, device="cuda"),
        lambda: extract(torch.nn.Flatten(), [], "cuda"),
        lambda: start_world("cuda").__enter__(),
    ]
    for call in calls:
        with pytest.raises(SslpipeError, match=r"device 'cuda': this machine has none.*choose cpu"):
            call()
