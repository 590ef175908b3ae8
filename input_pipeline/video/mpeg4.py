"""MPEG-4 part 2 (XviD, DivX): which frame is which.

AVI stores a B-frame packed behind the frame it needs, with a placeholder where it would have been,
and has no times; only the coding types in the bitstream tell the order.
"""

from collections.abc import Sequence

from av.packet import Packet

I_FRAME, P_FRAME, B_FRAME, _, HIDDEN = range(5)  # Coding types; 3 is a P-frame of its own sort.
UNPACK = "mpeg4_unpack_bframes"  # FFmpeg's filter puts packed frames where they belong.
_VOP = b"\0\0\1\xb6"  # Start code of a video object plane, that is, a frame.
_PLACEHOLDER = 7  # Bytes; a coded frame has more.


def kind(packet: Packet) -> int:
    """The coding type of its frame; what holds none is `HIDDEN`, but tells the decoder of time."""
    data = bytes(packet)
    at = data.find(_VOP, 0, len(data) - 1)
    return data[at + 4] >> 6 if at >= 0 and len(data) > _PLACEHOLDER else HIDDEN


def numbers(kinds: Sequence[int]) -> list[int | None]:
    """Places in display order; None: hidden, or a B-frame without both references.

    A B-frame is shown at once, any other when the next of its sort comes.
    """
    found: list[int | None] = [None] * len(kinds)
    held, references, number = -1, 0, 0
    for position, coding in enumerate(kinds):
        shown = position if coding == B_FRAME and references > 1 else -1
        if coding < HIDDEN and coding != B_FRAME:
            shown, held, references = held, position, references + 1
        if shown >= 0:
            found[shown] = number
            number += 1
    if held >= 0:
        found[held] = number
    return found
