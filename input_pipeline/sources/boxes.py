"""AVA's files (arXiv 1705.08421): boxes on key frames, label maps, excluded key frames."""

import csv
import math
import re
from array import array
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from etils import epath

from input_pipeline.sources import lists
from input_pipeline.sources.records import DataError

_ORDER = "write x1,y1,x2,y2 with x1 < x2 and y1 < y2, as fractions of the frame"


class Rows(NamedTuple):
    """A file of boxes: N rows by key frame, those of one in the order of the file."""

    frames: list[str]
    """Names of the key frames, such as "1j20qq1JyX4,0902", in the order they are met."""
    seconds: np.ndarray
    """When each of them is, float64 `[F]`."""
    frame: np.ndarray
    """Of each row, a position in `frames`; int64 `[N]`, ascending."""
    box: np.ndarray
    """x1, y1, x2, y2; float64 `[N, 4]`."""
    action: np.ndarray
    """int64 `[N]`, from 1 on."""
    score: np.ndarray
    """The 8th column, or 1; float64 `[N]`."""
    line: np.ndarray
    """int64 `[N]`"""


def name_of(video: str, seconds: float) -> str:
    """The name of a key frame; evaluation counts whole seconds."""
    return f"{video},{int(seconds):04d}"


def read(path: str, truth: bool = True) -> Rows:
    """Reads AVA's csv: `video,second,x1,y1,x2,y2,action[,person or score]`, with or without header.

    A row without box and action is a key frame without boxes.

    Args:
        path: local or remote.
        truth: whether each box must have its corners in order and inside the frame.

    Raises:
        DataError: names the first line that is wrong.
    """
    numbers: dict[str, int] = {}
    seconds, table = array("d"), array("d")
    for line, row in _csv(path):
        if line == 1 and not re.search(r"\d", "".join(row[1:2])):
            continue  # A header.
        try:
            time = float(row[1])
            place = numbers.setdefault(name_of(row[0], time), len(numbers))
            if place == len(seconds):
                seconds.append(time)
            if not any(row[2:]):
                continue
            corners, action = [float(value) for value in row[2:6]], int(row[6])
            score = float(row[7]) if len(row) > 7 and row[7] else 1.0
            if len(row) > 8 or not math.isfinite(sum(corners) + score):
                raise ValueError
        except (OverflowError, ValueError, IndexError):
            raise DataError(
                f"{path}, line {line}, {','.join(row)!r}: is not video,second,x1,y1,x2,y2,action"
                "[,person or score]; correct it"
            ) from None
        x1, y1, x2, y2 = corners
        if truth and not (0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1):
            wrong = "reaches outside the frame" if x1 < x2 and y1 < y2 else "is out of order"
            raise DataError(f"{path}, line {line}: box {','.join(row[2:6])} {wrong}; {_ORDER}")
        table.extend((place, action, line, score, *corners))
    rows = np.array(table).reshape(-1, 8)
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    frame, action, line = rows[:, :3].T.astype(np.int64)
    return Rows([*numbers], np.array(seconds), frame, rows[:, 4:], action, rows[:, 3], line)


def read_excluded(path: str) -> frozenset[str]:
    """Names of the key frames in a csv of `video,second`."""
    try:
        return frozenset(name_of(row[0], float(row[1])) for _, row in _csv(path))
    except (IndexError, ValueError) as error:
        raise DataError(f"{path}: has a row that is not video,second; correct it") from error


def read_label_map(path: str) -> dict[int, str]:
    """Names of the actions by number, of a pbtxt with `name: "..."` and `id:` or `label_id:`."""
    text = "\n".join(lists.read_lines(there(path)))
    found = {}
    for block in re.findall(r"\{(.*?)\n\}", text, re.DOTALL):
        name = re.search(r'\bname:\s*"(.*)"', block)
        number = re.search(r"\b(?:label_)?id:\s*(\d+)", block)
        if name and number:
            found[int(number[1])] = name[1]
    if not found:
        raise DataError(f"{path}: no class in it; give AVA's pbtxt, with name and id of each")
    return found


def _csv(path: str) -> Iterator[tuple[int, list[str]]]:
    with there(path).open("r") as file:
        try:
            for line, row in enumerate(csv.reader(file), 1):
                if row:
                    yield line, [field.strip() for field in row]
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{path}: is no csv file of UTF-8 text; save it as one") from error


def there(path: str) -> epath.Path:
    if not (file := epath.Path(path)).is_file():
        raise DataError(f"{path}: no such file; check the path")
    return file
