"""MPEG-4 part 2 (XviD, DivX): the frames of its packets, cut apart as FFmpeg's decoder does.

AVI stores a B-frame packed behind the frame it needs, with a placeholder where it would have been,
and has no times; only the coding types in the bitstream tell which frame is which.
"""

import re
from collections.abc import Iterable, Iterator, Sequence

from av.packet import Packet

I_FRAME, P_FRAME, B_FRAME, _, HIDDEN = range(5)  # Coding types; 3 is a P-frame of its own sort.
_VOP = b"\0\0\1\xb6"  # Start code of a video object plane, that is, a frame.
_PACKED = re.compile(rb"DivX\d+(?:Build|b)\d+p")
_PLACEHOLDER = 7  # Bytes; a coded frame has more.


def frames(packets: Iterable[Packet], header: bytes) -> Iterator[tuple[Packet, int]]:
    """One coded frame for each packet of a whole stream, and its coding type.

    The `header` of the stream, or of its first packet, says whether frames are packed. What holds
    no frame is `HIDDEN`, but still tells the decoder of time. What stands second in a packet is
    decoded in place of the next packet, whose own frame then waits in turn if it is an I- or
    B-frame, and is dropped if not.
    """
    waiting: tuple[Packet, int] | None = None
    packed = None
    for packet in packets:
        data = bytes(packet)
        if packed is None:
            packed = _PACKED.search((header + data).partition(_VOP)[0]) is not None
        first = data.find(_VOP, 0, len(data) - 1) if len(data) > _PLACEHOLDER else -1
        kind = data[first + 4] >> 6 if first >= 0 else HIDDEN
        second = data.find(_VOP, first + 4, 3 - _PLACEHOLDER) if packed and first >= 0 else -1
        if waiting is not None:
            yield waiting
            waiting = (packet, kind) if kind in (I_FRAME, B_FRAME) else None
        elif second >= 0 and (after := data[second + 4] >> 6) in (I_FRAME, B_FRAME):
            yield _part(packet, data[:second]), kind
            waiting = _part(packet, data[second:]), after
        else:
            yield packet, kind
    # One that still waits at the end never comes out.


def numbers(kinds: Sequence[int]) -> list[int | None]:
    """Places in display order; None: hidden, or a B-frame without both references.

    A B-frame is shown at once, any other when the next of its sort comes.
    """
    found: list[int | None] = [None] * len(kinds)
    held, references, number = -1, 0, 0
    for position, kind in enumerate(kinds):
        shown = position if kind == B_FRAME and references > 1 else -1
        if kind < HIDDEN and kind != B_FRAME:
            shown, held, references = held, position, references + 1
        if shown >= 0:
            found[shown] = number
            number += 1
    if held >= 0:
        found[held] = number
    return found


def _part(packet: Packet, data: bytes) -> Packet:
    """A copy: decoders read on behind the end, where a copy has zeros."""
    made = Packet(len(data))
    made.update(data)
    made.pts = packet.pts
    return made
