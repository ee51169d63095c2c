"""torch's DataLoader and torchdata's: the same batches, and a state that goes on."""

import pytest
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from sslpipe.errors import StateError
from sslpipe.integrations.torch import StreamDataset, as_is

from .trainers import small, uids

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated")  # what torchdata uses of torch


def taken(loader, count):
    found = []
    while len(found) < count:
        for batch in loader:
            found.append(batch["uids"].tolist())
            if len(found) == count:
                break
    return found


@pytest.mark.parametrize("workers", [0, 1])
def test_a_state_of_torchdata_goes_on_in_the_middle_of_an_epoch(packed, workers):
    def loader():
        stream = StreamDataset(small(), shards=packed)
        return StatefulDataLoader(
            stream,
            batch_size=None,
            collate_fn=as_is,
            num_workers=workers,
            persistent_workers=workers > 0,
        )

    plain = uids(packed, 8)
    first, state = loader(), None
    for number, batch in enumerate(first):
        assert batch["uids"].tolist() == plain[number]
        if number == 2:
            state = first.state_dict()
            break
    second = loader()
    second.load_state_dict(state)
    assert taken(second, 5) == plain[3:8]


def test_a_loader_with_a_worker_gives_epoch_after_epoch(packed):
    stream = StreamDataset(small(), shards=packed)
    loader = DataLoader(
        stream, batch_size=None, collate_fn=as_is, num_workers=1, persistent_workers=True
    )
    assert taken(loader, 10) == uids(packed, 10)


def test_several_workers_are_refused(packed, monkeypatch):
    loader = DataLoader(
        StreamDataset(small(), shards=packed), batch_size=None, collate_fn=as_is, num_workers=2
    )
    batches = iter(loader)
    with pytest.raises(StateError, match=r"num_workers=2 would give every batch 2 times"):
        next(batches)
    # torch waits so long for each worker whose data set raised, and then ends it; else five seconds
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)
    batches._shutdown_workers()


def test_the_first_tensor_has_one_row_a_sample(packed):
    batch = next(iter(StreamDataset(small(), shards=packed)))
    assert next(iter(batch)) == "uids"
    assert len(batch["uids"]) == 8
