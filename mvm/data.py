"""Where a run meets the input pipeline: values in, batches of NumPy arrays out."""

import contextlib
import hashlib
import itertools
import json
import logging
import math
import os
import pathlib
import sys
from collections.abc import Generator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from input_pipeline import check as checks
from input_pipeline import elements, loader, ucf101
from input_pipeline import segments as segments
from input_pipeline.sources import boxes as boxes
from input_pipeline.sources import folders
from input_pipeline.sources import load as source_files
from input_pipeline.sources import records as videos
from input_pipeline.synthetic import dataset as synthetic
from input_pipeline.transforms import mix as mixup
from input_pipeline.transforms.boxes import BoxSpec as BoxSpec
from input_pipeline.transforms.boxes import shown_at
from input_pipeline.transforms.randaugment import parse_rand_augment
from input_pipeline.video import decode
from mvm.runtime import multihost
from mvm.types import UserError

log = logging.getLogger(__name__)

Batch = dict[str, np.ndarray]
Record = videos.Record
Failures = videos.Failures
ClipSpec = elements.ClipSpec
Source = source_files.Source
Classes = source_files.Classes
classes, ANY = source_files.classes, videos.ANY
sources, spec_of = source_files.given, elements.spec_of
SPLITS = folders.SPLITS
Spec = ClipSpec | segments.FeatureSpec

_OPENED, _SHOWN = 256, 10
"""Videos that are opened before a run, and bad ones that are named."""


class Reader(NamedTuple):
    """How a process reads, as keys of `config.data`: it changes no batch."""

    threads: int = 0
    workers: int = -1
    cache_gb: float = 0.0

    def options(self) -> dict[str, Any]:
        """Those of `loader` that say how this process reads, and which part."""
        at_once, workers = threads(self.threads), self.workers
        if workers < 0:
            workers = 0 if self.cache_gb else at_once
        shard = jax.process_index(), jax.process_count()
        return {"threads": at_once, "workers": workers, "shard": shard}


