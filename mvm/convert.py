"""`python -m mvm.convert SRC DST`: weights between the official form, Hugging Face's and ours."""

import argparse
import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from absl import logging as absl_logging
from etils import epath
from flax.traverse_util import unflatten_dict

from mvm import config as schema
from mvm import inference, runs, tasks
from mvm.runtime import checkpoint, metrics
from mvm.types import Params, UserError
from mvm.weights import convert, describe, files, huggingface
from mvm.weights.torch_reader import ConvertError

log = logging.getLogger(__name__)

# What neither weights nor the size of a model tell.
_KNOWN = {
    *("model.epsilon", "model.head_epsilon", "model.targets", "model.target_frames"),
    *("model.position_grid", "data.num_frames", "data.image_size", "data.frame_stride"),
    *("data.fps", "data.sampling", "data.num_candidates", "data.keep_ratio", "eval.average"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Converts as the command line says and prints what became of every key."""
    parser = argparse.ArgumentParser(prog="python -m mvm.convert", description=__doc__)
    parser.add_argument("source", help="official file or folder, Hugging Face folder, or run")
    parser.add_argument("target", help=f"new file ({', '.join(files.SUFFIXES)}) or folder")
    parser.add_argument("--to", choices=("official", "huggingface", "run"), help="default: by name")
    parser.add_argument("--heads", type=int, default=0, help="where the source cannot tell them")
    parser.add_argument("--decoder-heads", type=int, default=0, help="the same for the decoder")
    args = parser.parse_args(argv)
    absl_logging.set_verbosity(absl_logging.WARNING)
    logging.basicConfig(format="%(message)s", force=True)
    given = {"model.heads": args.heads, "model.decoder_heads": args.decoder_heads}
    given = {key: value for key, value in given.items() if value}
    try:
        report = translate(args.source, args.target, args.to, given)
    except (UserError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from error
    print(f"matched {len(report.matched)} keys")
    for word, names in (("missing", report.missing), ("unused", report.unused)):
        print("\n  ".join([f"{word} {len(names)}{':' if names else ''}", *names]))


def translate(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    to: str | None = None,
    given: Mapping[str, Any] = {},
) -> convert.Report:
    """Reads weights of any form and writes them in another, bit for bit.

    Args:
        source: as for `api.load`.
        target: a new file for official names; a new folder for a run or for Hugging Face's form.
        to: "official", "huggingface" or "run"; by the target's name if None.
        given: what `describe` cannot find out, such as {"model.heads": 4}.
    """
    out = epath.Path(target)
    is_file = out.suffix in files.SUFFIXES
    to = to or ("official" if is_file else "run")
    if is_file != (to == "official"):
        wanted = f"a file ({', '.join(files.SUFFIXES)})" if to == "official" else "a folder"
        raise ConvertError(f"{target}: --to {to} writes {wanted}")
    if out.exists() and (is_file or not out.is_dir() or any(out.iterdir())):
        raise ConvertError(f"{target} exists; remove it or choose another name")
    found = runs.Source(source)
    weights, known = _read_run(found) if found.is_run else found.file
    names, known = found.classes()[0], {**known, **given}
    params, report = all_params(weights, known)
    if to == "run":
        _write_run(out, params, describe.describe(weights, known), names)
        return report
    if known.get("data.num_candidates") or (known.get("mask.name") and "head.bias" in weights):
        log.warning("this model selects tokens or frames; whoever reads such a file looks at all")
    kept = {key: weights[key] for key in report.matched}
    if to == "official":
        out.parent.mkdir(parents=True, exist_ok=True)
        files.write(out, kept)
        return report
    theirs, left_out = huggingface.from_official(kept)
    config = huggingface.config_of(kept, describe.describe(kept, known), names)
    out.mkdir(parents=True, exist_ok=True)
    files.write(out / "model.safetensors", theirs)
    metrics.replace_text(out / "config.json", json.dumps(config, indent=2) + "\n")
    matched = tuple(key for key in report.matched if key not in left_out)
    return report._replace(matched=matched, unused=report.unused + left_out)


def all_params(
    weights: Mapping[str, np.ndarray], known: Mapping[str, Any] = {}
) -> tuple[Params, convert.Report]:
    """Every leaf that official weights hold, when there is no model to fill.

    Raises:
        ConvertError: as `convert.to_params`; also if encoder or decoder are incomplete.
    """
    heads = {"model.heads": 1, "model.decoder_heads": 1}  # No shape depends on them.
    config = schema.completed(schema.nested(describe.describe(weights, {**heads, **known})))
    task, params, report = inference.fitted(config, partial(convert.to_params, weights))
    if absent := runs.missing(task.abstract, params):
        raise ConvertError(f"{absent[0]} is absent in the file, which has other parts of its model")
    missing = tuple(leaf for leaf in report.missing if leaf.startswith(("fc_norm/", "head/")))
    return params, report._replace(missing=missing)


def _write_run(
    folder: epath.Path, params: dict[str, Any], found: Mapping[str, Any], names: Sequence[str]
) -> None:
    """A run directory at step 0, to start from or to load; it has no optimiser to resume with."""
    config = {"name": folder.name} | schema.nested(found)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints = checkpoint.Checkpoints(folder, keep=1)
    checkpoints.save(checkpoint.Progress(0, 0, 0), {"params": params}, config)
    checkpoints.close()
    if names and len(names) == found.get("data.num_classes"):
        metrics.replace_text(folder / "classes.txt", "".join(f"{name}\n" for name in names))
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    metrics.replace_text(folder / "config.json", text)


def _read_run(source: runs.Source) -> files.Source:
    """The parameters of a run (averaged, if it has an average) under official names."""
    config = source.config()
    tree = unflatten_dict(runs.json_of(source.step / "leaves" / "metadata"), sep="/")
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(tuple(leaf["shape"]), np.float32),
        tree.get("ema", tree["params"]),
        is_leaf=lambda node: "shape" in node,
    )
    params, _ = source.load(shapes)
    encoder, decoder = tasks.sizes(config.model)
    known = {k: v for k, v in schema.flat(config).items() if k in _KNOWN or k.startswith("mask.")}
    known |= {"model.heads": encoder.heads, "model.decoder_heads": decoder.heads}
    return files.Source(convert.from_params(params, tuple(config.model.tubelet)), known)


if __name__ == "__main__":
    main()
