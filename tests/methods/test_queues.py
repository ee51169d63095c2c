import pytest
import torch

from sslpipe.errors import ContractError
from sslpipe.methods.parts.queues import Queue, random_rows


def column(*values):
    return torch.tensor(values, dtype=torch.float32)[:, None]


def test_first_in_first_out_with_wrap():
    queue = Queue(torch.zeros(4, 1), batch=2, setting="queue")
    seen = []
    for step in range(3):
        places = queue.turn(enqueues=True)
        assert queue.full == (step == 2)
        queue.enqueue(column(2 * step + 1, 2 * step + 2), places)
        seen.append(queue.rows_QD.flatten().tolist())
    assert seen == [[1, 2, 0, 0], [1, 2, 3, 4], [5, 6, 3, 4]]


def test_a_resumed_queue_goes_on_where_it_was():
    queue, twin = (Queue(torch.zeros(4, 1), batch=2, setting="queue") for _ in range(2))
    queue.enqueue(column(1, 2), queue.turn(enqueues=True))
    twin.load_state_dict(queue.state_dict())
    for q in (queue, twin):
        q.enqueue(column(3, 4), q.turn(enqueues=True))
    assert twin.rows_QD.equal(queue.rows_QD)
    assert twin.seen == 4
    assert twin.turn(enqueues=False).tolist() == [0, 1]
    assert (twin.seen, twin.full) == (4, True)


def test_rows_take_no_gradient_and_backward_sees_the_rows_of_the_loss():
    queue = Queue(column(5, 6), batch=2, setting="queue")
    query = torch.ones(2, 1, requires_grad=True)
    loss = (query @ queue.snapshot().T).sum()
    queue.enqueue(query, queue.turn(enqueues=True))
    loss.backward()  # fails if the rows were overwritten in place
    assert query.grad.flatten().tolist() == [11, 11]
    assert not queue.rows_QD.requires_grad


@pytest.mark.parametrize(("size", "better"), [(5, 4), (3, 4), (0, 4)])
def test_a_queue_holds_whole_batches(size, better):
    message = rf"method.moco.queue = {size} is no multiple of the global batch of 4.*to {better}"
    with pytest.raises(ContractError, match=message):
        Queue(torch.zeros(size, 1), batch=4, setting="method.moco.queue")


def test_a_partial_batch_is_a_mistake_of_the_caller():
    with pytest.raises(AssertionError):
        Queue(torch.zeros(4, 1), batch=2, setting="queue").enqueue(column(1), torch.arange(2))


def test_random_rows_are_directions():
    torch.testing.assert_close(random_rows(9, 3).norm(dim=1), torch.ones(9))