def threads(wanted: int = 0) -> int:
    """Videos decoded at a time: as many as this process may use cores, 32 at most."""
    known = sys.platform == "linux"
    cores = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # A container's share, where it has one.
        quota, period = pathlib.Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(-(-int(quota) // int(period)), 1))  # "max" is no number.
    return wanted or min(cores, 32)


# --- Records ---


def fetch(name: str, root: str) -> str:
    """UCF101, downloaded and prepared once on each disk; other processes wait for the first."""
    return ucf101.fetch(root, int(name.removeprefix("ucf101/")))


def moving_shapes(folder: epath.PathLike, numbers: Mapping[str, int]) -> None:
    """Writes synthetic videos and their lists, unless they are there."""
    given = dict(numbers)
    unlabelled = max(given.pop("num_pretrain") - given["num_train"], 0)
    if jax.process_index() == 0:
        synthetic.write(folder, num_unlabelled=unlabelled, **given)
    multihost.exchange("synthetic videos")


def split(
    d: Any, folder: epath.Path, before: epath.Path | None, *, labelled: bool, seed: int, whole: bool
) -> None:
    """Makes lists in `folder`, the sources of `d`, the group `config.data`, out of `data.root`.

    Those in `before` are taken if they are of the same videos, and as they are if that is `folder`.
    Where no folder tells a test, it is all videos if `whole`, else drawn.
    """
    root, how = folders.base(d.root), "as begun" if folder == before else f"as in {before}"
    files = {name: folder / f"{name}.txt" for name in (*SPLITS, "classes")}
    if jax.process_index() == 0 and folder != before:
        found = folders.find(d.root, labelled, seed, (d.path_column, d.label_column))
        more = folders.left_out(found, root, before) if before else None
        if before and more is not None:
            how += f", where {more} of the folder are not" * (more > 0)
            texts = {name: (before / file.name).read_text() for name, file in files.items()}
        else:
            if whole and "test" in found.drawn:
                every = [*itertools.chain(*found.splits.values())]
                found = found._replace(splits={"test": every}, drawn=())
            texts = folders.texts(found, root)
            how = f"{' and '.join(found.drawn)} drawn class by class with seed {seed}"
            how = how if found.drawn else "as they are"
        folder.mkdir(parents=True, exist_ok=True)
        for name, file in files.items():
            file.write_text(texts.get(name, ""))
    multihost.exchange("lists of data.root")
    count = {name: len(file.read_text().splitlines()) for name, file in files.items()}
    said = ", ".join(f"{name} {n}" for name, n in count.items() if n)
    log.info("data.root=%s: %s, %s; lists in %s", d.root, said, how, folder)
    d.root, d.path_column, d.label_column = root, "", ""
    d.update({name: str(files[name]) if count[name] else "" for name in SPLITS})


def records(
    parts: Sequence[Source],
    num_classes: int = 0,
    split: str = "train",
    classes: Classes | None = None,
) -> Sequence[Record]:
    """The records of one or several sources; labels are in the order of `classes`."""
    if not parts:
        raise UserError(
            f"there is no data: give --config.data.root=FOLDER (of class folders, or of train/, "
            f"val/ and test/ with such), or --config.data.{split}=LIST (a `path label` line per "
            f"video), a folder of class folders, a packed folder or tfds:NAME/CONFIG"
        )
    classes = classes if classes and classes.names else None
    return source_files.load_records(parts, num_classes, split, classes)


def digest(found: Sequence[Record]) -> str:
    """SHA-256 of names, labels, weights and strides in their order; paths may move.

    Of a source that has to be read for names, 64 records are taken.
    """
    total = hashlib.sha256()
    for part in source_files.parts_of(found):
        records = part.records
        step = 1 if isinstance(records, list) else max(1, len(records) // 64)
        total.update(f"{len(records)} {part.weight} {part.stride} {part.labels}\n".encode())
        for record in (records[i] for i in range(0, len(records), step)):
            truth = f"\t{record.truth}" if record.truth else ""
            total.update(f"{record.id}\t{record.label}\t{record.stride}{truth}\n".encode())
    return total.hexdigest()


def shares(found: Sequence[Record], num_classes: int) -> np.ndarray:
    """The share of each class among the labels, `[C]`; even ones where a file must be read."""
    labels = [record.label for record in found] if isinstance(found, list) else []
    if not labels or min(labels) < 0:
        return np.full(num_classes, 1 / max(num_classes, 1))
    return np.bincount(labels, minlength=num_classes) / len(labels)


def facts(found: Mapping[str, Sequence[Record]]) -> dict[str, str]:
    """Facts on the records of each split, for the processes of a run to agree on."""
    return {f"records of data.{split}": digest(records)[:12] for split, records in found.items()}


def probe(
    found: Sequence[Record], split: str, spec: Spec, reader: Reader, max_bad_fraction: float
) -> None:
    """Opens some videos, each process its share, and warns of those that are missing or broken.

    Of another split than "train" one good video is enough.
    """
    if isinstance(spec, segments.FeatureSpec):
        return  # Those were looked at when they became records.
    opened = np.linspace(0, len(found) - 1, min(_OPENED, len(found)), dtype=int).tolist()
    mine = opened[jax.process_index() :: jax.process_count()]
    bad = checks.glance(found, mine, spec.min_frames, threads(reader.threads))
    lines = json.dumps([(position, f"{found[position].path}: {why}") for position, why in bad])
    every = sorted(itertools.chain(*map(json.loads, multihost.exchange(lines))))
    for _, line in every[:_SHOWN]:
        log.warning("data.%s: %s", split, line)
    allowed = math.ceil(max_bad_fraction * len(opened)) if split == "train" else len(opened) - 1
    if len(every) > allowed:
        raise UserError(
            f"data.{split}: {len(every)} of {len(opened)} videos opened cannot be used (first: "
            f"{every[0][1]}); mend the list or data.root, or raise "
            f"data.max_bad_fraction={max_bad_fraction}"
        )
    if every:
        log.warning("data.%s: %d of %d opened cannot be used", split, len(every), len(opened))


# --- Batches ---


def check(spec: Spec, batch_size: int, accumulate: int, mix: tuple[float, float] | None) -> None:
    """Checks how training clips are to be made."""
    if isinstance(spec, segments.FeatureSpec):
        return
    if spec.rand_augment:
        parse_rand_augment(spec.rand_augment)
    clips = batch_size * spec.repeats
    if mix and clips % (2 * accumulate):
        raise UserError(
            f"mixup and cutmix pair the clips of a batch, but train.batch_size * data.repeats = "
            f"{clips} is no multiple of 2 * train.accumulate = {2 * accumulate}; make it one"
        )


def train_batches(
    found: Sequence[Record],
    spec: Spec,
    reader: Reader,
    *,
    batch_size: int,
    seed: int,
    start: int,
    failures: Failures,
    mix: tuple[float, float] | None = None,
) -> Generator[Batch, None, None]:
    """This process's share of each training batch, without end; see `loader.train_batches`.

    `mix`, the alphas of mixup and cutmix (0 switches one off), adds "lam" `[b]` and "box" `[b, 4]`,
    one draw for all clips of a batch.
    """
    make: Any = loader.train_batches
    if isinstance(spec, segments.FeatureSpec):
        make = segments.train_batches
    batches = make(
        found,
        spec,
        batch_size=batch_size,
        seed=seed,
        start=start,
        cache_gb=reader.cache_gb,
        failures=failures,
        **reader.options(),
    )
    with contextlib.closing(batches):
        for step, batch in enumerate(batches, start // batch_size):
            if mix and isinstance(spec, elements.ClipSpec):
                # Addressed by the step, hence the same on every process and after a restart.
                rng, side = np.random.default_rng((seed, step)), spec.image_size
                lam, box = mixup.draw(rng, side, side, mixup_alpha=mix[0], cutmix_alpha=mix[1])
                clips = len(batch["label"])
                batch["lam"] = np.full(clips, lam, np.float32)
                batch["box"] = np.tile(np.array(box, np.int32), (clips, 1))
            yield batch


def key_picture(record: Record) -> np.ndarray:
    """A key frame itself, uint8 `[H, W, 3]`."""
    with decode.open_video(record.path) as video:
        return np.copy(video.read([shown_at(video, record.truth.seconds)])[0])


def eval_batches(
    found: Sequence[Record], spec: Spec, reader: Reader, batch_size: int, failures: Failures
) -> loader.Batches:
    """This process's share of the views of every record, each record exactly once."""
    clips = not isinstance(spec, segments.FeatureSpec)
    make: Any = loader.eval_batches if clips else segments.eval_batches
    return make(found, spec, batch_size=batch_size, failures=failures, **reader.options())
