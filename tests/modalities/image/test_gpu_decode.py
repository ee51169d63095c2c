"""Decoding in lists, with engines on the CPU that fail on purpose; the real one is marked gpu."""

import contextlib
import importlib.metadata
import importlib.util

import numpy as np
import pytest
import simplejpeg
import torch

from sslpipe.errors import ExtraError, RecipeError, SampleError
from sslpipe.modalities import Raw
from sslpipe.modalities.image import gpu_decode
from sslpipe.modalities.image.canvases import CanvasDecode
from sslpipe.modalities.image.decode import decode
from sslpipe.modalities.image.gpu_decode import GpuDecode, OneByOne, TorchCodec, halve
from sslpipe.modalities.loading import DeviceLoading
from sslpipe.stream.reader import Sample
from sslpipe.stream.source import Column, Fault, Share
from sslpipe.stream.tasks import ALONE, DECODE, READ

BASELINE = 1


def jpeg(seed, flat=False, colour="420"):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (64 + seed, 90, 3), dtype=np.uint8)
    pixels = np.full_like(pixels, seed) if flat else pixels
    return simplejpeg.encode_jpeg(pixels, colorspace="RGB", colorsubsampling=colour)


def sample(data, flags=BASELINE):
    return Sample(7, "key", -1, data, flags)


def waiting(jpegs):
    """Bytes as workers leave them to the device."""
    return [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in jpegs]


class Engine(OneByOne):
    """Decodes on the CPU; a list that holds a bad image fails, a black one comes back black."""

    def __init__(self, bad=(), black=()):
        self.bad, self.black, self.calls, self.inside = set(bad), set(black), [], False

    @contextlib.contextmanager
    def stream(self):
        self.inside = True
        yield
        self.inside = False

    def __call__(self, encoded):
        assert self.inside
        self.calls.append(len(encoded))
        found = [bytes(tensor.numpy()) for tensor in encoded]
        if self.bad & set(found):
            raise RuntimeError("nvjpegDecodeBatched failed: 5")
        images = [torch.from_numpy(decode(data)).permute(2, 0, 1) for data in found]
        black = (torch.zeros_like(i) if d in self.black else i for d, i in zip(found, images))  # noqa: B905
        return list(black)


def gpu_decoder(engine, size=None):
    return GpuDecode(CanvasDecode(size), engine, baseline=BASELINE)


JPEGS = [jpeg(seed) for seed in range(11)]


def test_a_list_is_decoded_at_once_and_in_order():
    engine = Engine()
    made = gpu_decoder(engine).finish(waiting(JPEGS))
    assert engine.calls == [11]
    for canvas, data in zip(made, JPEGS, strict=True):
        assert torch.equal(canvas.data, torch.from_numpy(decode(data)))
        assert canvas.data.is_contiguous()
        assert canvas.data.shape[:2] == canvas.extent


@pytest.mark.parametrize("bad", [[0], [10], [3, 4], [0, 5, 10], range(10)])
def test_offenders_stand_alone_and_the_others_are_decoded(bad):
    engine = Engine(bad=[JPEGS[i] for i in bad])
    decoder = gpu_decoder(engine)
    made = decoder.finish(waiting(JPEGS))
    assert [i for i, canvas in enumerate(made) if canvas is None] == list(bad)
    assert (decoder.done, decoder.returned) == (11 - len(bad), len(bad))
    if len(bad) == 1:
        assert len(engine.calls) <= 1 + 2 * 4  # a path of 4 halvings, two calls each


def test_an_engine_that_decodes_nothing_is_no_matter_of_bad_images():
    with pytest.raises(RuntimeError, match="nvjpeg"):
        gpu_decoder(Engine(bad=JPEGS)).finish(waiting(JPEGS))
    assert gpu_decoder(Engine(bad=JPEGS)).finish(waiting(JPEGS[:1])) == [None]
    assert halve(Engine(), []) == []


def test_black_pictures_whose_bytes_say_otherwise_are_returned():
    truly_flat = jpeg(20, flat=True)
    jpegs = [*JPEGS[:3], truly_flat]
    made = gpu_decoder(Engine(black=JPEGS[1:2])).finish(waiting(jpegs))
    assert [canvas is None for canvas in made] == [False, True, False, False]


def test_what_does_not_suit_a_device_is_decoded_by_the_cpu():
    first, whole = gpu_decoder(Engine()).first, JPEGS[5]
    entry = b"\x12\x01\x03\0\x01\0\0\0\x06\0\0\0"  # orientation 6
    exif = b"\xff\xe1\x00\x22Exif\0\0II*\0\x08\0\0\0\x01\0" + entry + bytes(4)
    turned = whole[:2] + exif + whole[2:]
    for data in (whole, whole + b"\0\0"):
        left = first(sample(data), (1,))
        assert (left.data.tobytes(), left.extent) == (data, (0, 0))
    assert first(sample(whole, flags=256), (1,)).data.shape == (69, 90, 3)
    assert first(sample(turned), (1,)).data.shape == (90, 69, 3)
    with pytest.raises(SampleError):  # a device would fill the rest with grey
        first(sample(whole[:-900]), (1,))


