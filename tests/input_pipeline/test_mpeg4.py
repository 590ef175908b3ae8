"""XviD's packed B-frames, made by hand from an honest stream: exact, with most frames left out."""

from fractions import Fraction

import av
import numpy as np
from av.packet import Packet
from packing import video
from test_decode import full_decode

from input_pipeline.video import decode

VOP = b"\0\0\1\xb6"
DIVX = b"\0\0\1\xb2DivX503b1393p"
PLACEHOLDER = VOP + bytes([0b01010000, 0b01000000])  # A P-frame that is not coded.


def kind(data):
    return "IPBS"[data[data.index(VOP) + 4] >> 6] if VOP in data else "P"


def stream_of(path, options):
    """The frames of an honest AVI, in coded order."""
    video(path, "mpeg4", **options)
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.size]


def mux(honest, path, packets):
    with av.open(str(honest)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for position, data in enumerate(packets):
            packet = Packet(len(data))
            packet.update(data)
            packet.stream, packet.time_base = stream, Fraction(1, 25)
            packet.pts = packet.dts = position
            packet.is_keyframe = kind(data) == "I"
            target.mux(packet)
    return path


def pack(frames, mark=True):
    """P B B becomes (P B) (B) (placeholder), as XviD does; the first frame tells who did it."""
    packed = []
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


def marked(frame):
    return frame.replace(VOP, DIVX + VOP, 1)


def assert_exact(path, count):
    full = full_decode(path)
    assert len(full) == count
    with decode.open_video(str(path)) as opened:
        assert opened.header.num_frames == count
        alone = [range(index, index + 1) for index in range(count)]
        for indices in [range(f, count, s) for f in range(3) for s in (1, 4, 9)] + alone:
            for index, frame in zip(indices, opened.read(indices)):
                assert np.array_equal(frame, full[index]), (indices, index)
        assert opened.damage == 0


def test_packed_frames_are_exact(tmp_path):
    for options in ({"bf": "2"}, {"bf": "1"}, {"bf": "2", "flags": "+qpel+mv4"}):
        honest = tmp_path / "honest.avi"
        frames = stream_of(honest, options | {"g": "13"})
        packed = pack(frames)
        assert sum(data.count(VOP) > 1 for data in packed) >= 8
        path = mux(honest, tmp_path / "packed.avi", packed)
        assert_exact(path, 40)


def test_frames_of_a_broken_structure_are_those_that_come_out(tmp_path):
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
        assert_exact(path, len(full_decode(path)))
