"""Official annotation files become lists; what is missing is counted and named."""

import json
import pathlib

import pytest

from input_pipeline import index
from input_pipeline.sources import lists
from input_pipeline.sources.records import DataError


def put(root: pathlib.Path, *paths: str) -> None:
    """Videos: the index looks at names only."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def text(file: pathlib.Path, *lines: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines))


def dump(file: pathlib.Path, data: object) -> None:
    text(file, json.dumps(data))


def ucf101(root: pathlib.Path) -> None:
    folder = root / "ucfTrainTestlist"
    text(folder / "classInd.txt", "1 ApplyEyeMakeup", "2 HandstandPushups")
    text(
        folder / "trainlist02.txt",
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1",
        "HandstandPushups/v_HandStandPushups_g08_c01.avi 2",
    )
    text(
        folder / "testlist02.txt",
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi",
        "HandstandPushups/v_HandStandPushups_g01_c01.avi",
    )


def test_ucf101(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    ucf101(tmp_path)
    put(
        tmp_path,
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi",
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi",
        "HandstandPushups/v_HandStandPushups_g08_c01.avi",
        "HandstandPushups/v_HandstandPushups_g01_c01.mp4",  # Another capital letter, re-encoded.
        "HandstandPushups/v_HandStandPushups_g02_c01.avi",
    )
    assert index.main(["ucf101", str(tmp_path), "--split", "2"]) == 0
    assert (tmp_path / "train.txt").read_text().splitlines() == [
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 0",
        "HandstandPushups/v_HandStandPushups_g08_c01.avi 1",
    ]
    records = lists.load(str(tmp_path / "test.txt"), num_classes=2)
    assert [pathlib.Path(record.path).suffix for record in records] == [".avi", ".mp4"]
    assert all(pathlib.Path(record.path).exists() for record in records)
    assert [record.label for record in records] == [0, 1]
    classes = (tmp_path / "classes.txt").read_text().splitlines()
    assert classes == ["ApplyEyeMakeup", "HandstandPushups"]
    assert not (tmp_path / "missing.txt").exists()
    out = capsys.readouterr().out
    assert "complete: all 4 videos are there" in out


def test_what_is_missing_is_counted_and_named(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ucf101(tmp_path)
    lines = (tmp_path / "ucfTrainTestlist/trainlist02.txt").read_text().splitlines()
    text(tmp_path / "ucfTrainTestlist/trainlist02.txt", *lines, lines[0])
    put(tmp_path, "flat/v_ApplyEyeMakeup_g08_c01.avi")
    put(tmp_path, "ApplyEyeMakeup/v_HandStandPushups_g01_c01.avi")
    out = tmp_path / "lists"
    assert index.main(["ucf101", str(tmp_path), "--split", "2", "--out", str(out)]) == 1
    assert (out / "train.txt").read_text() == "flat/v_ApplyEyeMakeup_g08_c01.avi 0\n"
    missing = [line.split("\t") for line in (out / "missing.txt").read_text().splitlines()]
    assert missing == [
        ["train", "HandstandPushups/v_HandStandPushups_g08_c01.avi", "no such file"],
        ["train", "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi", "named twice in the annotations"],
        ["test", "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi", "no such file"],
        ["test", "HandstandPushups/v_HandStandPushups_g01_c01.avi", "no such file"],
    ]
    printed = capsys.readouterr().out
    assert "missing from test.txt: 2 (no such file)" in printed
    assert f"missing 4 of 5 videos: see {out}/missing.txt" in printed
    assert f"--config.data.root={tmp_path}" in printed


def test_hmdb51(tmp_path: pathlib.Path) -> None:
    splits = tmp_path / "testTrainMulti_7030_splits"
    text(splits / "clap_test_split1.txt", "#20_Rhythm_clap.avi 1 ", "same.avi 2 ", "b.avi 0 ")
    text(splits / "wave_test_split1.txt", "same.avi 1 ", "c.avi 2 ")
    text(splits / "wave_test_split2.txt", "c.avi 1 ")
    videos = tmp_path / "videos"
    put(videos, "clap/#20_Rhythm_clap.avi", "clap/same.avi", "wave/same.avi", "wave/c.avi")
    built = index.build("hmdb51", str(videos), [str(tmp_path)])
    assert built.classes == ["clap", "wave"]
    assert built.lists == {
        "train": [("clap/#20_Rhythm_clap.avi", 0), ("wave/same.avi", 1)],
        "test": [("clap/same.avi", 0), ("wave/c.avi", 1)],
    }
    second = index.build("hmdb51", str(videos), [str(splits)], split=2)
    assert second.lists == {"train": [("wave/c.avi", 0)]}


def test_a_path_that_begins_with_a_number_sign_can_be_read_back(tmp_path: pathlib.Path) -> None:
    text(tmp_path / "clap_test_split1.txt", "#20_Rhythm_clap.avi 1")
    put(tmp_path, "#20_Rhythm_clap.avi")
    assert index.main(["hmdb51", str(tmp_path)]) == 0
    (record,) = lists.load(str(tmp_path / "train.txt"), num_classes=1)
    assert pathlib.Path(record.path).exists()


def ssv2(root: pathlib.Path, prefix: str) -> None:
    labels = {"Holding something": "1", "Putting something, something and something": "0"}
    dump(root / f"{prefix}labels.json", labels)
    rows = [
        {"id": "10", "template": "Putting [something], [something] and [something]", "label": "x"},
        {"id": "11", "template": "Holding [something]", "label": "y"},
    ]
    dump(root / f"{prefix}train.json", rows)
    dump(root / f"{prefix}validation.json", [{"id": "20", "template": "Holding [something]"}])
    dump(root / f"{prefix}test.json", [{"id": "30"}, {"id": "31"}])


@pytest.mark.parametrize("prefix", ["something-something-v2-", "labels/"])
def test_ssv2(tmp_path: pathlib.Path, prefix: str) -> None:
    ssv2(tmp_path, prefix)
    put(tmp_path, "v/10.webm", "v/11.mp4", "v/20.webm", "v/30.webm", "v/31.webm")
    built = index.build("ssv2", str(tmp_path))
    assert built.classes == ["Putting something, something and something", "Holding something"]
    assert built.lists["train"] == [("v/10.webm", 0), ("v/11.mp4", 1)]
    assert built.lists["val"] == [("v/20.webm", 1)]
    assert built.lists["test"] == [("v/30.webm", -1), ("v/31.webm", -1)]
    assert not built.missing
    index.write(built, str(tmp_path))
    assert [r.label for r in lists.load(str(tmp_path / "test.txt"))] == [-1, -1]
    text(
        tmp_path / f"{prefix}test-answers.csv",
        "30;Putting something, something and something",
        "31;Holding something",
    )
    assert index.build("ssv2", str(tmp_path)).lists["test"] == [("v/30.webm", 0), ("v/31.webm", 1)]
    text(tmp_path / f"{prefix}test-answers.csv", "30 Holding something")
    with pytest.raises(
        DataError, match=r"test-answers\.csv: ValueError: .*is it the official file"
    ):
        index.build("ssv2", str(tmp_path))


def test_kinetics(tmp_path: pathlib.Path) -> None:
    text(
        tmp_path / "annotations/train.csv",
        "label,youtube_id,time_start,time_end,split,is_cc",
        '"surfing water",abcdefghij0,15,25,train,0',
        "massaging person's head,abcdefghij1,5.0,15.0,train,0",
        "zumba,abcdefghij2,1,11,train,0",
        "zumba,abcdefghij3,1,11,train,0",
    )
    text(
        tmp_path / "annotations/kinetics_val.csv",  # Without columns that others have.
        "label,youtube_id",
        "zumba,abcdefghij4",
        "surfing water,abcdefghij5",
    )
    text(
        tmp_path / "annotations/test.csv",
        "youtube_id,time_start,time_end,split",
        "abcdefghij6,7,17,test",
    )
    text(tmp_path / "annotations/val.csv", "youtube_id,split", "abcdefghij4,val")
    put(
        tmp_path,
        "train/surfing water/abcdefghij0_000015_000025.mp4",
        "train/massaging_persons_head/abcdefghij1_000005_000015.mp4",
        "train/zumba/abcdefghij2_000001_000011.mp4",
        "train/surfing water/abcdefghij3_000001_000011.mp4",  # In a class that is not its own.
        "abcdefghij4.mkv",
        "val/abcdefghij5.mp4",
        "test/abcdefghij6_000007_000017.mp4",
    )
    built = index.build("kinetics", str(tmp_path))
    assert built.name == "Kinetics-3"
    assert built.classes == ["massaging person's head", "surfing water", "zumba"]
    assert built.lists == {
        "val": [("abcdefghij4.mkv", 2), ("val/abcdefghij5.mp4", 1)],
        "test": [("test/abcdefghij6_000007_000017.mp4", -1)],
        "train": [
            ("train/surfing water/abcdefghij0_000015_000025.mp4", 1),
            ("train/massaging_persons_head/abcdefghij1_000005_000015.mp4", 0),
            ("train/zumba/abcdefghij2_000001_000011.mp4", 2),
        ],
    }
    assert [(entry.id, reason) for entry, reason in built.missing] == [
        ("abcdefghij3_000001_000011", "no such file")
    ]
    one = index.build("kinetics", str(tmp_path), [str(tmp_path / "annotations/train.csv")])
    assert list(one.lists) == ["train"]


def oscc_clip(name: str, **more: object) -> dict[str, object]:
    parent = {"video_uid": "parent", "parent_start_sec": 12.5, "parent_end_sec": 20.5}
    return {"unique_id": name, **parent, **more}


def test_oscc(tmp_path: pathlib.Path) -> None:
    train = [oscc_clip("a", state_change=True), oscc_clip("b", state_change=False), oscc_clip("c")]
    dump(tmp_path / "fho_oscc-pnr_train.json", {"split": "train", "clips": train})
    dump(tmp_path / "fho_oscc-pnr_val.json", {"clips": [oscc_clip("d", state_change=True)]})
    dump(tmp_path / "fho_oscc-pnr_test_unannotated.json", {"clips": [oscc_clip("e")]})
    put(tmp_path, "a.mp4", "b.mp4", "c.mp4", "e.mp4")
    built = index.build("oscc", str(tmp_path))
    assert built.classes[1] == "state change"
    assert built.lists == {
        "train": [("a.mp4", 1), ("b.mp4", 0)],
        "val": [],
        "test": [("e.mp4", -1)],
    }
    index.write(built, str(tmp_path))
    assert (tmp_path / "missing.txt").read_text().splitlines() == [
        "train\tc\tno label in the annotations\tcut 12.5..20.5 s of parent",
        "val\td\tno such file\tcut 12.5..20.5 s of parent",
    ]


@pytest.mark.parametrize(
    ("dataset", "file", "owner"),
    [
        ("ucf101", "classInd.txt", "crcv.ucf.edu"),
        ("hmdb51", "_test_split1.txt", "brown.edu"),
        ("ssv2", "something-something-v2-labels.json", "qualcomm.com"),
        ("kinetics", "train.csv", "cvdfoundation"),
        ("oscc", "fho_oscc-pnr_train.json", "ego4d-data.org"),
    ],
)
def test_an_absent_annotation_file_is_one_line_with_its_owner(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], dataset: str, file: str, owner: str
) -> None:
    with pytest.raises(SystemExit) as end:
        index.main([dataset, str(tmp_path)])
    assert end.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert file in message
    assert owner in message
    assert str(tmp_path) in message


def test_no_video_at_all_shows_what_was_expected(tmp_path: pathlib.Path) -> None:
    ucf101(tmp_path)
    with pytest.raises(DataError, match=r"none of the 4 .*ApplyEyeMakeup/v_ApplyEyeMakeup_g08"):
        index.build("ucf101", str(tmp_path), split=2)
    assert not (tmp_path / "train.txt").exists()


def test_files_of_another_form_are_named(tmp_path: pathlib.Path) -> None:
    put(tmp_path, "10.webm")
    ssv2(tmp_path, "labels/")
    (tmp_path / "labels/train.json").write_text("{")
    with pytest.raises(DataError, match=r"train\.json: JSONDecodeError.* is it the official file"):
        index.build("ssv2", str(tmp_path))
    for row in ({"template": "Holding [something]"}, {"id": "1", "template": "Eating"}, 3):
        dump(tmp_path / "labels/train.json", [row])
        with pytest.raises(DataError, match=r"train\.json: (Key|Type)Error: ('id'|'Eating'|'int')"):
            index.build("ssv2", str(tmp_path))
    dump(tmp_path / "labels/labels.json", {"Holding something": "7"})
    with pytest.raises(DataError, match=r"labels\.json: ValueError: labels are not 0, 1, 2"):
        index.build("ssv2", str(tmp_path))
    text(tmp_path / "k/val.csv", "label,youtube_id,time_start,time_end", "zumba,abcdefghij0,x,11")
    with pytest.raises(DataError, match=r"val\.csv: ValueError: .* 'x'"):
        index.build("kinetics", str(tmp_path), [str(tmp_path / "k")])
