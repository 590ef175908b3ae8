"""UCF101 from archives on a small server: whole, downloaded once, resumed after trouble."""

import concurrent.futures
import hashlib
import http.server
import io
import pathlib
import shutil
import socket
import threading
import time
import zipfile
from collections.abc import Iterator
from typing import Any

import av
import numpy as np
import pytest
import tensorflow_datasets as tfds

from input_pipeline import ucf101
from input_pipeline.sources import arrayrecord as packed
from input_pipeline.sources import shards
from input_pipeline.sources.records import DataError
from input_pipeline.ucf101 import Download
from input_pipeline.video import decode

# (name in the lists, name in the archive): the real set spells one class in two ways.
FILES = {
    "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi": "v_ApplyEyeMakeup_g01_c01.avi",
    "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi": "v_ApplyEyeMakeup_g08_c01.avi",
    "HandstandPushups/v_HandStandPushups_g01_c01.avi": "v_HandstandPushups_g01_c01.avi",
    "HandstandPushups/v_HandStandPushups_g08_c01.avi": "v_HandstandPushups_g08_c01.avi",
}
CLASSES = ["ApplyEyeMakeup", "HandstandPushups"]


def avi(seed: int, num_frames: int) -> bytes:
    """An AVI file as those of UCF101: MPEG-4 with B-frames."""
    rng = np.random.default_rng(seed)
    file = io.BytesIO()
    with av.open(file, "w", format="avi") as container:
        stream: Any = container.add_stream("mpeg4", rate=25, options={"bf": "2"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for _ in range(num_frames):
            image = rng.integers(0, 255, (48, 64, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()


VIDEOS = {name: avi(seed, 12 + seed) for seed, name in enumerate(FILES.values())}


def archive(files: dict[str, bytes]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as content:
        content.mkdir(next(iter(files)).split("/")[0])
        for name, one in files.items():
            content.writestr(name, one)
    return data.getvalue()


def split_lists() -> bytes:
    names = list(FILES)
    lists = {"classInd.txt": "".join(f"{i} {name}\r\n" for i, name in enumerate(CLASSES, 1))}
    for number in (1, 2, 3):
        train = [names[1], names[3]] if number == 1 else [names[0], names[2]]
        test = [name for name in names if name not in train]
        labels = {name: CLASSES.index(name.split("/")[0]) + 1 for name in names}
        lists[f"trainlist0{number}.txt"] = "".join(f"{name} {labels[name]}\r\n" for name in train)
        lists[f"testlist0{number}.txt"] = "".join(f"{name}\r\n" for name in test)
    return archive({f"ucfTrainTestlist/{name}": text.encode() for name, text in lists.items()})


class Server(http.server.ThreadingHTTPServer):
    """Counts whole requests; `act` says what becomes of an answer that is the archive of videos."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.act, self.sent = files, "send", list[str]()
        self.over = threading.Event()

    def downloads(self) -> dict[str, Download]:
        base = f"http://127.0.0.1:{self.server_address[1]}"
        return {
            kind: Download(f"{base}/{name}", len(data), hashlib.sha256(data).hexdigest())
            for kind, (name, data) in zip(("videos", "splits"), self.files.items())
        }


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name = self.path.strip("/")
        data = self.server.files.get(name)
        if data is None:
            self.send_error(404)
            return
        self.send_response(200)
        if self.server.act != "flood":
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        try:
            act = self.server.act if name == "videos.zip" else "send"
            if act in ("cut", "stall"):
                self.wfile.write(data[: len(data) // 2])
                self.server.over.wait(60 if act == "stall" else 0)
                self.close_connection = True
                return
            while act == "trickle" and not self.server.over.wait(0.2):
                self.wfile.write(b"P")
            while act == "flood":
                self.wfile.write(bytes(1 << 20))
                self.server.sent.append("1 MB")
            self.wfile.write(data)
            self.server.sent.append(name)
        except OSError:
            pass  # whoever asked hung up

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    videos = {f"UCF101/{name}": data for name, data in VIDEOS.items()}
    with Server({"videos.zip": archive(videos), "splits.zip": split_lists()}) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield running
        running.over.set()
        running.shutdown()
        thread.join()


def test_the_official_split_with_the_original_bytes(server: Server, tmp_path: pathlib.Path) -> None:
    folder = ucf101.fetch(str(tmp_path), 1, **server.downloads())
    assert packed.class_names(folder) == CLASSES
    names = list(FILES)
    for split, expected in (("train", [names[1], names[3]]), ("test", [names[0], names[2]])):
        records = packed.load(folder, split, num_classes=2)
        assert [record.id for record in records] == expected
        assert [record.label for record in records] == [0, 1]
        for record in records:
            data = VIDEOS[FILES[record.id]]
            assert record.data == data
            assert record.num_frames == decode.probe(data).num_frames >= 12
    assert packed.load(folder, "val")[0] == packed.load(folder, "test")[0]
    about = packed.manifest(folder)["splits"]["train"]
    assert about["frames"] == 13 + 15
    assert sorted(path.name for path in tmp_path.iterdir()) == ["downloads", "ucf101_1"]


def test_nothing_is_downloaded_twice(server: Server, tmp_path: pathlib.Path) -> None:
    downloads = server.downloads()
    folder = pathlib.Path(ucf101.fetch(str(tmp_path), 1, **downloads))
    files = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    server.sent.clear()
    assert ucf101.fetch(str(tmp_path), 1, **downloads) == str(folder)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == files
    other = ucf101.fetch(str(tmp_path), 2, **downloads)
    assert [record.id for record in packed.load(other, "train")] == list(FILES)[::2]
    shutil.rmtree(folder)
    ucf101.fetch(str(tmp_path), 1, **downloads)
    assert server.sent == []


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        ("cut", "cannot be downloaded"),
        ("stall", r"cannot be downloaded \(\w+: .*timed out"),
        ("trickle", r"cannot be downloaded \(Timeout: less than 1048576 bytes in 1 s"),
        ("flood", "not the file that is expected"),
    ],
)
def test_a_bad_connection_is_one_line_and_the_next_call_ends_well(
    server: Server, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, act: str, reason: str
) -> None:
    monkeypatch.setattr("input_pipeline.download._TIMEOUT", 1.0)
    monkeypatch.setattr("input_pipeline.download._PATIENCE", 1.0)
    server.act = act
    start = time.monotonic()
    with pytest.raises(DataError, match=reason) as error:
        ucf101.fetch(str(tmp_path), 1, **server.downloads())
    assert time.monotonic() - start < 10
    assert "\n" not in str(error.value)
    assert server.sent.count("1 MB") < 20  # of an archive of a few kB
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [".lock", "splits.zip"]
    server.act = "send"
    (tmp_path / "downloads" / "videos.zip.part").write_bytes(b"half")  # as a kill leaves it
    folder = ucf101.fetch(str(tmp_path), 1, **server.downloads())
    assert len(packed.load(folder, "test")) == 2
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("kind", ["videos", "splits"])
def test_another_file_is_refused(server: Server, tmp_path: pathlib.Path, kind: str) -> None:
    downloads = server.downloads()
    downloads[kind] = downloads[kind]._replace(sha256="0" * 64)
    with pytest.raises(DataError, match=f"{kind}.zip: not the file that is exp") as error:
        ucf101.fetch(str(tmp_path), 1, **downloads)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.rglob(f"{kind}*"))
    assert not packed.is_packed(str(tmp_path / "ucf101_1"))


def test_a_disk_without_room_is_told_before_the_download(
    server: Server, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = server.downloads()["videos"].size
    usage = shutil.disk_usage(tmp_path)._replace(free=2 * size - 1)
    monkeypatch.setattr("input_pipeline.download.shutil.disk_usage", lambda _: usage)
    with pytest.raises(
        DataError, match=r"downloads: 0\.0 GB are free, .* for videos\.zip and what"
    ):
        ucf101.fetch(str(tmp_path), 1, **server.downloads())
    assert server.sent == ["splits.zip"]


def test_files_brought_by_hand_need_no_server(server: Server, tmp_path: pathlib.Path) -> None:
    downloads = server.downloads()
    (tmp_path / "downloads" / "manual").mkdir(parents=True)
    for name, data in server.files.items():
        (tmp_path / "downloads" / "manual" / name).write_bytes(data)
    folder = ucf101.fetch(str(tmp_path), 3, **downloads)
    assert len(packed.load(folder, "train")) == 2
    assert server.sent == []
    (tmp_path / "downloads" / "manual" / "videos.zip").write_bytes(b"half of it")
    with pytest.raises(DataError, match=r"manual/videos.zip: not the file.*; delete it"):
        ucf101.fetch(str(tmp_path), 2, **downloads)


def test_another_archive_or_a_damaged_video(server: Server, tmp_path: pathlib.Path) -> None:
    names = list(FILES.values())
    videos = {f"UCF101/{name}": VIDEOS[name] for name in names}
    videos[f"UCF101/{names[1]}"] = b"no video"
    server.files["videos.zip"] = archive(videos)
    folder = ucf101.fetch(str(tmp_path / "a"), 1, **server.downloads())
    ((_, left_out),) = packed.manifest(folder)["splits"]["train"]["failures"].items()
    assert left_out == [list(FILES)[1]]
    server.files["videos.zip"] = archive({"UCF101/a.avi": b"another"})
    with pytest.raises(DataError, match="not the archives of UCF101"):
        ucf101.fetch(str(tmp_path / "b"), 1, **server.downloads())


@pytest.mark.parametrize("answer", ["none", "404"])
def test_without_a_network_it_ends_at_once(
    server: Server, tmp_path: pathlib.Path, answer: str
) -> None:
    downloads = server.downloads()
    if answer == "404":
        del server.files["videos.zip"]
        expected = r"videos\.zip cannot be downloaded \(HTTPError: 404"
    else:
        with socket.create_server(("127.0.0.1", 0)) as gone:
            url = f"http://127.0.0.1:{gone.getsockname()[1]}/videos.zip"
        downloads["videos"] = downloads["videos"]._replace(url=url)
        expected = r"videos\.zip cannot be downloaded \(ConnectionError"
    start = time.monotonic()
    with pytest.raises(DataError, match=expected) as error:
        ucf101.fetch(str(tmp_path), 1, **downloads)
    assert time.monotonic() - start < 10
    for way in ("--config.data.train=LIST", "folder of class folders", "tfds:ucf101/ucf101_1"):
        assert way in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.rglob("videos*"))


def test_no_folder_means_that_of_tfds(
    server: Server, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    assert ucf101.fetch("", 2, **server.downloads()) == str(tmp_path / "data" / "ucf101_2")


def test_one_process_prepares_and_the_others_wait(server: Server, tmp_path: pathlib.Path) -> None:
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        with shards.only_writer(tmp_path / "downloads"):
            jobs = [
                pool.submit(ucf101.fetch, str(tmp_path), 1, **server.downloads()) for _ in range(3)
            ]
            assert not concurrent.futures.wait(jobs, timeout=0.5).done
        assert {job.result(timeout=60) for job in jobs} == {str(tmp_path / "ucf101_1")}


def test_a_remote_folder_is_refused() -> None:
    with pytest.raises(DataError, match="gs://bucket/data: UCF101 is prepared in a local folder"):
        ucf101.fetch("gs://bucket/data")


def test_checksums_are_those_of_tfds() -> None:
    known = tfds.core.tfds_path("url_checksums/ucf101.txt").read_text()
    for one in (ucf101.VIDEOS, ucf101.SPLITS):
        assert f"{one.url}\t{one.size}\t{one.sha256}" in known
