"""Tiny videos that know what they are: each frame shows its own number in black and white.

Frame n has the 8 bits of n as squares of 16 px in two rows of four, the lowest bit top left, so it
reads the same after any lossy codec, and turned or mirrored frames read otherwise.
"""

import fractions
import io

import av
import numpy as np
from PIL import Image

SIDE = 16  # pixels of a square
SIDES = (2 * SIDE, 4 * SIDE)  # height, width of a stored frame
QUIET = {"x264-params": "threads=1:lookahead-threads=1:asm=0:log-level=none"}


def picture(number):
    """(32, 64, 3) uint8."""
    bits = (number >> np.arange(8)) & 1
    grey = (255 * bits).astype(np.uint8).reshape(2, 4)
    return np.repeat(grey.repeat(SIDE, 0).repeat(SIDE, 1)[..., None], 3, -1)


def read(frames_THWC):
    """The number of each frame."""
    grid = np.asarray(frames_THWC)[:, SIDE // 2 :: SIDE, SIDE // 2 :: SIDE, 1] > 127
    return (grid.reshape(len(grid), 8) << np.arange(8)).sum(1).tolist()


def film(
    count,
    *,
    container="mp4",
    codec="mpeg4",
    pixels="yuv420p",
    gop=12,
    b_frames=0,
    rate=16,
    turn=0,
    times=None,
    pictures=None,
    options=(),
    audio=False,
):
    """The bytes of a video of `count` frames; times: of each, in milliseconds."""
    out = io.BytesIO()
    with av.open(out, "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate)
        shape = SIDES if pictures is None else pictures[0].shape[:2]
        stream.height, stream.width, stream.pix_fmt = *shape, pixels
        stream.codec_context.gop_size, stream.codec_context.thread_count = gop, 1
        stream.codec_context.max_b_frames = b_frames
        stream.options = {**(QUIET if codec == "libx264" else {}), **dict(options)}
        if turn:
            stream.set_display_rotation(turn)
        sound = file.add_stream("aac", rate=16_000, layout="mono") if audio else None
        if times is not None:
            stream.codec_context.time_base = fractions.Fraction(1, 1000)
        for number in range(count):
            shown = picture(number) if pictures is None else pictures[number]
            frame = av.VideoFrame.from_ndarray(shown, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = int(times[number]), fractions.Fraction(1, 1000)
            file.mux(stream.encode(frame))
        if sound:
            silence = av.AudioFrame.from_ndarray(
                np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
            )
            silence.rate = 16_000
            file.mux(sound.encode(silence))
            file.mux(sound.encode())
        file.mux(stream.encode())
    return out.getvalue()


def tone(container="mp4"):
    """A file with sound and no picture."""
    out = io.BytesIO()
    with av.open(out, "w", format=container) as file:
        stream = file.add_stream("aac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 4096), np.float32), format="fltp", layout="mono"
        )
        frame.rate = 16_000
        file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return out.getvalue()


def covered(*, sound=False):
    """A file whose first video stream is the cover, picture 7; then 5 frames, or sound."""
    out, jpeg = io.BytesIO(), io.BytesIO()
    Image.fromarray(picture(7)).save(jpeg, "JPEG")
    with av.open(out, "w", format="mp4") as file:
        cover = file.add_stream("mjpeg", rate=1)
        cover.height, cover.width, cover.pix_fmt = *SIDES, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        if sound:
            other = file.add_stream("aac", rate=16_000, layout="mono")
        else:
            other = file.add_stream("mpeg4", rate=16)
            other.height, other.width, other.pix_fmt = *SIDES, "yuv420p"
        file.start_encoding()
        packet = av.Packet(jpeg.getvalue())
        packet.stream, packet.pts, packet.dts = cover, 0, 0
        packet.time_base = fractions.Fraction(1)
        file.mux(packet)
        if sound:
            silence = av.AudioFrame.from_ndarray(
                np.zeros((1, 4096), np.float32), format="fltp", layout="mono"
            )
            silence.rate = 16_000
            file.mux(other.encode(silence))
        for number in range(0 if sound else 5):
            shown = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            file.mux(other.encode(shown))
        file.mux(other.encode())
    return out.getvalue()


def everything(data):
    """All frames by PyAV's own sequential decoding, as stored: (N, H, W, 3)."""
    with av.open(io.BytesIO(data)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])
