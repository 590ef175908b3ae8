"""Videos of a prepared TFDS data set in ArrayRecord files, such as `ucf101`, without TensorFlow.

TFDS's own readers import TensorFlow for the feature `Video`; its files are plain ArrayRecord.
"""

import json
import os
from typing import Any

from etils import epath

from input_pipeline.sources.arrayrecord import INSTEAD, Packed
from input_pipeline.sources.frames import natural
from input_pipeline.sources.records import DataError

PREFIX = "tfds:"


def load(spec: str, root: str = "", num_classes: int = 0, split: str = "train") -> Packed:
    """Opens a split of a data set that TFDS has prepared in the ArrayRecord format.

    Its feature `video` is a sequence of encoded pictures, as TFDS stores the feature `Video`, or
    one encoded file (features `Text` or `Tensor` of bytes); `label`, if there, is an integer.

    Args:
        spec: `tfds:NAME/CONFIG:VERSION`; without a version the newest, without a config the only
            one.
        root: TFDS's data folder; if empty `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`.
        num_classes: labels must be in `[0, num_classes)`; 0 accepts data without labels.
        split: "train", "val" (TFDS's `validation`, else `test`) or "test" (the other way round).

    Raises:
        DataError: the data set is not there, in another format, has no such split, no feature
            `video` (`label` if `num_classes`), or broken files.
    """
    folder = find(spec, root)
    info = _json(folder / "dataset_info.json")
    form = info.get("fileFormat", "tfrecord")
    if form != "array_record":
        raise DataError(
            f"{folder}: prepared as {form}; convert it with `tfds convert_format "
            f"--dataset_version_dir={folder} --out_file_format=array_record --out_dir=...`"
        )
    features = _json(folder / "features.json").get("featuresDict", {}).get("features", {})
    for name in ("video", "label") if num_classes else ("video",):
        if name not in features:
            raise DataError(f"{folder}: no feature {name!r} among {', '.join(features) or 'none'}")
    splits = {one["name"]: one for one in info.get("splits", [])}
    found = next((name for name in (split, *INSTEAD.get(split, ())) if name in splits), "")
    if not found:
        raise DataError(f"{folder}: no split for {split!r} among {', '.join(splits) or 'none'}")
    files = sorted(map(str, folder.glob(f"*-{found}.array_record*")))
    count = len(splits[found]["shardLengths"])
    if len(files) != count:
        raise DataError(f"{folder}: {len(files)} of {count} files of {found!r}; copy it again")
    try:
        records = Packed(f"{folder}/{found}", files, num_classes, f"{found}/")
    except RuntimeError as error:
        text = " ".join(str(error).split())[:200]
        raise DataError(f"{folder}/{found}: cannot open its files ({text})") from error
    label = features.get("label", {}).get("classLabel", {})
    records.num_classes = int(label.get("numClasses", 0))
    return records


def find(spec: str, root: str = "") -> epath.Path:
    """The folder of a prepared version; arguments and errors as in `load`."""
    name, _, version = spec.removeprefix(PREFIX).strip("/ ").partition(":")
    data_dir = root or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    folder = epath.Path(data_dir).expanduser() / name
    file = f"{version or '*'}/dataset_info.json"
    files = [one for depth in (file, f"*/{file}") for one in folder.glob(depth)] if name else []
    if not files:
        raise DataError(
            f"{spec}: not prepared in {folder}; prepare it with `tfds build {name or 'NAME'} "
            f"--file_format=array_record --data_dir={data_dir}`, or give its data_dir as data.root"
        )
    if len(configs := sorted({one.parent.parent.name for one in files})) > 1:
        raise DataError(
            f"{spec}: choose a config, such as {PREFIX}{name}/{configs[0]}; "
            f"prepared are {', '.join(configs)}"
        )
    return max((one.parent for one in files), key=lambda one: natural(one.name))


def _json(file: epath.Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read ({error}); prepare the data set again") from error
