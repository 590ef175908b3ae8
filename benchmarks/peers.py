"""The same optimiser steps here and in PyTorch: model, weights, clips and masks, in one run.

python -m benchmarks.peers --rows everest,tube --steps 4 --json peers.json --figure peers.png

A step normalises targets, runs forward and backward, takes the norm of the gradient and updates by
AdamW. Sides must agree in loss and gradient before they are timed. Each is a process of its own,
and they take steps in turn. The peers are `benchmarks.torch_models`, which follow the released
codes, and transformers as it is, where it has the model. Random erasing, mixup and cutmix are left
out: the released codes do them in their loaders.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

# Neither JAX nor PyTorch: the processes of both sides import this file again.
from benchmarks.in_turn import Process, SideError, in_turn, use_cores
from benchmarks.peer_sides import RATE, Options, Ours, Peer, Row

COMPARED = 2
"""Steps of which both sides' numbers are compared; the second comes after an update."""

ROWS = {
    "everest": Row("EVEREST pre-training", "everest_ucf101"),
    "tube": Row("VideoMAE pre-training", "videomae_ssv2_800", {}, ("released", "transformers")),
    "dual": Row("VideoMAE V2 pre-training", "dual_ssv2"),
    "adamae": Row("AdaMAE pre-training", "adamae_ssv2"),
    "everest_finetune": Row("EVEREST fine-tuning", "everest_ucf101:finetune"),
    "finetune": Row(
        "fine-tuning on all tokens",
        "everest_ucf101:finetune",
        {"mask.name": ""},
        ("transformers",),
    ),
}

SAVINGS = (
    ("everest", "tube", 0.60),
    ("dual", "tube", 0.78),
    ("everest_finetune", "finetune", 0.58),
)
"""Two rows, and how much of our step of the second our step of the first may take."""


def missing() -> list[str]:
    """Packages of the peers that are not installed."""
    return [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]


def both_have_gpus() -> bool:
    """Whether JAX and PyTorch both see a GPU; asked in a process of its own."""
    if not shutil.which("nvidia-smi"):
        return False
    ask = "import jax, torch; print(torch.cuda.is_available() and jax.default_backend() == 'gpu')"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True)
    return done.stdout.strip().endswith("True")


def check_same(
    name: str, ours: Mapping[str, float], theirs: Mapping[str, float], tolerance: float
) -> None:
    """Holds loss and norm of the gradient of one step of both sides against each other.

    Raises:
        SideError: if the loss differs by more than `tolerance` of it, or the norm by ten times as
            much; shows `name` and both.
    """
    for key, far in (("loss", tolerance), ("grad_norm", 10 * tolerance)):
        if not abs(theirs[key] - ours[key]) <= far * abs(ours[key]):
            raise SideError(
                f"{name}: {key} is {ours[key]:.7g} here and {theirs[key]:.7g} there; this is not "
                f"the same work, and not timed"
            )


def compare(row: Row, options: Options, path: str, gpu: bool) -> dict[str, Any]:
    """Holds the first steps of all sides against each other, without drop path and dropout.

    Returns:
        "job" for `Peer`, the first "mask", and "agreement": loss and norm of the gradient of each
        step by side.

    Raises:
        SideError: if they differ; names the row and shows the numbers.
    """
    tolerance = 1e-4 if options.dtype == "float32" and not gpu else 2e-2
    ours = Process("ours", options.threads, Ours, row, options, False)
    job = ours.ask("export", path)
    masks, steps = [], []
    for _ in range(COMPARED):
        masks.append(ours.ask("mask"))
        steps.append(ours.ask("step"))
    ours.close()
    agreement = {"ours": steps}
    for side in row.peers:
        peer = Process(side, options.threads, Peer, side, job, path, options, False, gpu)
        agreement[side] = []
        for mask, step in zip(masks, steps):
            peer.ask("use_mask", mask)
            theirs = peer.ask("step", step["learning_rate"])
            agreement[side].append(theirs)
            check_same(f"{row.title}, {side}", step, theirs, tolerance)
        peer.close()
    shown = {
        side: [{name: one[name] for name in ("loss", "grad_norm")} for one in found]
        for side, found in agreement.items()
    }
    return {"job": job, "mask": masks[0], "agreement": shown}


