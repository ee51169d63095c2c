"""Whether the tables of an mp4 agree with each other: nothing is decoded.

FFmpeg shows what it can make of tables that contradict each other and says nothing: with a time
scale of 0 an edit list hides all frames but the first. So the tables of the track are read here:

- its time scale is 1 or more;
- times, places and offsets are told for all frames that have a size, and sizes of all others;
- where an edit list leaves frames out, it is as long as the track says, so are the frames, and it
  is not shorter than a single one of several.

Fragments (`moof`) have tables of their own, and those of such a file are empty: nothing is said of
them. Layout of boxes: ISO/IEC 14496-12.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...errors import SampleError

I64 = npt.NDArray[np.int64]
Place = tuple[int, int]  # where the content of a box begins and ends
UNSAID = frozenset({0, 2**32 - 1, 2**64 - 1})  # durations that say nothing


@dataclass(frozen=True, slots=True)
class Track:
    """What an mp4 says of one of its tracks."""

    number: int
    scale: int  # ticks of a second, of its frames
    movie_scale: int  # the same of its edits
    duration: int  # in ticks of `scale`
    shown: int  # duration in ticks of `movie_scale`
    sizes: int  # of so many frames
    runs: I64  # (n, 2): so many frames, so many ticks each
    offsets: int | None  # so many frames are told when they are shown; None: as they are decoded
    in_chunks: int  # so many frames are told where they lie
    edits: int | None  # ticks of `movie_scale` that its edits show; None: there are none


def check_mp4_tables(data: bytes, track_number: int, frames: int) -> None:
    """Raise a SampleError if the tables of a track of an mp4 contradict each other.

    frames: how many are shown.
    """
    track = next((t for t in tracks(data) if t.number == track_number), None)
    if track is None:
        return
    if not 0 < track.scale < 2**31:
        raise SampleError(
            f"is damaged: its time scale is {track.scale:,}, so no frame has a time; get it anew"
        )
    told = {"times": int(track.runs[:, 0].sum()), "places": track.in_chunks}
    if track.offsets is not None:
        told["offsets"] = track.offsets
    # one table that is too long, as there are, takes no frame away
    if min(told.values()) < track.sizes or min(told["times"], told["places"]) > track.sizes:
        counts = ", ".join(f"{count:,} {what}" for what, count in told.items())
        raise SampleError(
            f"is damaged: its tables tell {track.sizes:,} sizes of frames, {counts}; get it anew"
        )
    if track.edits is not None and frames < track.sizes:
        check_edits(track, track.edits, frames)


def check_edits(track: Track, edits: int, frames: int) -> None:
    """Raise a SampleError if an edit list that leaves frames out contradicts other tables."""
    ticks = int(track.runs.prod(1).sum())
    seconds = edits / track.movie_scale if track.movie_scale else 0.0
    frame = ticks / track.sizes / track.scale
    if not alike(track.duration, ticks):
        reason = f"they last {ticks:,} ticks, the track {track.duration:,}"
    elif not alike(track.shown, edits):
        reason = f"it lasts {edits:,} ticks, the track {track.shown:,}"
    elif seconds < frame:
        reason = f"it lasts {seconds:.3g} s, one frame {frame:.3g} s"
    else:
        return
    raise SampleError(
        f"is damaged: its edit list shows {frames:,} of {track.sizes:,} frames, and yet {reason}; "
        "get it anew"
    )


def alike(said: int, found: int) -> bool:
    """Whether a duration is about what another table says: half to twice of it, or not said."""
    return said in UNSAID or said <= 2 * found <= 4 * said


def tracks(data: bytes) -> Iterator[Track]:
    """The tracks of an mp4 that have tables of frames."""
    for movie in found(data, (0, len(data)), b"moov"):
        scale, _ = scale_and_duration(data, first(data, movie, b"mvhd"))
        for track in found(data, movie, b"trak"):
            table = first(data, track, b"mdia", b"minf", b"stbl")
            if table[0] < table[1]:
                yield track_at(data, track, table, scale)


def track_at(data: bytes, track: Place, table: Place, movie_scale: int) -> Track:
    """Read what the boxes of one track say of its frames."""
    head = first(data, track, b"tkhd")
    wide = long_form(data, head)
    at = head[0] + (20 if wide else 12)
    shown = at + 8, at + (16 if wide else 12)
    number = int.from_bytes(data[at : at + 4])
    scale, duration = scale_and_duration(data, first(data, track, b"mdia", b"mdhd"))
    sizes, *_ = *found(data, table, b"stsz"), *found(data, table, b"stz2"), (0, 0)
    offsets = [rows(data, place, 2)[:, 0].sum() for place in found(data, table, b"ctts")]
    return Track(
        number, scale, movie_scale, duration,
        shown=int.from_bytes(data[slice(*shown)]),
        sizes=int.from_bytes(data[sizes[0] + 8 : min(sizes[0] + 12, sizes[1])]),
        runs=rows(data, first(data, table, b"stts"), 2),
        offsets=int(offsets[0]) if offsets else None,
        in_chunks=frames_in_chunks(data, table),
        edits=edited(data, first(data, track, b"edts", b"elst")),
    )  # fmt: skip


def scale_and_duration(data: bytes, place: Place) -> tuple[int, int]:
    """Ticks of a second, and how many there are, of `mvhd` or `mdhd`."""
    wide = long_form(data, place)
    at = place[0] + (20 if wide else 12)
    end = at + (12 if wide else 8)
    return int.from_bytes(data[at : at + 4]), int.from_bytes(data[at + 4 : end])


def frames_in_chunks(data: bytes, table: Place) -> int:
    """How many frames the chunks of a track hold: runs of chunks (`stsc`), as far as they lie."""
    runs = rows(data, first(data, table, b"stsc"), 3)
    places = [*found(data, table, b"stco"), *found(data, table, b"co64")]
    chunks = int.from_bytes(data[places[0][0] + 4 : places[0][0] + 8]) if places else 0
    counts = np.diff(np.append(runs[:, 0], chunks + 1))
    return int((np.maximum(counts, 0) * runs[:, 1]).sum())


def edited(data: bytes, place: Place) -> int | None:
    """How many ticks of the movie the edits of a track show; delays show nothing."""
    if place[0] == place[1]:
        return None
    wide = long_form(data, place)
    kind = np.dtype([("ticks", ">u8"), ("start", ">i8"), ("rate", ">u4")] if wide else
                    [("ticks", ">u4"), ("start", ">i4"), ("rate", ">u4")])  # fmt: skip
    body = data[place[0] + 8 : place[1]]
    edits = np.frombuffer(body[: len(body) // kind.itemsize * kind.itemsize], kind)
    edits = edits[: int.from_bytes(data[place[0] + 4 : place[0] + 8])]
    return int(edits["ticks"][edits["start"] >= 0].astype(np.int64).sum())


def rows(data: bytes, place: Place, columns: int) -> I64:
    """The rows of a table of u32, as many as it says and has, (n, columns)."""
    count = int.from_bytes(data[place[0] + 4 : min(place[0] + 8, place[1])])
    body = data[place[0] + 8 : place[1]]
    count = min(count, len(body) // (4 * columns))
    numbers = np.frombuffer(body, ">u4", count=count * columns)
    return numbers.astype(np.int64).reshape(count, columns)


def long_form(data: bytes, place: Place) -> bool:
    """Whether a box writes its times in 64 bits: its version is 1."""
    return place[0] < place[1] and data[place[0]] == 1


def first(data: bytes, place: Place, *names: bytes) -> Place:
    """The content of the first box of a name, in it that of the next, and so on; empty: none."""
    for name in names:
        place = next(found(data, place, name), (place[1], place[1]))
    return place


def found(data: bytes, place: Place, name: bytes) -> Iterator[Place]:
    """The contents of all boxes of a name that stand side by side."""
    at, end = place
    while at + 8 <= end:
        size, head = int.from_bytes(data[at : at + 4]), 8
        if size == 1:  # it stands behind the name, in 8 bytes
            size, head = int.from_bytes(data[at + 8 : at + 16]), 16
        stop = min(end, at + size) if size else end
        if stop < at + head:
            return
        if data[at + 4 : at + 8] == name:
            yield at + head, stop
        at = stop