def test_finish_keeps_what_is_decoded_and_shrinks_as_decode_does():
    done = torch.zeros(2, 2, 3, dtype=torch.uint8)
    made = gpu_decoder(Engine(), size=40).finish([done, *waiting(JPEGS[3:4]), done])
    assert made[0].data is made[2].data is done
    assert made[0].extent == (2, 2)
    want = torch.from_numpy(decode(JPEGS[3], size=40))
    assert made[1].data.shape == want.shape
    difference = (made[1].data.float() - want.float()).abs()  # uint8 rounds between two passes
    assert difference.mean() < 0.5
    assert difference.max() <= 3


class Numbers:
    """Stands for packed shards: arrays hold their positions; says what it was asked to do again.

    12 has a fault when workers leave it to the device, 13 whenever it is loaded; 15 is masked.
    """

    summary = "all of them"

    def __init__(self):
        self.asked, self.closed = [], False

    def load(self, step, kind=DECODE):
        return self.share(np.arange(10, 16) + step, np.arange(6) != 1)

    def load_ahead(self, step, kind=0, *, end=None):
        return self.load(step, kind)

    def load_some(self, step, places, kind):
        assert kind == ALONE
        self.asked.append(places)
        return self.share(10 + step + np.array(places), np.ones(len(places), dtype=bool), mark=100)

    def share(self, positions, valid, mark=0):
        arrays = [torch.tensor([p + mark]) for p in positions.tolist()]
        extents = np.full((len(positions), 2), mark) + (positions == 14)[:, None] * 7
        faults = tuple(
            Fault("a.tar", p, p, f"{p}", "bad", 0) for p in positions.tolist() if p in (12, 13)
        )
        return Share(
            positions + mark, tuple(f"{p + mark}" for p in positions), -positions - mark,
            positions * 0, valid & (positions != 15), (Column(arrays, extents),), faults,
        )  # fmt: skip

    def close(self):
        self.closed = True


class Lists:
    """Stands for a device: it cannot do every fourth; what it does becomes negative."""

    def finish(self, arrays):
        numbers = [int(array) for array in arrays]
        return [None if n % 4 == 1 else Raw(torch.tensor([-n]), (n, 1)) for n in numbers]


@pytest.mark.parametrize("load", ["load", "load_ahead"])
def test_a_share_is_finished_at_once_and_what_is_missed_is_loaded_alone(load):
    source = Numbers()
    loading = DeviceLoading(source, Lists())
    share = getattr(loading, load)(0)
    assert source.asked == [[3]]
    (column,) = share.columns
    assert [int(array) for array in column.arrays] == [-10, -11, -12, 113, -14, -15]
    assert column.extents.tolist() == [[10, 1], [11, 1], [12, 1], [100, 100], [7, 7], [15, 1]]
    assert share.uids.tolist() == [10, 11, 12, 113, 14, 15]
    assert share.labels.tolist() == [-10, -11, -12, -113, -14, -15]
    assert share.keys == ("10", "11", "12", "113", "14", "15")
    assert [fault.key for fault in share.faults] == ["12", "13", "13"]
    assert share.valid.tolist() == [True, False, True, True, True, False]
    assert loading.load(-3).uids[4] == 11
    assert len(source.asked) == 1 + 1  # 9 of 7..12 is missed; nothing else
    loading.close()
    assert source.closed


def test_what_is_only_read_or_decoded_alone_is_not_the_devices():
    source = Numbers()
    loading = DeviceLoading(source, Lists())
    for kind in (READ, ALONE):
        assert [int(array) for array in loading.load(0, kind).columns[0].arrays][3] == 13
    assert not source.asked


def test_only_a_safe_torchcodec_on_a_cuda_device(monkeypatch):
    with pytest.raises(RecipeError, match="views are made on cpu"):
        TorchCodec(torch.device("cpu"))
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.16.1+cu130")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with pytest.raises(ExtraError, match=r"0\.16\.1\+cu130 may corrupt memory"):
        gpu_decode.check_version()
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.17.0+cu130")
    gpu_decode.check_version()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ExtraError, match=r"pip install 'sslpipe\[gpu\]'"):
        gpu_decode.check_version()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_device_decodes_as_the_cpu_does_and_returns_the_bad_one():
    pytest.importorskip("torchcodec")
    decoder = gpu_decoder(TorchCodec(torch.device("cuda")))
    smooth = [jpeg(seed, flat=True) for seed in range(11)]
    bad = smooth[4][:2] + b"\0" * 300  # nvJPEG fills up pictures that begin well
    sharp = [jpeg(seed, colour="444") for seed in range(11)]
    made = decoder.finish(waiting([*smooth, bad, *sharp, *JPEGS]))
    assert made[11] is None
    for canvas, data in zip(made[:11] + made[12:], smooth + sharp + JPEGS, strict=True):
        difference = (canvas.data.cpu().int() - torch.from_numpy(decode(data)).int()).abs()
        assert difference.float().mean() < (20 if data in JPEGS else 1)  # colour is enlarged
        assert data not in smooth or difference.max() <= 2
