"""Bad media, each by a stated rule: what is refused, with which words, and what is taken."""

import struct

import numpy as np
import pytest

from sslpipe.errors import SampleError
from sslpipe.modalities.audio.clips import WaveDecode
from sslpipe.modalities.audio.codec import AudioCodec
from sslpipe.modalities.audio.crop import SoundCrop
from sslpipe.shards.codec import histogram
from sslpipe.shards.manifest import read_manifest
from sslpipe.shards.verification import verify

from .sounds import FORMATS, chirp, encoded, packed, sample

CODEC = AudioCodec()
CROP = SoundCrop(rate=16_000, samples=800, place="start")


def decoded(data, crop=CROP, extent=(0, 0, 0, 0)):
    return WaveDecode([(crop, 1)])(sample(data, extent), [0])


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_says_what_it_holds(kind):
    data = encoded(chirp(0.5, channels=2), kind=kind)
    ext = "wav" if kind == "float" else kind
    assert CODEC.extension(data) == ext
    assert CODEC.extent(data) == CODEC.inspect(data) == (8_000, 16_000, 2)
    assert CODEC.flags(data) == (ext in ("ogg", "opus", "mp3"))
    assert decoded(data).extent == (8_000, 16_000, 2)


@pytest.mark.parametrize("kind", ["wav", "flac", "float", "ogg", "opus", "mp3"])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.99])
def test_a_cut_file_is_refused(kind, share):
    data = encoded(chirp(1.0), kind=kind)
    with pytest.raises(SampleError):
        CODEC.inspect(data[: int(share * len(data))])


def test_a_cut_wav_or_ogg_is_refused_before_anything_is_decoded():
    wav, ogg = (encoded(chirp(1.0), kind=kind) for kind in ("wav", "ogg"))
    with pytest.raises(SampleError, match=r"is cut: 31,000 of 32,000 bytes of samples are there"):
        CODEC.extent(wav[:-1_000])
    with pytest.raises(SampleError, match="is cut: its last page does not end the stream"):
        CODEC.extent(ogg[:-1_000])


@pytest.mark.parametrize("data", [b"RIFF", b"no sound" * 100, bytes(5_000)])
def test_what_is_no_recording_is_refused(data):
    with pytest.raises(SampleError, match="is no recording that libsndfile reads"):
        CODEC.extent(data)
    assert CODEC.flags(data) == 0


def test_a_recording_without_samples_is_refused():
    with pytest.raises(SampleError, match="has no samples"):
        CODEC.extent(encoded(np.zeros((0, 1)), kind="wav"))


def test_no_channels_and_wrong_rates_are_refused():
    data = bytearray(encoded(chirp(0.1), kind="wav"))
    none, slow = bytearray(data), bytearray(data)
    struct.pack_into("<H", none, 22, 0)
    struct.pack_into("<I", slow, 24, 3)
    with pytest.raises(SampleError, match="Channel count is zero"):
        CODEC.extent(bytes(none))
    with pytest.raises(SampleError, match="has 3 samples a second"):
        CODEC.extent(bytes(slow))


def test_what_is_no_recording_is_told_by_its_first_bytes():
    for data, words in (
        (b"", "^is empty$"),
        (b"<!DOCTYPE html>", "it begins with b'<!DOCTYPE ht'; convert it to WAV, FLAC"),
        (encoded(chirp(1.0), kind="mp3")[:64], "is no recording that libsndfile reads"),
    ):
        with pytest.raises(SampleError, match=words) as told:
            CODEC.extent(data)
        assert "does not exist" not in str(told.value)


@pytest.mark.parametrize("told", [1_000, 1_001])
def test_a_wav_whose_samples_go_on_behind_their_chunk_is_refused(told):
    data = bytearray(encoded(chirp(1.0), kind="wav"))
    struct.pack_into("<I", data, data.index(b"data") + 4, told)
    words = f"its samples end {32_000 - told:,} bytes before its container does, and no other chunk"
    with pytest.raises(SampleError, match=words):
        CODEC.extent(bytes(data))


