"""Real and odd files: the frames of a plain full decode, or one reason.

Of every file below a folder: `PYTHONPATH=. python tests/input_pipeline/test_decode_real.py FOLDER`.
"""

import collections
import contextlib
import pathlib
import sys

import av
import numpy as np
import pytest
from packing import read_frames

from input_pipeline.video import decode, packets

STRIDES = (1, 4, 16)
UNREADABLE = "not a video FFmpeg can read (Invalid data found when processing input)"
REFUSED = {
    "audio_only": "no video stream, only audio",
    "audio.mp3": "no video stream, only audio",
    "cover_art": "no video stream, only audio with a cover picture",
    "header_only": UNREADABLE,
    "derived_text": UNREADABLE,
    "moov_at_end": UNREADABLE,
    "zero_byte": "the file is empty (0 bytes)",
    "jpeg_named": "a still image (mjpeg), not a video",
    "one_frame": "1 frame, fewer than data.min_frames=2",
    "testsrc2_mpeg4": "1 frame, fewer than data.min_frames=2",
}
DAMAGED = {"decord_corrupted": 50, "half_faststart": 28, "bitflips.mp4": 75, "bitflips.avi": 78}
DAMAGED |= {"derived_truncated.avi": 62}


def full_decode(path, wanted=range(1 << 30)):
    """The wanted frames and the number of all, by PyAV's plain loop from the first packet on."""
    frames = {}
    count = 0
    with av.open(str(path), **packets.OPEN) as container:
        stream = container.streams.best("video")
        assert isinstance(stream, av.VideoStream)
        found = []
        with contextlib.suppress(av.error.FFmpegError):
            found.extend(container.demux(stream))
        for packet in found:
            with contextlib.suppress(av.error.FFmpegError):
                for frame in stream.codec_context.decode(packet):
                    if count in wanted:
                        image = frame.to_ndarray(format="rgb24")
                        frames[count] = np.rot90(image, round(frame.rotation / 90))
                    count += 1
    return frames, count


def verify(path, alone=()):
    """ "exact", "damaged" or a reason; of clips at three offsets for each stride, read in one
    video and in a fresh one, the last frame and others `alone`, and frames out of order.

    Raises:
        AssertionError: a frame, or the count of an undamaged file, is not that of a full decode.
    """
    try:
        with decode.open_video(str(path)) as video:
            n = video.header.num_frames
            offsets = [(s, o) for s in STRIDES for o in (0, n // 3, max(n - 1 - 15 * s, n // 2))]
            clips = [np.arange(offset, n, stride)[:16] for stride, offset in offsets]
            clips += [np.array([i % n]) for i in alone]
            clips += [np.array([n - 1]), np.array([n // 2, n // 5, n // 2])]
            wanted = np.unique(np.concatenate(clips))
            reads = [(wanted, video.read(wanted))]
            if not video.damage:
                reads += [(clip, video.read(clip)) for clip in clips]
                reads += [(clip, read_frames(str(path), clip)) for clip in clips[:-2:4]]
            damage = video.damage
    except decode.VideoError as error:
        return str(error)
    if damage:
        return "damaged"
    full, count = full_decode(path, set(wanted.tolist()))
    assert count == n, f"{path.name}: {n} frames, a full decode has {count}"
    pairs = [(int(i), f) for clip, frames in reads for i, f in zip(clip, frames)]
    differ = {i for i, frame in pairs if not np.array_equal(frame, full[i])}
    assert not differ, f"{path.name}: frames {sorted(differ)} differ"
    return "exact"


@pytest.mark.slow
def test_frames_of_every_intact_clip_equal_a_full_decode(shared):
    paths = sorted(path for path in (shared / "clips").iterdir() if path.suffix != ".md")
    paths = [p for p in paths if not any(part in p.name for part in (*REFUSED, *DAMAGED))]
    assert len(paths) >= 45
    results = {path.name: verify(path) for path in paths}
    assert {name: result for name, result in results.items() if result != "exact"} == {}


def test_every_frame_alone_of_clips_whose_order_is_in_the_bitstream(shared):
    for name in ("mmaction2_test__ucf101_v_ApplyEyeMakeup_g01_c01.avi", "hiera_dog.mp4"):
        # Alone, a frame shows no disorder: its place must be known beforehand.
        assert verify(shared / "clips" / name, [1, 2, 3, -2, -1, *range(0, 160, 5)]) == "exact"


def test_unusable_and_damaged_clips(shared):
    for part, reason in REFUSED.items():
        (path,) = (p for p in (shared / "clips").glob(f"*{part}*") if p.suffix != ".md")
        with pytest.raises(decode.VideoError) as error:
            decode.probe(str(path))
        assert str(error.value) == reason, part
    for part, count in DAMAGED.items():
        (path,) = (shared / "clips").glob(f"*{part}*")
        with decode.open_video(str(path)) as video:
            assert video.header.num_frames == count, part
            frames = video.read(range(count))
            assert len(frames) == count
            assert len({frame.shape for frame in frames}) == 1
            assert video.damage > 0, part


if __name__ == "__main__":
    suffixes = ("mp4", "avi", "mkv", "mov", "webm", "gif", "m4a", "mp3", "h264", "ts")
    files = [p for p in sorted(pathlib.Path(sys.argv[1]).rglob("*")) if p.suffix[1:] in suffixes]
    counts = collections.Counter()
    for file in files:
        try:
            result = verify(file)
        except AssertionError as error:
            result = f"WRONG: {error}"
        counts[result] += 1
        if result != "exact":
            print(f"{file.name}\t{result}", flush=True)
    print(*(f"{count:5d}  {result}" for result, count in counts.most_common()), sep="\n")
