"""`python -m mvm.convert SRC DST`: weights between the official form, Hugging Face's and ours."""

import argparse
import contextlib
import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging as absl_logging
from etils import epath

from mvm import config as schema
from mvm import inference, runs, tasks
from mvm.runtime import checkpoint, metrics
from mvm.types import imported
from mvm.weights import convert, describe, files, huggingface
from mvm.weights.torch_reader import ConvertError

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> None:
    """Converts as the command line says and prints what became of the keys."""
    parser = argparse.ArgumentParser(prog="python -m mvm.convert", description=__doc__)
    parser.add_argument("source", help="official file or folder, Hugging Face folder, or run")
    parser.add_argument("target", help=f"new file ({', '.join(files.SUFFIXES)}) or folder")
    parser.add_argument("--to", choices=("official", "huggingface", "run"), help="default: by name")
    parser.add_argument("--heads", type=int, default=0, help="where the source cannot tell them")
    parser.add_argument("--decoder-heads", type=int, default=0, help="the same for the decoder")
    parser.add_argument("--import", dest="own", action="append", default=[], help="your module")
    args = parser.parse_args(argv)
    absl_logging.set_verbosity(absl_logging.WARNING)
    logging.basicConfig(format="%(message)s", force=True)
    given = {"model.heads": args.heads, "model.decoder_heads": args.decoder_heads}
    given = {key: value for key, value in given.items() if value}
    try:
        imported(*args.own)
        print(said := translate(args.source, args.target, args.to, given))
        own = "".join(f"import {name}; " for name in args.own)
        equal = ", with other masks" if "left out" in said else ", with equal outputs"
        print(f"in Python{equal}: {own}mvm.load({args.target!r})")
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from error


def translate(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    to: str | None = None,
    given: Mapping[str, Any] = {},
) -> str:
    """Reads weights of any form, writes them in another, bit for bit, and says what was of no use.

    The target is a new file for official names, or a new folder; its name tells the form if `to` is
    None. What weights cannot tell is `given` by key of `mvm/config.py`, as {"model.heads": 4}.
    """
    out = epath.Path(target)
    is_file = out.suffix in files.SUFFIXES
    to = to or ("official" if out.suffix else "run")
    if is_file != (to == "official"):
        wanted = f"a file ({', '.join(files.SUFFIXES)})" if to == "official" else "a folder"
        raise ConvertError(f"{target}: --to {to} writes {wanted}")
    if out.exists() and (is_file or not out.is_dir() or any(out.iterdir())):
        raise ConvertError(f"{target} exists; remove it or choose another name")
    found = runs.Source(source)
    config, names = found.config(given), found.head().classes.names
    kernel, config.model.attention = config.model.attention, "auto"  # Its chip may not be here.
    task, params, report = inference.fitted(found, config)
    if to == "run":
        config.name, config.model.attention, config.optim.train = out.name, kernel, "all"
        # At step 0, to start from or to load; there is no optimiser to resume with.
        out.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(checkpoint.Checkpoints(out, keep=1)) as checkpoints:
            values = json.loads(config.to_json_best_effort())
            checkpoints.save(checkpoint.Progress(0, 0, 0), {"params": params}, values)
        runs.write_config(config, out, names if len(names) == config.data.num_classes else ())
        return report
    if config.data.crop == "fit":
        log.warning("this model sees whole frames; others who read such a file cut their centre")
    if config.data.num_candidates or (task.strategy and tasks.spec(config.task).labels):
        log.warning("this model selects tokens or frames; others who read such a file look at all")
    weights = convert.from_params(params, task.tubelet)
    encoder, decoder = task.encoder, task.decoder
    own = schema.flat(config) | {"model.width": encoder.width, "model.depth": encoder.depth}
    own |= {"model.heads": encoder.heads, "model.decoder_heads": decoder.heads}
    if to == "official":
        out.parent.mkdir(parents=True, exist_ok=True)
        files.write(out, weights, describe.told(own) | {"classes": names})
        return report
    theirs, left_out = huggingface.from_official(weights)
    if left_out:  # The mask that draws by it, too.
        own = {key: value for key, value in own.items() if not key.startswith("mask.")}
    written = huggingface.config_of(weights, own | {"model.decoder_width": decoder.width}, names)
    out.mkdir(parents=True, exist_ok=True)
    files.write(out / "model.safetensors", theirs)
    cut = huggingface.preprocessor(config.data.image_size)
    for name, values in (("config.json", written), ("preprocessor_config.json", cut)):
        metrics.replace_text(out / name, json.dumps(values, indent=2) + "\n")
    return report + (f"; left out: {', '.join(left_out)}" if left_out else "")


if __name__ == "__main__":
    main()
