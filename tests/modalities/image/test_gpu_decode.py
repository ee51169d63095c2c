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
from sslpipe.modalities.image.gpu_decode import Encoded, GpuDecode, OneByOne, TorchCodec, halve
from sslpipe.stream.batch_decode import BatchDecode
from sslpipe.stream.plan import Picks
from sslpipe.stream.reader import Sample
from sslpipe.stream.source import Loaded, Share

BASELINE = 1


def jpeg(seed, flat=False):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (64 + seed, 90, 3), dtype=np.uint8)
    pixels = np.full_like(pixels, seed) if flat else pixels
    return simplejpeg.encode_jpeg(pixels, colorspace="RGB", colorsubsampling="420")


def sample(data, flags=BASELINE):
    return Sample(7, "key", -1, data, flags)


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
    made = gpu_decoder(engine).finish([Encoded(data) for data in JPEGS])
    assert engine.calls == [11]
    for canvas, data in zip(made, JPEGS, strict=True):
        assert torch.equal(canvas.data, torch.from_numpy(decode(data)))
        assert canvas.data.is_contiguous()
        assert canvas.data.shape[:2] == canvas.extent


@pytest.mark.parametrize("bad", [[0], [10], [3, 4], [0, 5, 10], range(10)])
def test_offenders_stand_alone_and_the_others_are_decoded(bad):
    engine = Engine(bad=[JPEGS[i] for i in bad])
    decoder = gpu_decoder(engine)
    made = decoder.finish([Encoded(data) for data in JPEGS])
    assert [i for i, canvas in enumerate(made) if canvas is None] == list(bad)
    assert (decoder.done, decoder.returned) == (11 - len(bad), len(bad))
    if len(bad) == 1:
        assert len(engine.calls) <= 1 + 2 * 4  # a path of 4 halvings, two calls each


def test_an_engine_that_decodes_nothing_is_no_matter_of_bad_images():
    with pytest.raises(RuntimeError, match="nvjpeg"):
        gpu_decoder(Engine(bad=JPEGS)).finish([Encoded(data) for data in JPEGS])
    assert gpu_decoder(Engine(bad=JPEGS)).finish([Encoded(JPEGS[0])]) == [None]
    assert halve(Engine(), []) == []


def test_black_pictures_whose_bytes_say_otherwise_are_returned():
    truly_flat = jpeg(20, flat=True)
    jpegs = [*JPEGS[:3], truly_flat]
    made = gpu_decoder(Engine(black=JPEGS[1:2])).finish([Encoded(data) for data in jpegs])
    assert [canvas is None for canvas in made] == [False, True, False, False]


def test_what_does_not_suit_a_device_is_decoded_by_the_cpu():
    decoder, whole = gpu_decoder(Engine()), JPEGS[5]
    entry = b"\x12\x01\x03\0\x01\0\0\0\x06\0\0\0"  # orientation 6
    exif = b"\xff\xe1\x00\x22Exif\0\0II*\0\x08\0\0\0\x01\0" + entry + bytes(4)
    turned = whole[:2] + exif + whole[2:]
    assert isinstance(decoder.prepare(sample(whole), (1,)), Encoded)
    assert isinstance(decoder.prepare(sample(whole + b"\0\0"), (1,)), Encoded)
    assert decoder.prepare(sample(whole, flags=256), (1,)).data.shape == (69, 90, 3)
    assert decoder.prepare(sample(turned), (1,)).data.shape == (90, 69, 3)
    with pytest.raises(SampleError):  # a device would fill the rest with grey
        decoder.prepare(sample(whole[:-900]), (1,))


def test_finish_keeps_what_is_decoded_and_shrinks_as_decode_does():
    done = Raw(torch.zeros(2, 2, 3, dtype=torch.uint8), (2, 2))
    made = gpu_decoder(Engine(), size=40).finish([done, Encoded(JPEGS[3]), done])
    assert made[0] is made[2] is done
    want = torch.from_numpy(decode(JPEGS[3], size=40))
    assert made[1].data.shape == want.shape
    difference = (made[1].data.float() - want.float()).abs()  # uint8 rounds between two passes
    assert difference.mean() < 0.5
    assert difference.max() <= 3


class Numbers:
    """Stands for Packed: samples are their positions; says what it was asked to load again."""

    def __init__(self):
        self.asked = []

    def picks(self, step):
        positions = np.arange(10, 16) + step
        return Picks(positions * 0, positions, positions != 11)

    def share(self, step, decode):
        return self.made(self.picks(step), decode)

    def load(self, picks, decode):
        self.asked.append(picks.positions.tolist())
        return self.made(picks, decode)

    def made(self, picks, decode):
        loaded = [
            Loaded(sample(b"", p), None if p == 15 else decode(p, 0), 0, (f"{p}",), bad=p == 15)
            for p in picks.positions.tolist()
        ]
        return Share(loaded, picks.valid & (picks.positions != 15))


def test_a_share_is_finished_at_once_and_what_is_missed_is_loaded_alone():
    source = Numbers()
    together = BatchDecode(
        source,
        first=lambda p, epoch: p,
        finish=lambda prepared: [None if p % 4 == 1 else f"gpu {p}" for p in prepared],
        alone=lambda p, epoch: f"cpu {p}",
    )
    share = together(0)
    assert source.asked == [[13]]
    decoded = [item.decoded for item in share.loaded]
    assert decoded == ["gpu 10", "gpu 11", "gpu 12", "cpu 13", "gpu 14", None]  # 15 is masked
    assert [item.faults for item in share.loaded][2:4] == [("12",), ("13", "13")]
    assert share.valid.tolist() == [True, False, True, True, True, False]


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
    bad = smooth[4][:20] + b"\0" * 30 + smooth[4][50:]
    made = decoder.finish([Encoded(data) for data in [*smooth, bad, *JPEGS]])
    assert made[11] is None
    for canvas, data in zip(made[:11] + made[12:], smooth + JPEGS, strict=True):
        difference = (canvas.data.cpu().int() - torch.from_numpy(decode(data)).int()).abs()
        assert difference.float().mean() < 8  # noise, whose enlarged colour is another
        assert data in JPEGS or difference.max() <= 2
