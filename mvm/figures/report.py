"""One page for one run: `report.html`, self-contained, from what lies in the run directory."""

import base64
import collections
import contextlib
import csv
import datetime
import io
import json
import math
import pathlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from string import Template
from typing import Any

from etils import epath

from mvm import config as schema
from mvm.runtime.metrics import last_values

CAPTIONS = {
    "boxes": "What each is said to do",
    "timeline": "What is found, and when",
    "confusion": "Which classes were taken for which",
    "confused": "Clips of the classes most confused",
    "confidence": "How sure right and wrong answers were",
    "curves": "Training",
    "frames": "Which frames were kept",
    "masks": "What the masking chose",
    "overview": "One clip, from motion to prediction",
    "reconstruction": "What the model rebuilt",
    "clips": "The data",
}
"""Titles of figures by file name, in the order of the page."""

# Browsers choose ground and ink, light or dark; figures are transparent.
PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<title>$title</title><style>
:root{color-scheme:light dark}
body{max-width:1020px;margin:32px auto;padding:0 16px;font:15px/1.55 system-ui,sans-serif}
h1{font-size:27px;margin:0;overflow-wrap:anywhere}h2{font-size:17px;margin:32px 0 12px}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:5px 18px 5px 0;text-align:left;vertical-align:top;border-top:1px solid #8885}
td:not(:last-child){white-space:nowrap}
td:last-child{overflow-wrap:anywhere;min-width:8em}
th,.muted{color:#737a86;font-weight:500}
.scroll{overflow:auto;max-height:1400px}
figure{margin:12px 0 24px;overflow-x:auto}figcaption{font-weight:600;position:sticky;left:0}
img{display:block;max-width:100%;margin-top:8px}
.strip{display:flex;flex-wrap:wrap;gap:20px}.strip figure{margin:0;flex:none;max-width:88%}
.strip img{max-height:340px}@media(max-width:700px){.strip{flex-wrap:nowrap;overflow-x:auto}}
</style></head>
<body><h1>$title</h1><p class="muted">$subtitle</p>
$body
</body></html>
""")
_PERCENT = re.compile(r"(val_|test_)?(top\d|mean_class|knn|accuracy|(average_)?mAP)")


def _json(path: epath.Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def read_csv(path: epath.Path) -> list[dict[str, str]]:
    """Rows of a CSV file with a header; none where it is missing."""
    return list(csv.DictReader(io.StringIO(path.read_text() if path.exists() else "")))


def answers(workdir: epath.Path) -> list[dict[str, str]]:
    """Rows of a classifier's `predictions.csv`, see `mvm.tasks.finetune.accuracies`, if any."""
    return [row for row in read_csv(workdir / "predictions.csv") if row.get("probability1")]


def confused(rows: Sequence[Mapping[str, str]]) -> list[tuple[str, str, list[Mapping[str, str]]]]:
    """(true class, predicted class, rows): the most rows first, of these the surest first."""
    pairs: dict[tuple[str, str], list[Mapping[str, str]]] = {}
    for row in sorted(rows, key=lambda row: -float(row["probability1"])):
        if row["label"] != row["top1"]:
            pairs.setdefault((row["label"], row["top1"]), []).append(row)
    return [(*pair, of) for pair, of in sorted(pairs.items(), key=lambda item: -len(item[1]))]


def text(value: Any) -> str:
    """A value as escaped HTML: numbers to four digits, strings as they are, the rest as JSON."""
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.4g}"
    return escape(value if isinstance(value, str) else json.dumps(value, default=str))


