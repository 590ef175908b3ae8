"""The packet reader gives the frames of a plain full decode, and one reason when it cannot."""

import io
import time
from fractions import Fraction

import av
import numpy as np
from packing import H, W, read_frames, refused, video
from test_decode_real import full_decode

from input_pipeline.sources import frames as stills
from input_pipeline.video import decode
from input_pipeline.video import packets as demux
from input_pipeline.video.base import Clock

OPEN_GOP = "bframes=3:keyint=9:min-keyint=9:b-adapt=0:open-gop=1"
KINDS = {
    "h264.mp4": ("libx264", {"bf": "2", "g": "12"}),
    "h264.mkv": ("libx264", {"bf": "3", "g": "250"}),
    "open.mp4": ("libx264", {"x264-params": OPEN_GOP}),
    "open.ts": ("libx264", {"x264-params": OPEN_GOP}),
    # Marked as keyframes, but whole only many frames later.
    "refresh.mp4": ("libx264", {"x264-params": "intra-refresh=1:keyint=12:bframes=0"}),
    "pyramid.mkv": ("libx264", {"x264-params": "bframes=7:b-adapt=0:keyint=20:ref=5"}),
    "annexb.h264": ("libx264", {"bf": "2", "g": "12"}),
    "open.hevc.mp4": ("libx265", {"x265-params": f"log-level=none:{OPEN_GOP}"}),
    "mpeg4.mp4": ("mpeg4", {"bf": "2", "g": "10"}),
    "b-frames.avi": ("mpeg4", {"bf": "2", "g": "12"}),
    "plain.avi": ("mpeg4", {"bf": "0", "g": "12"}),
    "mpeg2.ts": ("mpeg2video", {"bf": "2", "g": "9"}),
    "hidden.vp8.webm": ("libvpx", {"auto-alt-ref": "1", "lag-in-frames": "16", "g": "14"}),
    "vp9.webm": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "g": "14"}),
    "av1.mkv": ("libsvtav1", {"preset": "12", "g": "14", "svtav1-params": "lp=1"}),
    "wmv2.avi": ("wmv2", {"g": "9"}),
}
APART = (range(1, 45, 17), range(5, 45, 11), (20, 44), (44,), (31, 3, 31), (12, 13), range(45))


def assert_frames(source, full, name):
    with decode.open_video(source) as opened:
        assert opened.header[:3] == (45, H, W), name
        for indices in APART:
            for index, frame in zip(indices, opened.read(indices), strict=True):
                assert np.array_equal(frame, full[index]), (name, indices, index)
        numbers = [0, 0, *range(3, 45, 5)]
        for index, frame in zip(numbers, opened.stream(numbers, np.copy), strict=True):
            assert np.array_equal(frame, full[index]), (name, index)
        assert opened.damage == 0, name


def test_frames_equal_a_full_decode(tmp_path, monkeypatch):
    """Also where what lies between the wanted frames is not decoded, and each frame alone."""
    for name, (codec, options) in KINDS.items():
        if codec not in av.codecs_available:
            continue
        path = video(tmp_path / name, codec, 45, **options)
        full, _ = full_decode(path)
        assert_frames(path.read_bytes(), full, name)
        with monkeypatch.context() as patch:  # A large file is demuxed once more for each read.
            patch.setattr(demux, "LARGE", 1)
            patch.setattr(stills, "LARGE", 1)
            assert_frames(str(path), full, name)
        for index in range(0, 45, 4):
            (frame,) = read_frames(str(path), np.array([index]))
            assert np.array_equal(frame, full[index]), (name, index)


def test_frames_that_an_edit_list_hides_are_not_counted(tmp_path):
    path, options = tmp_path / "edited.mp4", {"avoid_negative_ts": "disabled"}
    for name in ("mpeg4.mp4", "h264.mp4"):
        codec, how = KINDS[name]
        honest = video(tmp_path / name, codec, 57, **how)
        with av.open(str(honest)) as source, av.open(str(path), "w", options=options) as target:
            stream = target.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.size:
                    packet.stream, start = stream, int(Fraction(12, 25) / packet.time_base)
                    packet.pts, packet.dts = packet.pts - start, packet.dts - start
                    target.mux(packet)
        assert_frames(str(path), full_decode(path)[0], f"edited {name}")  # 45 of the 57.


