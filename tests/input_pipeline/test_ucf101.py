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

from input_pipeline import decode, packed, staging, ucf101
from input_pipeline.records import DataError
from input_pipeline.ucf101 import Download

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
    """Counts whole requests; `cut` answers stop in the middle, as a lost connection does."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.cut, self.sent = files, 0, list[str]()

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
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        try:
            if self.server.cut and name == "videos.zip":
                self.wfile.write(data[: self.server.cut])
                self.close_connection = True
                return
            self.wfile.write(data)
            self.server.sent.append(name)
        except OSError:
            pass  # The question whether the server is there hangs up.

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
        running.shutdown()
        thread.join()


def unfinished(folder: pathlib.Path) -> list[pathlib.Path]:
    return [path for path in folder.rglob("*") if ".tmp." in path.name or "part" in path.name]


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
        examples = tfds.builder_from_directory(folder).as_data_source(split)
        assert [one["video"] for one in examples] == [record.data for record in records]
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


def test_a_lost_connection_is_one_line_and_the_next_call_ends_well(
    server: Server, tmp_path: pathlib.Path
) -> None:
    downloads = server.downloads()
    server.cut = downloads["videos"].size // 2
    with pytest.raises(DataError, match="cannot be downloaded") as error:
        ucf101.fetch(str(tmp_path), 1, **downloads)
    assert "\n" not in str(error.value)
    assert not unfinished(tmp_path)
    assert not packed.is_packed(str(tmp_path / "ucf101_1"))
    server.cut = 0
    server.sent.clear()
    stale = tmp_path / "downloads" / "ucf101" / "x.tmp.1"  # As a killed process leaves it.
    stale.mkdir(parents=True)
    (stale / "videos.zip").write_bytes(b"half")
    folder = ucf101.fetch(str(tmp_path), 1, **downloads)
    assert len(packed.load(folder, "test")) == 2
    assert "videos.zip" in server.sent
    assert not unfinished(tmp_path)


@pytest.mark.parametrize("kind", ["videos", "splits"])
def test_another_file_is_refused(server: Server, tmp_path: pathlib.Path, kind: str) -> None:
    downloads = server.downloads()
    downloads[kind] = downloads[kind]._replace(sha256="0" * 64)
    with pytest.raises(DataError, match=f"{kind}.zip: not the file that is expected") as error:
        ucf101.fetch(str(tmp_path), 1, **downloads)
    assert "\n" not in str(error.value)
    assert not unfinished(tmp_path)
    assert not packed.is_packed(str(tmp_path / "ucf101_1"))


def test_files_brought_by_hand_need_no_server(server: Server, tmp_path: pathlib.Path) -> None:
    downloads = server.downloads()
    (tmp_path / "downloads" / "manual").mkdir(parents=True)
    for name, data in server.files.items():
        (tmp_path / "downloads" / "manual" / name).write_bytes(data)
    folder = ucf101.fetch(str(tmp_path), 3, **downloads)
    assert len(packed.load(folder, "train")) == 2
    assert server.sent == []


def test_a_video_that_is_not_there_or_damaged_is_listed(
    server: Server, tmp_path: pathlib.Path
) -> None:
    names = list(FILES.values())
    videos = {f"UCF101/{name}": VIDEOS[name] for name in names[:3]}
    videos[f"UCF101/{names[1]}"] = b"no video"
    server.files["videos.zip"] = archive(videos)
    folder = ucf101.fetch(str(tmp_path), 1, **server.downloads())
    about = packed.manifest(folder)["splits"]["train"]
    assert about["failures"] == {"not in the archive": [list(FILES)[3]]}
    assert about["damaged"] == [list(FILES)[1]]
    (record,) = packed.load(folder, "train")
    assert (record.data, record.num_frames) == (b"no video", 0)


@pytest.mark.parametrize("answer", ["none", "404"])
def test_without_a_network_it_ends_at_once(
    server: Server, tmp_path: pathlib.Path, answer: str
) -> None:
    downloads = server.downloads()
    if answer == "404":
        del server.files["videos.zip"]
        expected = "127.0.0.1:[0-9]+ answers 404 for videos.zip"
    else:
        with socket.create_server(("127.0.0.1", 0)) as gone:
            url = f"http://127.0.0.1:{gone.getsockname()[1]}/videos.zip"
        downloads["videos"] = downloads["videos"]._replace(url=url)
        expected = "127.0.0.1:[0-9]+ cannot be reached"
    start = time.monotonic()
    with pytest.raises(DataError, match=expected) as error:
        ucf101.fetch(str(tmp_path), 1, **downloads)
    assert time.monotonic() - start < 10
    for way in ("--config.data.train=LIST", "folder of class folders", "tfds:ucf101/ucf101_1"):
        assert way in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_small_disk_is_told_before_any_work(tmp_path: pathlib.Path) -> None:
    huge = ucf101.VIDEOS._replace(size=10**18)
    with pytest.raises(DataError, match=r"UCF101 needs 2000000000\.0 GB here and .* are free"):
        ucf101.fetch(str(tmp_path / "not" / "there"), 1, huge)


def test_no_folder_means_that_of_tfds(
    server: Server, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    assert ucf101.fetch("", 2, **server.downloads()) == str(tmp_path / "data" / "ucf101_2")


def test_one_process_prepares_and_the_others_wait(server: Server, tmp_path: pathlib.Path) -> None:
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        with staging.only_writer(tmp_path / "downloads"):
            jobs = [
                pool.submit(ucf101.fetch, str(tmp_path), 1, **server.downloads()) for _ in range(3)
            ]
            assert not concurrent.futures.wait(jobs, timeout=0.5).done
        assert {job.result(timeout=60) for job in jobs} == {str(tmp_path / "ucf101_1")}


def test_a_remote_folder_is_refused() -> None:
    with pytest.raises(DataError, match="gs://bucket/data: UCF101 is prepared in a local folder"):
        ucf101.fetch("gs://bucket/data")


def test_checksums_are_those_of_tfds() -> None:
    from tensorflow_datasets.core.download import checksums

    known = checksums.load_url_infos(tfds.core.tfds_path("url_checksums/ucf101.txt"))
    for one in (ucf101.VIDEOS, ucf101.SPLITS):
        assert (known[one.url].size, known[one.url].checksum) == (one.size, one.sha256)