def _timed(builders: Mapping[str, tuple[Any, ...]], options: Options, mask: Any) -> dict[str, Any]:
    """Starts sides anew for each round and times them; what each is and its numbers, by name."""
    out: dict[str, Any] = {}
    for _ in range(options.rounds):
        sides = {
            name: Process(name, options.threads, *builder) for name, builder in builders.items()
        }
        for name, side in sides.items():
            if builders[name][0] is Peer:
                side.ask("use_mask", mask)
        for name, steps in in_turn(sides, options.steps, RATE).items():
            found = out.setdefault(name, {**sides[name].about, "steps": []})
            found["steps"] += steps
            sides[name].close()
    return {name: _summary(found) for name, found in out.items()}


def _summary(found: Mapping[str, Any]) -> dict[str, Any]:
    seconds = [step["seconds"] for step in found["steps"]]
    cpu_seconds = [step["cpu_seconds"] for step in found["steps"]]
    return {
        **{key: value for key, value in found.items() if key != "steps"},
        "step_median_s": statistics.median(seconds),
        "step_min_s": min(seconds),
        "step_cpu_s": statistics.median(cpu_seconds),
        "steps_s": seconds,
        "steps_cpu_s": cpu_seconds,
        "peak_gb": max(step["peak_gb"] for step in found["steps"]),
    }


def measure_row(name: str, options: Options, gpu: bool) -> dict[str, Any]:
    """Compares and times all sides of a row.

    Raises:
        SideError: if they are not alike, or one fails.
    """
    row = ROWS[name]
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "clips.npz")
        same = compare(row, options, path, gpu)
        shape = same["job"]["shape"]
        builders: dict[str, tuple[Any, ...]] = {"ours": (Ours, row, options, True)}
        for side in row.peers:
            builders[side] = (Peer, side, same["job"], path, options, True, gpu)
        # EVEREST's and AdaMAE's models draw their masks themselves, and the others' loaders do.
        mask = None if shape["mask"] in ("everest", "adamae") else same["mask"]
        sides = _timed(builders, options, mask)
    return {
        "row": name,
        "title": row.title,
        "tokens": {key: shape[key] for key in ("num_visible", "num_target")},
        "sides": sides,
        "ratios": {
            side: {
                key: sides[side][key] / sides["ours"][key]
                for key in ("step_median_s", "step_min_s", "step_cpu_s", "peak_gb")
            }
            for side in row.peers
        },
        "agreement": same["agreement"],
    }


def measure_saving(first: str, second: str, limit: float, options: Options) -> dict[str, Any]:
    """Times our steps of two rows in turn."""
    builders = {name: (Ours, ROWS[name], options, True) for name in (first, second)}
    found = _timed(builders, options, None)
    ratios = {
        key: found[first][key] / found[second][key]
        for key in ("step_median_s", "step_min_s", "step_cpu_s", "peak_gb")
    }
    return {"row": first, "of": second, "at_most": limit, "sides": found, "ratios": ratios}


def measure(rows: Sequence[str], options: Options) -> dict[str, Any]:
    """Everything: rows, savings, and what they were measured with.

    Args:
        rows: keys of `ROWS`.
        options: how.

    Raises:
        SideError: if a package is missing, sides are not alike, or one fails.
    """
    if absent := missing():
        raise SideError(
            f"{' and '.join(absent)} not installed: pip install -r requirements-peers.txt "
            "--extra-index-url https://download.pytorch.org/whl/cpu"
        )
    gpu = both_have_gpus()
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # Memory of a GPU is shared.
    if not gpu:
        os.environ["JAX_PLATFORMS"] = "cpu"
    measured = []
    for name in rows:
        measured.append(measure_row(name, options, gpu))
        print(table(measured[-1:]), flush=True)
    wanted = [saving for saving in SAVINGS if {*saving[:2]} <= {*rows}]
    first = measured[0]["sides"]["ours"]
    packages = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    return {
        "options": options._asdict(),
        "cores": options.threads or use_cores(),
        **{key: first[key] for key in ("cpu", "commit", "python")},
        "versions": first["versions"] | packages,
        "rows": measured,
        "savings": [measure_saving(*saving, options) for saving in wanted],
    }


