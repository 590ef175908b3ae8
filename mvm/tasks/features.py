"""Features of windows over whole videos: one file for each video, and one index of all.

`<name>.npy` is float32 `[windows, D]`, what `mvm.load(...).embed` gives of each window;
`features.json` says how they were made and, for each video, the frames per second, its frames and
windows, and the seconds of its rows.
"""

import logging
from collections.abc import Iterator
from functools import partial
from typing import Any

from etils import epath

from mvm import config as schema
from mvm import data, frozen, inference, runs, samples, tasks
from mvm.runtime import multihost, sharding
from mvm.types import UserError

log = logging.getLogger(__name__)

SPEC = tasks.Spec(
    labels=False,
    sampling="pretrain",
    # Frames between the starts of two windows; how pixels are made, see `windows.cut`.
    options=(("stride", 4), ("pixels", ("normalised", "videomaev2"))),
)


def run(config: Any, workdir: epath.PathLike) -> dict[str, float]:
    """Writes what is not there yet of the features of `data.test`; each process takes its share."""
    workdir, options = epath.Path(workdir), tasks.options(config)
    stride, pixels = options["stride"], options["pixels"]
    if stride < 1:
        raise UserError(f"options.stride={stride}; choose 1 frame or more")
    found = data.records(data.sources(config.data, "test"), 0, "test")
    encoder = inference.encoder(config)
    task, spec = encoder.task, encoder.task.clips["val"]
    settings = encoder.protocol | {
        "window": (spec.num_frames - 1) * spec.frame_stride + 1,
        "stride": stride,
        "pixels": pixels,
    }
    multihost.agree(schema.shared(config) | data.facts({"test": found}) | settings)
    runs.write_config(config, workdir)

    def cut(record: data.Record) -> Iterator[Any]:
        return samples.windows_of(record.source, spec, stride, pixels)

    pooled = partial(inference.pooled, task, encoder.config.mask)
    embed = sharding.on_devices(pooled, encoder.params, config.eval.batch_size)
    index = frozen.keep(workdir, found, settings, cut, embed, config)
    videos = index["videos"]
    values = {
        "num_videos": len(videos),
        "num_unreadable": len(index["unreadable"]),
        "num_windows": sum(entry["windows"] for entry in videos.values()),
    }
    log.info("%s in %s", values, workdir / frozen.INDEX)
    return values
