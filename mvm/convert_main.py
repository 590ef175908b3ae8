"""`python -m mvm.convert SRC DST`: weights between the official form, Hugging Face's and ours."""

import argparse
import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from etils import epath

from mvm import checkpoint, convert, huggingface, telemetry, weight_files
from mvm.models import vit
from mvm.torch_files import ConvertError
from mvm.types import UserError

log = logging.getLogger(__name__)

_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")


def main(argv: Sequence[str] | None = None) -> None:
    """Converts as the command line says and prints what became of every key."""
    parser = argparse.ArgumentParser(prog="python -m mvm.convert", description=__doc__)
    parser.add_argument("source", help="official file or folder, Hugging Face folder, or run")
    parser.add_argument("target", help=f"new file ({', '.join(_SUFFIXES)}) or folder")
    parser.add_argument("--to", choices=("official", "huggingface", "run"), help="default: by name")
    parser.add_argument("--transformers", type=int, choices=(4, 5), default=4, help="whose names")
    parser.add_argument("--heads", type=int, default=0, help="where the source cannot tell them")
    parser.add_argument("--decoder-heads", type=int, default=0, help="the same for the decoder")
    args = parser.parse_args(argv)
    absl_logging.set_verbosity(absl_logging.WARNING)
    logging.basicConfig(format="%(message)s", force=True)
    given = {"model.heads": args.heads, "model.decoder_heads": args.decoder_heads}
    given = {key: value for key, value in given.items() if value}
    try:
        report = translate(args.source, args.target, args.to, args.transformers, given)
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
    version: int = 4,
    given: Mapping[str, Any] = {},
) -> convert.Report:
    """Reads weights of any form and writes them in another, bit for bit.

    Args:
        source: as for `convert.read`, or a run or step directory.
        target: a file for official names; a folder for a run or for Hugging Face's form.
        to: "official", "huggingface" or "run"; by the target's name if None.
        version: of transformers, whose names to write.
        given: what `describe` cannot find out, such as {"model.heads": 4}.

    Raises:
        UserError: if there is nothing to read, something at the target already, or the model has
            no place in that form.
    """
    out = epath.Path(target)
    is_file = out.suffix in _SUFFIXES
    to = to or ("official" if is_file else "run")
    if is_file != (to == "official"):
        wanted = f"a file that ends in {', '.join(_SUFFIXES)}" if to == "official" else "a folder"
        raise ConvertError(f"{target}: --to {to} writes {wanted}")
    if out.exists() and not (out.is_dir() and not is_file and not any(out.iterdir())):
        raise ConvertError(f"{target} exists; remove it or choose another name")
    # Orbax takes no relative path.
    where = epath.Path(source if "://" in os.fspath(source) else os.path.abspath(source))
    is_run = checkpoint.is_run(where)
    weights, known, labels = _read_run(where) if is_run else convert.read(source)
    known = {**known, **given}
    classifies = not any(key.startswith("decoder.") for key in weights)
    chooses = known.get("data.num_candidates") or (classifies and known.get("mask.name"))
    if to != "run" and chooses:
        log.warning(
            "this model chooses the %s it looks at; such a file holds weights alone, and whoever "
            "reads it looks at all of them",
            "frames" if known.get("data.num_candidates") else "tokens",
        )
    params, report = convert.all_params(weights)
    if to == "run":
        _write_run(out, params, convert.describe(weights, known), labels)
        return report
    prefix = convert.encoder_prefix(weights)
    tubelet = weights[f"{prefix}patch_embed.proj.weight"].shape[2:]
    kept = convert.from_params(params, tubelet)
    if to == "official":
        out.parent.mkdir(parents=True, exist_ok=True)
        weight_files.write(out, kept)
        return report
    theirs, left_out = huggingface.from_official(kept, version)
    config = huggingface.config_of(kept, convert.describe(kept, known), labels)
    out.mkdir(parents=True, exist_ok=True)
    weight_files.write(out / "model.safetensors", theirs)
    telemetry.replace_text(out / "config.json", json.dumps(config, indent=2) + "\n")
    matched = tuple(key for key in report.matched if key not in left_out)
    return report._replace(matched=matched, unused=report.unused + left_out)


def _write_run(
    folder: epath.Path, params: dict[str, Any], found: Mapping[str, Any], labels: Sequence[str]
) -> None:
    """A run directory at step 0, to start from or to load; it has no optimiser to go on with."""
    config: dict[str, Any] = {"name": folder.name}
    for key, value in found.items():
        group, _, name = key.rpartition(".")
        (config.setdefault(group, {}) if group else config)[name] = value
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints = checkpoint.Checkpoints(folder, keep=1)
    checkpoints.save(checkpoint.Place(0, 0, 0), {"params": params}, config)
    checkpoints.close()
    if labels and len(labels) == found.get("data.num_classes"):
        telemetry.replace_text(folder / "classes.txt", "".join(f"{name}\n" for name in labels))
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    telemetry.replace_text(folder / "config.json", text)


def _read_run(path: epath.Path) -> convert.Source:
    """The parameters of a run (averaged, if it has an average) under official names."""
    steps = checkpoint.steps_in(path)
    step = path / "checkpoints" / str(steps[0]) if steps else path
    if not checkpoint.is_step(step):
        raise ConvertError(f"{path}: a run directory without a checkpoint")
    reader = ocp.Checkpointer(ocp.JsonCheckpointHandler())
    config, saved = (reader.restore(step / name) for name in ("config", "leaves"))
    source = "ema/" if any(name.startswith("ema/") for name in saved) else "params/"
    like: dict[str, Any] = {}
    for name, leaf in saved.items():
        if not name.startswith(source):
            continue
        *parents, last = name.split("/")[1:]
        node = like
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = jax.ShapeDtypeStruct(tuple(leaf["shape"]), np.float32)
    params, _ = checkpoint.load_params(path, like)
    model, data = config["model"], config["data"]
    size = model["size"]
    known = {f"model.{key}": model[key] for key in _KNOWN if key in model}
    known |= {f"data.{key}": data[key] for key in ("num_frames", "image_size")}
    known |= {f"mask.{key}": value for key, value in config["mask"].items()}
    known |= {f"data.{k}": data[k] for k in _KNOWN_DATA if k in data}
    known["eval.average"] = config.get("eval", {}).get("average", "probabilities")
    known["model.heads"] = model["heads"] or vit.ENCODERS[size].heads
    known["model.decoder_heads"] = model.get("decoder_heads") or vit.DECODERS[size][1]
    known["model.position_grid"] = tuple(model.get("position_grid", (0, 0, 0)))
    names = path / "classes.txt"
    labels = tuple(names.read_text().splitlines()) if names.exists() else ()
    return convert.Source(convert.from_params(params, tuple(model["tubelet"])), known, labels)


_KNOWN = ("epsilon", "head_epsilon", "targets", "target_frames")
_KNOWN_DATA = ("frame_stride", "sampling", "num_candidates", "keep_ratio")
