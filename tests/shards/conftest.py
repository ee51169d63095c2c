"""Small image folders, made on the spot."""

import gc
import io
import warnings

import numpy as np
import pytest
import webdataset
from PIL import Image

from sslpipe.modalities.image.codec import ImageCodec
from sslpipe.shards import read_index
from sslpipe.shards.tar_headers import member_key


def picture(number, kind="JPEG", size=(40, 30)):
    """The bytes of a random image."""
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


@pytest.fixture(name="picture")
def picture_fixture():
    return picture


@pytest.fixture
def codec():
    return ImageCodec()


@pytest.fixture
def folder(tmp_path):
    """Two classes and two files at the root: 20 good images in four formats."""
    root = tmp_path / "photos"
    kinds = (("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("BMP", "BMP"))
    for number in range(18):
        kind, ext = kinds[number % 4]
        path = root / ("cat", "dog")[number % 2] / f"{number}.{ext}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number, kind))
    for number in (18, 19):
        (root / f"{number}.jpg").write_bytes(picture(number))
    return root


def read_tars(paths):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves its files open
        data = webdataset.WebDataset([str(p) for p in paths], shardshuffle=False)
        samples = list(data)
        del data
        gc.collect()
    return samples


@pytest.fixture(scope="session")
def tars_by_webdataset():
    """Read tars with the plain webdataset package: the oracle of compatibility."""
    return read_tars


@pytest.fixture(scope="session")
def by_webdataset():
    """The same for a shard set."""
    return lambda manifest: read_tars([manifest.tar(shard) for shard in manifest.shards])


@pytest.fixture(scope="session")
def by_index():
    """Read a shard set by offset: (key, ext, payload, label) of every sample."""

    def read(manifest):
        for shard in manifest.shards:
            index, data = read_index(manifest.tar(shard)), manifest.tar(shard).read_bytes()
            for row in range(len(index)):
                place = index.payload(row)
                key = member_key(data[place.start : place.offset])
                payload = data[place.offset :][: place.size]
                yield key, index.extensions[place.ext], payload, index.sample(row).label

    return read
