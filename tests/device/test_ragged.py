"""Arrays of many shapes in one buffer."""

import pytest
import torch

from sslpipe.device.ragged import Ragged


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float32])
def test_arrays_come_out_as_they_went_in_and_share_the_memory(dtype):
    arrays = [torch.arange(n * m * 3).view(n, m, 3).to(dtype) for n, m in [(1, 5), (7, 3), (2, 2)]]
    ragged = Ragged.of(arrays)
    assert len(ragged) == 3
    for mine, array in zip(ragged, arrays, strict=True):
        assert mine.dtype == dtype
        assert torch.equal(mine, array)
    ragged[1].zero_()
    assert not ragged[1].any()
    assert torch.equal(ragged[2], arrays[2])
    assert [tuple(array.shape) for array in ragged[1:]] == [(7, 3, 3), (2, 2, 3)]
    copied = ragged.on(ragged.flat_N.clone())
    ragged[2].zero_()
    assert torch.equal(copied[2], arrays[2])
