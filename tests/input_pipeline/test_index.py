"""Official annotation files become lists; what is missing is counted and named."""

import json
import pathlib

import pytest
from packing import put, refused, write

from input_pipeline import index
from input_pipeline.sources import lists


def test_ucf101(tmp_path, capsys):
    names = [f"{c}/v_{c}_g0{g}_c01.avi" for g in (8, 1) for c in ("Archery", "HandStandPushups")]
    names = [name.replace("HandStandPushups/", "HandstandPushups/") for name in names]
    write(tmp_path / "ucfTrainTestlist/classInd.txt", "1 Archery", "2 HandstandPushups")
    write(tmp_path / "ucfTrainTestlist/trainlist02.txt", f"{names[0]} 1", f"{names[1]} 2")
    write(tmp_path / "ucfTrainTestlist/testlist02.txt", *names[2:])
    command = ["ucf101", str(tmp_path), "--split", "2"]
    refused("none of the 4 .*Archery/v_Archery_g08", index.main, command)
    put(tmp_path, "Archery/v_Archery_g08_c01.avi", "flat/v_Archery_g01_c01.avi")
    put(tmp_path, "HandstandPushups/v_HandStandPushups_g08_c01.avi")
    assert index.main(command) == 1
    assert (tmp_path / "missing.txt").read_text() == (
        "test\tHandstandPushups/v_HandStandPushups_g01_c01.avi\n"
    )
    assert f"{tmp_path}/test.txt: 1 videos, 1 missing" in capsys.readouterr().out
    # Another capital letter, re-encoded.
    put(tmp_path, "HandstandPushups/v_HandstandPushups_g01_c01.mp4")
    assert index.main(command) == 0
    assert not (tmp_path / "missing.txt").exists()
    assert (tmp_path / "train.txt").read_text().splitlines() == [
        "Archery/v_Archery_g08_c01.avi 0",
        "HandstandPushups/v_HandStandPushups_g08_c01.avi 1",
    ]
    records = lists.load(str(tmp_path / "test.txt"), num_classes=2)
    assert [(pathlib.Path(r.path).suffix, r.label) for r in records] == [(".avi", 0), (".mp4", 1)]
    assert all(pathlib.Path(record.path).exists() for record in records)
    assert (tmp_path / "classes.txt").read_text().split() == ["Archery", "HandstandPushups"]
    assert index.main([*command, "--out", str(tmp_path / "lists")]) == 0
    assert f"--config.data.root={tmp_path}" in capsys.readouterr().out


def test_hmdb51(tmp_path):
    splits, videos = tmp_path / "testTrainMulti_7030_splits", tmp_path / "videos"
    write(splits / "clap_test_split1.txt", "#20_Rhythm_clap.avi 1 ", "same.avi 2 ", "b.avi 0 ")
    write(splits / "wave_test_split1.txt", "same.avi 1 ", "c.avi 2 ")
    write(splits / "wave_test_split2.txt", "c.avi 1 ")
    put(videos, "clap/#20_Rhythm_clap.avi", "clap/same.avi", "wave/same.avi", "wave/c.avi")
    built = index.build("hmdb51", str(videos), [str(tmp_path)])
    assert built.classes == ["clap", "wave"]
    assert built.lists == {
        "train": [("clap/#20_Rhythm_clap.avi", 0), ("wave/same.avi", 1)],
        "test": [("clap/same.avi", 0), ("wave/c.avi", 1)],
    }
    second = index.build("hmdb51", str(videos), [str(splits)], split=2)
    assert second.lists == {"train": [("wave/c.avi", 0)]}


@pytest.mark.parametrize("prefix", ["something-something-v2-", "labels/"])
def test_ssv2(tmp_path, prefix):
    refused(f"labels.json.*{tmp_path}.*qualcomm.com", index.build, "ssv2", str(tmp_path))
    labels = {"Holding something": "1", "Putting something, something and something": "0"}
    rows = [
        {"id": "10", "template": "Putting [something], [something] and [something]", "label": "x"},
        {"id": "11", "template": "Holding [something]", "label": "y"},
    ]
    for name, data in {
        "labels": labels,
        "train": rows,
        "validation": [{"id": "20", "template": "Holding [something]"}],
    }.items():
        write(tmp_path / f"{prefix}{name}.json", json.dumps(data))
    put(tmp_path, "v/10.webm", "v/11.mp4", "v/20.webm")
    built = index.build("ssv2", str(tmp_path))
    assert built.classes == ["Putting something, something and something", "Holding something"]
    assert built.lists == {
        "train": [("v/10.webm", 0), ("v/11.mp4", 1)],
        "val": [("v/20.webm", 1)],
    }
    assert not built.missing
    write(tmp_path / f"{prefix}test-answers.csv", "11;Holding something")
    assert index.build("ssv2", str(tmp_path)).lists["test"] == [("v/11.mp4", 1)]
    write(tmp_path / f"{prefix}train.json", "{")
    refused(r"not the official file.*qualcomm\.com", index.build, "ssv2", str(tmp_path))


def test_kinetics(tmp_path):
    write(
        tmp_path / "annotations/train.csv",
        "label,youtube_id,time_start,time_end,split,is_cc",
        '"surfing water",abcdefghij0,15,25,train,0',
        "massaging person's head,abcdefghij1,5.0,15.0,train,0",
        "zumba,abcdefghij3,1,11,train,0",
    )
    # Without columns that others have.
    columns = "label,youtube_id", "zumba,abcdefghij4", "surfing water,abcdefghij5"
    write(tmp_path / "annotations/kinetics_val.csv", *columns)
    columns = "youtube_id,time_start,time_end,split", "abcdefghij6,7,17,test"
    write(tmp_path / "annotations/test.csv", *columns)
    videos = [
        "train/surfing water/abcdefghij0_000015_000025.mp4",
        "train/massaging_persons_head/abcdefghij1_000005_000015.mp4",
        "abcdefghij4.mkv",
        "val/abcdefghij5.mp4",
        "test/abcdefghij6_000007_000017.mp4",
    ]
    put(tmp_path, *videos)
    built = index.build("kinetics", str(tmp_path))
    assert built.classes == ["massaging person's head", "surfing water", "zumba"]
    assert built.lists == {
        "train": [(videos[0], 1), (videos[1], 0)],
        "val": [(videos[2], 2), (videos[3], 1)],
    }
    assert [entry.id for entry in built.missing] == ["abcdefghij3_000001_000011"]


def test_oscc(tmp_path):
    for part, clips in (("train", {"a": True, "b": False}), ("val", {"d": True})):
        rows = [{"unique_id": name, "state_change": change} for name, change in clips.items()]
        write(tmp_path / f"fho_oscc-pnr_{part}.json", json.dumps({"clips": rows}))
    put(tmp_path, "a.mp4", "b.mp4")
    built = index.build("oscc", str(tmp_path))
    assert built.lists == {"train": [("a.mp4", 1), ("b.mp4", 0)], "val": []}
    assert [entry.id for entry in built.missing] == ["d"]