@pytest.mark.parametrize("padded", [True, False])
def test_other_chunks_and_bytes_of_nobody_are_let_pass(padded):
    """Before the samples and behind them; zeros, and what lies behind the container."""
    whole = encoded(chirp(0.5)[:4_000], kind="wav")
    at, note = whole.index(b"data"), b"LIST" + struct.pack("<I", 5) + b"abcde"
    samples = struct.pack("<4sI", b"data", 7_999) + whole[at + 8 : -1] + b"\0" * padded
    for behind in (b"", note + b"\0", bytes(60)):
        body = whole[8:at] + note + b"\0" + samples + behind
        data = b"RIFF" + struct.pack("<I", len(body)) + body + b"nobody's" * 5
        assert CODEC.inspect(data)[:2] == (3_999, 16_000)


@pytest.mark.parametrize("kind", ["ogg", "opus"])
def test_a_chain_of_recordings_is_no_recording(kind):
    """libsndfile reads the first, and nothing says that there is another one."""
    link = encoded(chirp(0.5), kind=kind)
    assert CODEC.extent(2 * link) == CODEC.inspect(link)
    with pytest.raises(SampleError, match=f"a chain of .* the first ends at byte {len(link):,}"):
        CODEC.inspect(2 * link)


def test_mp3_files_that_were_joined_are_refused():
    """The decoder stops where the first one says that it ends."""
    first, tag = encoded(chirp(0.5), kind="mp3"), b"ID3\x04\0\0\0\0\1\x02" + bytes(130)
    assert CODEC.inspect(tag + first + b"TAG" + bytes(125)) == CODEC.inspect(first)
    for joined, end in ((2 * first, len(first)), (2 * (tag + first), len(tag + first))):
        assert CODEC.extent(joined) == CODEC.inspect(first)
        with pytest.raises(SampleError, match=f"several recordings in a row: .* byte {end:,}"):
            CODEC.inspect(joined)


def test_another_container_is_named():
    import io

    import soundfile

    out = io.BytesIO()
    soundfile.write(out, chirp(0.1), 16_000, format="AIFF", subtype="PCM_16")
    with pytest.raises(SampleError, match=r"is AIFF \(PCM_16\), not one of WAV, FLAC"):
        CODEC.extent(out.getvalue())


def test_a_header_that_promises_more_or_other_samples_is_told():
    flac = bytearray(encoded(chirp(0.5)))
    at = 8 + 10 + 4  # of STREAMINFO: the low 32 of 36 bits of the number of samples
    assert struct.unpack_from(">I", flac, at)[0] == 8_000
    struct.pack_into(">I", flac, at, 9_000)
    with pytest.raises(SampleError, match=r"promises 9,000|does not decode"):
        CODEC.inspect(bytes(flac))
    struct.pack_into(">I", flac, at, 7_000)
    with pytest.raises(SampleError, match=r"its 7,000 samples are not those .* or there are more"):
        CODEC.inspect(bytes(flac))
    data = encoded(chirp(0.5))
    with pytest.raises(SampleError, match=r"\(8000, 16000, 1\), where the index promises \(9000"):
        decoded(data, extent=(9_000, 16_000, 1, 0))


