"""XviD's packed B-frames, made by hand from an honest stream: exact, with most frames left out."""

import pathlib
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.packet import Packet
from test_decode import full_decode, write

from input_pipeline.video import decode

VOP = b"\0\0\1\xb6"
DIVX = b"\0\0\1\xb2DivX503b1393p"
PLACEHOLDER = VOP + bytes([0b01010000, 0b01000000])  # A P-frame that is not coded.


def kind(data: bytes) -> str:
    return "IPBS"[data[data.index(VOP) + 4] >> 6] if VOP in data else "P"


def stream_of(path: pathlib.Path, options: dict[str, str], count: int = 40) -> list[bytes]:
    """The frames of an honest AVI, in coded order."""
    write(path, "mpeg4", count, options=options)
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.size]


def mux(honest: pathlib.Path, path: pathlib.Path, packets: Iterable[bytes]) -> pathlib.Path:
    with av.open(str(honest)) as source, av.open(str(path), "w") as target:
        stream: Any = target.add_stream_from_template(source.streams.video[0])
        for position, data in enumerate(packets):
            packet = Packet(len(data))
            packet.update(data)
            packet.stream, packet.time_base = stream, Fraction(1, 25)
            packet.pts = packet.dts = position
            packet.is_keyframe = kind(data) == "I"
            target.mux(packet)
    return path


def pack(frames: list[bytes], mark: bool = True) -> list[bytes]:
    """P B B becomes (P B) (B) (placeholder), as XviD does; the first frame tells who did it."""
    packed: list[bytes] = []
    for position, frame in enumerate(frames):
        after = frames[position + 1] if position + 1 < len(frames) else frames[0]
        if kind(frame) == "B":
            if kind(frames[position - 1]) == "B":
                packed.append(frame)
            if kind(after) != "B":
                packed.append(PLACEHOLDER)
        else:
            packed.append(frame + after if kind(after) == "B" else frame)
    return [marked(packed[0]) if mark else packed[0], *packed[1:]]


def marked(frame: bytes) -> bytes:
    return frame.replace(VOP, DIVX + VOP, 1)


def contents_of(path: pathlib.Path) -> Any:
    with decode.open_video(str(path)) as video:
        assert isinstance(video, decode.Video)
        return video._found


def assert_exact(path: pathlib.Path, count: int) -> None:
    full = full_decode(path)
    assert len(full) == count
    with decode.open_video(str(path)) as video:
        assert video.header.num_frames == count
        alone = [range(index, index + 1) for index in range(count)]
        for indices in [range(f, count, s) for f in range(3) for s in (1, 4, 9)] + alone:
            for index, frame in zip(indices, video.read(indices)):
                assert np.array_equal(frame, full[index]), (indices, index)
        assert video.damage == 0


def test_packed_frames_are_exact(tmp_path: pathlib.Path) -> None:
    for options in ({"bf": "2"}, {"bf": "1"}, {"bf": "2", "flags": "+qpel+mv4"}):
        honest = tmp_path / "honest.avi"
        frames = stream_of(honest, options | {"g": "13"})
        packed = pack(frames)
        assert sum(data.count(VOP) > 1 for data in packed) >= 8
        path = mux(honest, tmp_path / "packed.avi", packed)
        found = contents_of(path)
        assert found.timed
        assert len(found.droppable) == sum(kind(frame) == "B" for frame in frames)
        assert len(found.pts) == len(frames) == 40
        assert_exact(path, 40)


# P, no whole second gone, marker, time of 5 bits (25 a second), marker, not coded.
NOT_CODED = VOP + int("010100001100111111111111", 2).to_bytes(3, "big")


def test_packets_that_hold_no_frame_are_not_counted(tmp_path: pathlib.Path) -> None:
    for b_frames in ("2", "0"):
        honest = tmp_path / "honest.avi"
        frames = pack(stream_of(honest, {"bf": b_frames, "g": "13"}))
        # One byte each for the frames that XviD holds back at the start; some at the end, too.
        late = [frames[0], b"\x7f", b"\x7f", *frames[1:], NOT_CODED, PLACEHOLDER, b"\x7f"]
        assert_exact(mux(honest, tmp_path / "late.avi", late), 40)
        at = next(i for i, data in enumerate(frames) if i > 9 and kind(data) != "B" and VOP in data)
        held = [*frames[:at], NOT_CODED, *frames[at:]]
        assert_exact(mux(honest, tmp_path / "held.avi", held), 40)


def test_frames_of_a_broken_structure_are_those_that_come_out(tmp_path: pathlib.Path) -> None:
    honest = tmp_path / "honest.avi"
    frames = stream_of(honest, {"bf": "2", "g": "13"})
    packed = pack(frames)
    last = max(i for i, data in enumerate(packed) if data.count(VOP) > 1)
    for broken in (
        [b"\x7f" if data == PLACEHOLDER else data for data in packed],  # As DivX does,
        packed[: last + 1],  # with a packed frame at the end, which never comes out,
        pack(frames, mark=False),  # not marked as packed,
        [frames[0], *frames[2:]],  # beginning with B-frames,
        [frames[0] + DIVX, *pack(frames, False)[1:]],  # and marked behind the first frame.
    ):
        path = mux(honest, tmp_path / "a.avi", broken)
        assert contents_of(path).timed
        assert_exact(path, len(full_decode(path)))


def test_frames_that_the_decoder_refuses_are_damage(tmp_path: pathlib.Path) -> None:
    honest = tmp_path / "honest.avi"
    frames = stream_of(honest, {"bf": "2", "g": "100"}, 20)
    for lost in (
        [data for data in pack(frames) if data != PLACEHOLDER],
        [marked(frames[0]), b"".join(frames[1:4]), *frames[4:]],  # Three in a packet.
    ):
        with decode.open_video(str(mux(honest, tmp_path / "a.avi", lost))) as video:
            assert len(video.read(range(video.header.num_frames))) == video.header.num_frames
            assert video.damage > 0
