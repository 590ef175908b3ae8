"""Whatever happened to a file: frames of one shape or a VideoError; no crash, hang or flood.

Damaged files are read by a process of their own (this file run as a script), because what is
guarded against would end the test itself.
"""

import collections
import pathlib
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SECONDS = 30  # For opening one file and reading from it.
ADDRESSES = 4 << 30  # Bytes that the child may map; a file that wants more must be refused.


def mutate(data, other, rng):
    """A damaged copy; a quarter of the damage is in the first 2 kB, where the structure is."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 3))):
        size = int(2 ** rng.uniform(0, 12))
        area = min(len(out), 2048) if rng.random() < 0.25 else len(out)
        at, begin = int(rng.integers(max(area - size, 1))), int(rng.integers(len(other)))
        # Noise, a piece of another length and file, the largest number, nothing.
        new = rng.bytes(size), other[begin : begin + 2 * size], b"\xff\xff\xff\xff", b""
        out[at : at + size] = new[rng.integers(4)]
    return bytes(out[: max(int(len(out) * rng.uniform(0.5, 3)), 64)])  # Some are cut.


def read_one(data):
    """How a file ends: "exact", "damaged", or the reason it is refused."""
    from input_pipeline.video import decode

    try:
        with decode.open_video(data, 1) as video:
            n = video.header.num_frames
            indices = np.unique(np.linspace(0, n - 1, 12).astype(int))
            frames = video.read(indices)
            assert len(frames) == len(indices)
            assert len({frame.shape for frame in frames}) == 1
            assert all(f.ndim == 3 and f.shape[2] == 3 and f.dtype == np.uint8 for f in frames)
            numbers = video.at_rate(10.0)
            assert 0 <= numbers[0] <= numbers[-1] < n
            assert np.all(np.diff(numbers) >= 0)
    except decode.VideoError as error:
        return str(error)
    return "damaged" if video.damage else "exact"


def child(folder, count):
    """Reads damaged copies; tells each seed before it starts, so that a crash has a name."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    paths = sorted(path for path in folder.iterdir() if path.suffix != ".md")
    files = [data for path in paths if len(data := path.read_bytes()) > 64]
    for seed in range(count):
        rng = np.random.default_rng(seed)
        data, other = files[seed % len(files)], files[int(rng.integers(len(files)))]
        print(f"seed {seed}", end="\t", flush=True)
        signal.alarm(SECONDS)  # Ends this process.
        print(read_one(mutate(data, other, rng)), flush=True)
    # Not ru_maxrss: a child begins with that of the process which started it.
    print("peak", pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def outcomes(folder, count):
    """Reads damaged copies in a child; how often each result, and the peak in MiB.

    A crash, a hang and a wrong result fail and name their seed.
    """
    command = [sys.executable, __file__, str(folder), str(count)]
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    *rows, last = ran.stdout.splitlines()
    assert ran.returncode == 0, last
    assert len(rows) == count
    counts = collections.Counter(row.split("\t")[1] for row in rows)
    return counts, int(last.removeprefix("peak ")) // 1024


def test_damaged_files_never_do_harm(tmp_path):
    from packing import video  # Not in the child.
    from test_decode import KINDS

    for name in ("h264.mp4", "open.ts", "b-frames.avi", "vp9.webm"):
        video(tmp_path / name, KINDS[name][0], 24, **KINDS[name][1])
    counts, peak = outcomes(tmp_path, 64)
    assert counts["exact"] + counts["damaged"] >= 16  # The damage is not all deadly,
    assert counts["exact"] <= 48  # and there is damage.
    assert peak < 1024


@pytest.mark.slow
def test_many_damaged_real_files_never_do_harm(shared):
    counts, peak = outcomes(shared / "clips", 800)
    assert counts["exact"] + counts["damaged"] >= 200
    assert peak < 3072


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    child(pathlib.Path(sys.argv[1]), int(sys.argv[2]))