def table(rows: Iterable[Iterable[str]], *head: str) -> str:
    """A table of cells that are HTML already; empty without rows."""
    top = "".join(f"<th>{name}</th>" for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    whole = f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll">{whole}</div>' if body else ""


def _values(values: Mapping[str, Any]) -> str:
    said = {k: text(v) + " %" * bool(_PERCENT.match(k)) for k, v in values.items()}
    return table((text(k), v) for k, v in said.items() if k != "unreadable")


def _results(results: Mapping[str, Any]) -> str:
    lost = [(text(row["id"]), text(row["reason"])) for row in results.get("unreadable") or []]
    return _values(results) + table(lost, "unreadable video", "reason")


def _classes(root: epath.Path) -> str:
    """The rows of per_class.csv, the worst by its last column first."""
    rows = [list(row.items()) for row in read_csv(root / "per_class.csv")]
    rows.sort(key=lambda row: float(row[-1][1] or "inf"))
    head = [f"{k}{', %' * bool(_PERCENT.match(k))}" for k, _ in rows[0]] if rows else []
    return table(([text(v) for _, v in row] for row in rows), *map(text, head))


def _confused(root: epath.Path) -> str:
    rows = answers(root)
    of = collections.Counter(row["label"] for row in rows)
    found = []
    for label, best, videos in confused(rows)[:10]:
        sure = f"{text(videos[0]['video'])}, {100 * float(videos[0]['probability1']):.0f} %"
        found.append((text(label), text(best), f"{len(videos)} of {of[label]}", sure))
    return table(found, "true class", "taken for", "videos", "surest of them")


def _config(config: Mapping[str, Any]) -> str:
    changed = schema.changed(schema.flat(config)).items()
    return table((map(text, pair) for pair in changed), "key", "where not the default")


def image(path: epath.Path, title: str, link: str = "") -> str:
    """A PNG file inside the page, which scrolls before its text is too small; or a small `link`."""
    data = path.read_bytes()
    least = 0 if link else min(int.from_bytes(data[16:20]), 560)  # Of its width, in the header.
    code = base64.b64encode(data).decode()
    drawn = f'<img alt="{title}" style="min-width:{least}px" src="data:image/png;base64,{code}">'
    both = f"<figcaption>{title}</figcaption>{drawn}"
    return "<figure>" + (f'<a href="{link}">{both}</a>' if link else both) + "</figure>"


def _figures(folder: epath.Path) -> str:
    found = {p.stem: p for p in folder.glob("*.png")} if folder.exists() else {}
    names = dict.fromkeys([n for n in CAPTIONS if n in found] + sorted(found))
    titles = {name: escape(CAPTIONS.get(name, name.replace("_", " "))) for name in names}
    return "".join(image(found[name], title) for name, title in titles.items())


def _commit() -> str:
    """Of the code that runs, if it is a clone."""
    root = pathlib.Path(__file__).parents[2]
    of = ["git", f"--git-dir={root}/.git", f"--work-tree={root}", "describe", "--always", "--dirty"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(of, capture_output=True, text=True, check=True).stdout.strip()
    return "unknown"


def page(path: epath.Path, title: str, subtitle: str, sections: Mapping[str, str]) -> None:
    """Writes a page of sections, HTML by title, without those that are empty."""
    body = "".join(f"<h2>{name}</h2>{part}\n" for name, part in sections.items() if part)
    path.write_text(PAGE.substitute(title=text(title), subtitle=text(subtitle), body=body))


def write(workdir: epath.PathLike, more: Mapping[str, str] = {}) -> None:
    """Writes `report.html` into a run directory from whatever of a run is there.

    `more` are further sections, HTML by title.
    """
    root = epath.Path(workdir)
    config, results = _json(root / "config.json"), _json(root / "results.json")
    last, warned = last_values(root / "metrics.jsonl"), root / "warnings.txt"
    lines = warned.read_text().splitlines() if warned.exists() else []
    about = {
        "command": shlex.join(["python", *sys.argv]),
        "commit": _commit(),
        "date": f"{datetime.datetime.now():%Y-%m-%d %H:%M}",
        "batch size": config.get("train" if last else "eval", {}).get("batch_size"),
        "steps": last.get("step"),
        "views": results.get("views"),
    }
    sections = {
        "Result": _results(results),
        "Warnings": table([text(line)] for line in lines),
        "Classes most confused": _confused(root),
        **more,
        "Figures": _figures(root / "figures"),
        "Classes": _classes(root),
        "This run": _values({k: v for k, v in about.items() if v is not None}),
        "Last logged values": _values(last),
        "Configuration": _config(config),
    }
    page(root / "report.html", config.get("name") or root.name, config.get("task", ""), sections)