@pytest.mark.parametrize("kind", ["flac", "ogg", "opus"])
def test_damage_inside_a_file_is_told_by_its_checksums(kind):
    """Wherever it is; a FLAC file has metadata that no checksum covers."""
    whole = encoded(chirp(1.0), kind=kind)
    begin = whole.index(b"\xff\xf8", 60) if kind == "flac" else 0
    for at in range(begin, len(whole), len(whole) // 40):
        data = bytearray(whole)
        data[at] ^= 0xFF
        with pytest.raises(SampleError):
            CODEC.inspect(bytes(data))


def test_a_page_that_libogg_would_leave_out_is_told():
    data = bytearray(encoded(chirp(1.0), kind="ogg"))
    data[len(data) // 2] ^= 0xFF  # libsndfile finds 5,000 samples less, and nothing wrong with it
    assert CODEC.extent(bytes(data))[0] < 16_000
    with pytest.raises(SampleError, match=r"its Ogg page at byte .* is damaged"):
        CODEC.inspect(bytes(data))


def test_damage_inside_an_mp3_is_played_as_noise(capfd):
    """MP3 has no checksums of sound: what is noticed is that samples are missing, nothing else."""
    data = bytearray(encoded(chirp(1.0), kind="mp3"))
    data[len(data) // 2] ^= 0xFF
    assert CODEC.inspect(bytes(data)) == (16_000, 16_000, 1)  # the reader's CRC notices it at rest
    data[len(data) // 2 : len(data) // 2 + 400] = bytes(400)
    with pytest.raises(SampleError, match="where its header promises 16,000"):
        CODEC.inspect(bytes(data))
    capfd.readouterr()  # libmpg123 prints


def test_one_sample_many_channels_and_high_rates_are_taken():
    one = decoded(encoded(np.full((1, 1), 0.5), kind="wav"))
    assert one.extent == (1, 16_000, 1)
    assert one.data[0] == 16_384
    assert not one.data[1:].any()
    eight = chirp(0.2, channels=8)
    found = decoded(encoded(eight, kind="float")).data
    assert np.abs(found / 32_768 - eight.mean(1)[:800]).max() <= 0.5001 / 32_768
    t = np.arange(19_200) / 192_000
    fast = decoded(encoded(np.sin(2 * np.pi * 500 * t)[:, None] / 2, rate=192_000, kind="wav"))
    expected = np.sin(2 * np.pi * 500 * np.arange(800) / 16_000) / 2
    assert np.abs(fast.data / 32_768 - expected)[100:].max() < 1e-3


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_samples_that_are_no_numbers_are_refused(bad):
    sound = chirp(0.5)
    sound[300] = bad
    data = encoded(sound, kind="float")
    for read in (CODEC.inspect, decoded):
        with pytest.raises(SampleError, match="sample 300 is not a finite number"):
            read(data)


def test_floats_that_are_whole_numbers_are_refused_and_peaks_clipped():
    with pytest.raises(SampleError, match=r"has samples of 16,384; .* lie in -1 to 1: scale them"):
        decoded(encoded(chirp(0.1) * 0 + 16_384, kind="float"))
    loud = decoded(encoded(chirp(0.1) * 0 + 1.5, kind="float")).data
    assert set(loud) == {32_767}


def test_nothing_but_a_refusal_comes_of_spoiled_files(capfd):
    """Bytes changed, put in, left out, mostly in headers: no other exception, no wrong length."""
    rng, files = np.random.default_rng(0), [encoded(chirp(0.2), kind=kind) for kind in FORMATS]
    refused = 0
    for number in range(240):
        data = bytearray(files[number % len(files)])
        at = int(rng.integers(0, (200, len(data))[number % 2]))
        kind, noise = int(rng.integers(4)), rng.bytes(int(rng.integers(1, 12)))
        data[at : at + (len(noise), 0, len(noise) + 20, 4)[kind]] = (
            noise,
            noise,
            b"",
            b"\xff" * 4,
        )[kind]
        for read in (CODEC.extent, CODEC.inspect, decoded):
            try:
                read(bytes(data))
            except SampleError:
                refused += 1
    assert refused > 200
    capfd.readouterr()  # libmpg123 prints


def test_packing_leaves_bad_ones_out_and_verify_counts(tmp_path):
    good = {f"{n}.flac": encoded(chirp(0.1 + 0.3 * n, seed=n)) for n in range(5)}
    shards = packed(tmp_path / "in", tmp_path / "out", {**good, "bad.wav": b"RIFF" + bytes(90)})
    manifest = read_manifest(shards)
    assert manifest.samples == 5
    assert verify(manifest, codec=CODEC) == []
    assert "bad.wav" in (shards / "report.jsonl").read_text()


def test_histograms_count_milliseconds():
    extents = np.array([[8_000, 16_000, 1, 0], [441_000, 44_100, 2, 0], [0, 0, 0, 0]], np.uint32)
    assert CODEC.measured(extents).tolist() == [500, 10_000, 0]
    assert histogram(CODEC, extents) == {"unknown": 1, "500 to 999": 1, "8000 to 15999": 1}


def test_what_audio_has_not_is_refused():
    with pytest.raises(SampleError, match="leave --resize out"):
        CODEC.shrink(b"", side=1, quality=1)
    with pytest.raises(SampleError, match="use --dedupe exact"):
        CODEC.perceptual_hash(b"")