_TIMES = {"step_median_s": "median", "step_min_s": "min", "step_cpu_s": "CPU"}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows in Markdown; what is "x" says how many times ours it is."""
    from benchmarks import results

    lines = []
    for row in rows:
        tokens = f"{row['tokens']['num_visible']} + {row['tokens']['num_target']}"
        for side, found in row["sides"].items():
            line = {"step": row["title"], "tokens": tokens, "side": side}
            line |= {f"s {word}": f"{found[key]:.3g}" for key, word in _TIMES.items()}
            line["GB"] = f"{found['peak_gb']:.2f}"
            ratios = row["ratios"].get(side, {})
            line |= {
                f"x {word}": results.shown(ratios.get(key), ".2f") for key, word in _TIMES.items()
            }
            lines.append(line)
    return results.markdown(lines)


def savings_table(savings: Sequence[Mapping[str, Any]]) -> str:
    """Our steps over one another in Markdown."""
    from benchmarks import results

    return results.markdown(
        [
            {"our step of": ROWS[saving["row"]].title, "over that of": ROWS[saving["of"]].title}
            | {word: f"{saving['ratios'][key]:.2f}" for key, word in _TIMES.items()}
            | {"wanted at most": f"{saving['at_most']:.2f}"}
            for saving in savings
        ]
    )


def footer(numbers: Mapping[str, Any]) -> str:
    """Where, on what and with what all this was measured."""
    ours, theirs, *_ = numbers["rows"][0]["sides"].values()
    options = numbers["options"]
    versions = ", ".join(f"{name} {version}" for name, version in numbers["versions"].items())
    return (
        f"{numbers['cores']} cores of {numbers['cpu']}; ours on {ours['device']}, PyTorch on "
        f"{theirs['device']}. {options['dtype']}, {options['batch_size']} clips, "
        f"{options['steps']} steps x {options['rounds']} rounds, commit {numbers['commit']}, "
        f"{versions}. malloc: ours {ours['malloc']}, PyTorch {theirs['malloc']}."
    )


def draw(path: pathlib.Path, numbers: Mapping[str, Any]) -> None:
    """Draws the median step of each side as a bar."""
    from benchmarks import results

    bars, labels = {}, []
    for row in numbers["rows"]:
        for side, found in row["sides"].items():
            bars[f"{row['title']}, {side}"] = {side: found["step_median_s"]}
            label = f"{found['step_median_s']:.3g} s, {found['peak_gb']:.2f} GB"
            ratios = row["ratios"].get(side)
            labels.append(label + (f", {ratios['step_median_s']:.2f} times ours" if ratios else ""))
    caption = f"Median of a whole optimiser step, and peak memory. {footer(numbers)}"
    results.stacked(path, bars, labels, "s a step", caption)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--rows", default=",".join(ROWS), help="some of the default, by commas")
    parser.add_argument("--size", default="B", help="of the encoder: Ti, S, B, L, H")
    parser.add_argument("--batch_size", type=int, default=2, help="clips of a step")
    parser.add_argument("--steps", type=int, default=4, help="timed steps of each side")
    parser.add_argument("--rounds", type=int, default=1, help="times the processes begin anew")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--threads", type=int, default=0, help="cores of each side; 0 = all")
    parser.add_argument("--smoke", action="store_true", help="tiny models, to see that it runs")
    parser.add_argument("--json", default="", help="file to write the numbers to")
    parser.add_argument("--figure", default="", help="PNG file to draw to")
    args = parser.parse_args(argv)
    rows = [name for name in args.rows.split(",") if name]
    if unknown := [name for name in rows if name not in ROWS] or (["nothing"] if not rows else []):
        raise SystemExit(f"error: --rows {', '.join(unknown)}: choose from {', '.join(ROWS)}")
    options = Options(*(vars(args)[name] for name in Options._fields))
    try:
        numbers = measure(rows, options)
    except SideError as error:
        raise SystemExit(f"error: {error}") from error
    print(f"\n{table(numbers['rows'])}\n")
    if numbers["savings"]:
        print(f"{savings_table(numbers['savings'])}\n")
    print(footer(numbers))
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(numbers, indent=2) + "\n")
    if args.figure:
        draw(pathlib.Path(args.figure), numbers)


if __name__ == "__main__":
    main()