def test_b_frames_packed_behind_others_are_those_of_a_full_decode(tmp_path):
    tag, start = b"\0\0\1\xb2DivX503b1393p", b"\0\0\1\xb6"
    whole = video(tmp_path / "a.avi", "mpeg4", 24, bf="2", g="12")
    with av.open(str(whole)) as given, av.open(str(tmp_path / "b.avi"), "w") as made:
        stream = made.add_stream_from_template(given.streams.video[0])
        coded = [bytes(packet) for packet in given.demux(video=0) if packet.size]
        b_frame = [data[data.find(start) + 4] >> 6 == 2 for data in coded]
        for at in [i for i in range(1, len(coded)) if b_frame[i] and not b_frame[i - 1]]:
            end = next((i for i in range(at, len(coded)) if not b_frame[i]), len(coded))
            placeholder = start + b"\x51\0\x0f"
            coded[at - 1 : end] = [coded[at - 1] + coded[at], *coded[at + 1 : end], placeholder]
        coded[0] = coded[0].replace(start, tag + start, 1)
        for time_, data in enumerate(coded):
            packet = av.Packet(data)
            packet.stream, packet.pts, packet.dts = stream, time_, time_
            packet.is_keyframe = data.find(start) >= 0 and not data[data.find(start) + 4] >> 6
            made.mux(packet)
    expected = full_decode(tmp_path / "b.avi")[0]
    assert len(expected) == 24
    for number in expected:
        assert np.array_equal(read_frames(str(tmp_path / "b.avi"), [number])[0], expected[number])


def test_lost_frame_is_its_nearest_neighbour(tmp_path):
    path = video(tmp_path / "intra.mkv", count=12, g="1")
    data = bytearray(path.read_bytes())
    with av.open(io.BytesIO(bytes(data)), "r") as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    at = data.index(packets[6])
    data[at : at + len(packets[6])] = bytes(len(packets[6]))
    full, _ = full_decode(path)
    with decode.open_video(bytes(data)) as opened:
        frames = opened.read([4, 6, 7, 10])
        assert opened.damage > 0
        refused("none of the wanted frames", opened.read, [6], kind=decode.VideoError)
        for index in (12, -1):
            refused("of a video of 12", opened.read, [index], kind=IndexError)
    assert all(np.array_equal(f, full[i]) for f, i in zip(frames, (4, 7, 7, 10)))


def test_numbers_at_a_rate_by_hand():
    clock = Clock(np.arange(48) / 24, 24.0)
    for rate, numbers in (12.0, range(0, 48, 2)), (24.0, range(48)), (48.0, np.arange(96) // 2):
        assert clock.at_rate(rate).tolist() == [*numbers]
    assert clock.at_rate(5.0).tolist() == [0, 4, 9, 14, 19, 24, 28, 33, 38, 43]
    assert clock.at_rate(0.1).tolist() == [0]
    uneven = Clock(np.array([0, 0.1, 0.2, 0.6, 1, 1.04, 1.08, 2]), 3.5)
    assert uneven.at_rate(10.0)[:12].tolist() == [0, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 6]
    forged = Clock(np.array([0.0, 1e9]), 1.0)
    refused("of 1000000001 s in all", forged.at_rate, 25, kind=decode.VideoError)


HOSTILE = {
    "concat": "ffconcat version 1.0\nfile canary.mp4\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\ncanary.mp4\n#EXT-X-ENDLIST\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=a\nc=IN IP4 127.0.0.1\nt=0 0\n"
    "m=video 45454 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
}


def test_a_file_cannot_make_others_be_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    video(tmp_path / "canary.mp4", "libx264", 5)
    begin = time.monotonic()
    for kind, text in HOSTILE.items():
        path = tmp_path / f"{kind}.mp4"
        path.write_text(text)
        for source in (path.name, path.read_bytes()):
            said = "^not a video FFmpeg can read"
            refused(said, decode.probe, source, kind=decode.VideoError)
    assert time.monotonic() - begin < 15  # SDP would wait for packets.
