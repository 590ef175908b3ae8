"""A record at which children die is one that cannot be read, wherever and whenever it is met."""

import functools
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from input_pipeline import worker
from input_pipeline.supervised import Supervised


def element(
    good: set[int], size: int, position: int, rng: np.random.Generator, banned: Mapping[int, str]
) -> dict[str, Any]:
    """As a training element: records that cannot be read are replaced by others that rng draws."""
    failed = []
    while True:
        worker.note(position)
        if position in banned:
            failed.append((position, banned[position]))
        elif position in good:
            break
        else:
            os.abort()
        position = int(rng.integers(size))
    clip = rng.integers(0, 256, (4, 100, 100, 3), np.uint8)
    return {"position": position, "failed": failed, "clip": clip}


def test_a_record_that_crashes_is_replaced_as_one_that_cannot_be_read() -> None:
    good, reason = {0, 2, 3, 5}, "the decoder crashed (SIGABRT)"
    every = dict.fromkeys({1, 4}, reason)
    task = functools.partial(element, good, 6)
    supervised = Supervised(task, 2, timeout=60)
    for _ in range(2):
        for position in range(6):
            rng = np.random.default_rng(position)
            state = rng.bit_generator.state
            made = supervised(position, rng)
            assert rng.bit_generator.state == state
            wanted = task(position, rng, every)
            assert np.array_equal(made.pop("clip"), wanted.pop("clip"))
            assert made == wanted
    assert supervised.banned == every
    supervised.close()
    with pytest.raises(RuntimeError, match="are closed"):
        supervised(0, np.random.default_rng(0))


def crash_once(
    flag: str, position: int, rng: np.random.Generator, banned: Mapping[int, str]
) -> float:
    worker.note(position)
    if not os.path.exists(flag):
        pathlib.Path(flag).touch()
        os.abort()
    assert not banned
    return rng.random()


def test_a_record_is_tried_twice(tmp_path: pathlib.Path) -> None:
    supervised = Supervised(functools.partial(crash_once, str(tmp_path / "flag")), 1, timeout=60)
    made = supervised(3, np.random.default_rng(0))
    assert made == np.random.default_rng(0).random()
    assert (tmp_path / "flag").exists()
    assert not supervised.banned
    supervised.close()
