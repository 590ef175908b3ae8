"""Features of windows over whole videos: one file for each video, and one index of all.

`<name>.npy` is float32 `[windows, D]`, what `mvm.load(...).embed` gives of each window.
`features.json` says how they were made and, for each video, its frames per second, frames and
windows: the middle of row i is shown at second (i * stride + window / 2) / fps.
"""

import logging
from functools import partial
from typing import Any

import numpy as np
from etils import epath

from mvm import config as schema
from mvm import data, frozen, inference, runs, samples, tasks
from mvm.runtime import multihost, sharding
from mvm.types import UserError

log = logging.getLogger(__name__)

SPEC = tasks.Spec(
    labels=False,
    sampling="pretrain",
    # Frames between the starts of two windows; how pixels are made, see `windows.opened`.
    options=(("stride", 4), ("pixels", ("normalised", "videomaev2"))),
)


def run(config: Any, workdir: epath.PathLike) -> dict[str, float]:
    """Writes what is not there yet of the features of `data.test`; each process takes its share.

    Returns:
        Numbers of videos, of those that could not be used, and of windows.

    Raises:
        UserError, DataError: for a mistake in configuration or data, and if no video can be used.
    """
    workdir, d, options = epath.Path(workdir), config.data, tasks.options(config)
    if options["stride"] < 1:
        raise UserError(f"options.stride={options['stride']}; choose 1 frame or more")
    found = data.records(data.sources(d, "test"), 0, "test")
    encoder = inference.encoder(config)
    spec, stride, pixels = encoder.task.clips["val"], options["stride"], options["pixels"]
    settings = {
        "weights": config.init_from,
        "digest": encoder.digest,
        "pixels": pixels,
        "window": (spec.num_frames - 1) * spec.frame_stride + 1,
        "stride": stride,
    }
    multihost.agree(schema.shared(config) | data.facts({"test": found}) | settings)
    runs.write_config(config, workdir)
    pooled = partial(inference.pooled, encoder.task, encoder.config.mask)
    embed = sharding.on_devices(pooled, encoder.params)

    def make(source: Any, wanted: bool) -> tuple[dict[str, Any], np.ndarray | None]:
        with samples.windows_of(source, spec, stride, pixels) as (facts, windows):
            size = config.eval.batch_size
            return facts, inference.rows(embed, windows, size) if wanted else None

    index = frozen.keep(workdir, found, settings, make, data.threads(d.threads))
    videos = index["videos"]
    if unknown := [name for name, entry in videos.items() if not entry["fps"]]:
        log.warning("%d videos tell no fps (first: %s)", len(unknown), unknown[0])
    values = {
        "num_videos": len(videos),
        "num_unreadable": len(index["unreadable"]),
        "num_windows": sum(entry["windows"] for entry in videos.values()),
    }
    log.info("%s in %s", values, workdir / frozen.INDEX)
    return values
