"""TorchCodec's lists on a device against the CPU's threads, for gpu_parts: speed, and how like."""

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from gpu_augment import timed
from gpu_wall import OnCpu, jpegs

from sslpipe.modalities.image.canvases import CanvasDecode
from sslpipe.modalities.image.codec import GPU_JPEG
from sslpipe.modalities.image.decode import decode
from sslpipe.modalities.image.gpu_decode import GpuDecode, TorchCodec

Row = dict[str, Any]


def decoders(device: torch.device, images: int, repeats: int) -> Mapping[str, Callable[[], Row]]:
    """Give what measures each way to decode as many JPEGs; a device of the CPU is a dry run."""
    data = jpegs(images)
    encoded = [torch.frombuffer(bytearray(each), dtype=torch.uint8) for each in data]
    threads = ThreadPoolExecutor(len(os.sched_getaffinity(0)))

    def rate(work: Callable[[], object]) -> Row:
        took = timed(work, device=device, repeats=repeats)
        return {**took, "images_per_s": 1e3 * len(data) / took["done_ms"]}

    def lists(side: int | None) -> Row:
        engine = TorchCodec(device) if device.type == "cuda" else OnCpu()
        gpu = GpuDecode(CanvasDecode(side), engine, baseline=GPU_JPEG)
        with engine.stream():
            canvases = gpu.decode(encoded)
        pairs = [
            (c.data.cpu().float() - torch.from_numpy(decode(d, size=side))).abs()
            for c, d in zip(canvases, data, strict=True)
            if c is not None
        ]
        apart = {
            "levels_apart": float(torch.stack([pair.mean() for pair in pairs]).mean()),
            "most_levels_apart": float(torch.stack([pair.max() for pair in pairs]).max()),
        }
        return {**rate(lambda: gpu.decode(encoded)), **apart, "returned": gpu.returned}

    return {
        "cpu threads": lambda: rate(lambda: list(threads.map(decode, data))),
        "lists": lambda: lists(None),
        "lists, shrunk to 256": lambda: lists(256),
    }
