"""MPEG-4 part 2 (XviD, DivX): which frames its packets hold, and in which order they are shown.

AVI stores a B-frame packed behind the frame it needs, with a placeholder where it would have been,
and has no times; only the coding types in the bitstream tell which frame is which.
"""

import re
from typing import NamedTuple

from av.packet import Packet

_VOP = b"\0\0\1\xb6"  # Start code of a video object plane, that is, a frame.
_I, _P, _B, _S = range(4)
_NOT_CODED = -1
_PACKED = re.compile(rb"DivX\d+(?:Build|b)\d+p")
_LAYER = re.compile(rb"\x00\x00\x01[\x20-\x2f]")
_PLACEHOLDER = 32  # A frame that is not coded has a header only: far fewer bytes than this.


class Cut(NamedTuple):
    """A stream of one frame per packet, in coded order.

    Attributes:
        packets: each as it was demuxed, or bytes cut out of one.
        pts: for each its number in display order, or None if it gives no frame.
        kinds: for each its coding type.
        origin: for each the position of the demuxed packet it comes from.
    """

    packets: list[Packet | bytes]
    pts: list[int | None]
    kinds: list[int]
    origin: list[int]

    def intra(self) -> list[int]:
        """Positions of intra frames: nothing after one refers to what is before it."""
        return [position for position, kind in enumerate(self.kinds) if kind == _I]

    def droppable(self) -> frozenset[int]:
        """Positions of B-frames: nothing refers to them."""
        return frozenset(position for position, kind in enumerate(self.kinds) if kind == _B)


def cut(packets: list[Packet], extradata: bytes) -> Cut | None:
    """Cuts packed frames apart and numbers all by display order; None: not a structure we know.

    This is FFmpeg's way with packed frames: what stands second in a packet is decoded in place of
    the next packet; that one's own frame then waits in turn, or is a placeholder and is dropped.

    Args:
        packets: of the whole stream, in coded order.
        extradata: the stream's header, if the container has one.
    """
    header = extradata + (bytes(packets[0])[:1024] if packets else b"")
    time_bits = _time_bits(header)
    if time_bits is None:
        return None
    packed = _PACKED.search(header) is not None
    found: list[tuple[Packet | bytes, int, int]] = []
    waiting: tuple[Packet | bytes, int, int] | None = None  # As FFmpeg's decoder holds it.
    for origin, packet in enumerate(packets):
        data = bytes(packet)
        if waiting is not None:
            found.append(waiting)
            if len(data) <= 7:  # Never looked at, whatever it is.
                waiting = None
                continue
        first = 0 if data.startswith(_VOP) else data.find(_VOP)
        if first < 0 or first + 5 > len(data):
            return None
        second = data.find(_VOP, first + 4)
        kind = data[first + 4] >> 6
        if len(data) < first + _PLACEHOLDER:
            coded = _is_coded(data[first + 4 : first + 16], time_bits)
            if coded is None:
                return None
            kind = kind if coded else _NOT_CODED
        if waiting is not None:
            if kind in (_P, _S) or second > 0:
                return None
            waiting = None if kind == _NOT_CODED else (packet, kind, origin)
        elif second < 0:
            found.append((packet, kind, origin))
        else:
            if not packed or kind == _NOT_CODED or second + 8 > len(data):
                return None
            other = data[second + 4] >> 6
            if other not in (_I, _B) or data.find(_VOP, second + 4) > 0:
                return None
            found.append((data[:second], kind, origin))
            waiting = (data[second:], other, origin)
    # One that still waits at the end never comes out.
    kinds = [kind for _, kind, _ in found]
    pts = _numbers(kinds)
    if pts is None:
        return None
    return Cut([p for p, _, _ in found], pts, kinds, [origin for _, _, origin in found])


def packet(data: bytes) -> Packet:
    """A packet with a copy: decoders read on behind the end, where a copy has zeros."""
    made = Packet(len(data))
    made.update(data)
    return made


def _numbers(kinds: list[int]) -> list[int | None] | None:
    """Display order: a B-frame is shown at once, any other when the next of its sort comes."""
    numbers: list[int | None] = [None] * len(kinds)
    held, references, number = -1, 0, 0
    for position, kind in enumerate(kinds):
        if kind == _B:
            if references < 2:
                return None
            numbers[position] = number
            number += 1
        elif kind != _NOT_CODED:
            if held >= 0:
                numbers[held] = number
                number += 1
            held, references = position, references + 1
    if held >= 0:
        numbers[held] = number
    return numbers


def _bits(data: bytes) -> str:
    return f"{int.from_bytes(data, 'big'):0{8 * len(data)}b}"


def _time_bits(header: bytes) -> int | None:
    """Bits of `vop_time_increment`, from the header of the video object layer."""
    start = _LAYER.search(header)
    if start is None:
        return None
    bits = _bits(header[start.end() : start.end() + 32].ljust(32, b"\0"))
    at = 17 if bits[9] == "1" else 10  # Behind the version.
    at += 20 if bits[at : at + 4] == "1111" else 4  # Behind the shape of a pixel.
    if bits[at] == "1":
        at += 84 if bits[at + 4] == "1" else 5  # Behind low delay and the sizes of buffers.
    else:
        at += 1
    if bits[at : at + 3] != "001":
        return None  # Not a rectangle, or not MPEG-4 at all.
    return max((int(bits[at + 3 : at + 19], 2) - 1).bit_length(), 1)


def _is_coded(vop: bytes, time_bits: int) -> bool | None:
    """The flag `vop_coded`; None: not a valid header."""
    bits = _bits(vop)
    at = bits.find("0", 2) + 1  # Behind the count of seconds.
    end = at + time_bits + 1
    if at < 1 or end + 2 > len(bits) or bits[at] != "1" or bits[end] != "1":
        return None
    return bits[end + 1] == "1"
