"""One page for one run: `report.html`, self-contained, from what lies in the run directory."""

import base64
import json
import math
import urllib.parse
from collections.abc import Iterable, Mapping
from html import escape
from string import Template
from typing import Any

from etils import epath

from mvm import config as keys
from mvm.runtime.metrics import last_values

CAPTIONS = {
    "accuracies": "Accuracy of each arm",
    "compute": "Accuracy against compute",
    "strategies": "What each strategy chose of the same clip",
    "curves": "Training",
    "frames": "Which frames were kept",
    "masks": "What the masking chose",
    "overview": "One clip, from motion to prediction",
    "reconstruction": "What the model rebuilt",
    "per_class": "Accuracy of each class",
    "clips": "The data",
}
"""Titles of figures by file name, in the order of the page."""

PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<title>$title</title><style>
body{max-width:1020px;margin:40px auto;padding:0 20px;color:#1b2330;
font:15px/1.55 system-ui,sans-serif}
h1{font-size:29px;margin:0}h2{font-size:17px;margin:36px 0 12px}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:6px 18px 6px 0;text-align:left;vertical-align:top;border-top:1px solid #e1e5eb}
th,.muted{color:#5d6778;font-weight:500}a{color:#0072b2}
figure{margin:0 0 24px}figcaption{font-weight:600}
img{display:block;max-width:100%;margin-top:8px}
</style></head>
<body><h1>$title</h1><p class="muted">$subtitle</p>
$body
</body></html>
""")


def _json(path: epath.Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def _text(value: Any) -> str:
    """A value as escaped HTML: numbers to four digits, strings as they are, the rest as JSON."""
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.4g}"
    return escape(value if isinstance(value, str) else json.dumps(value, default=str))


def _table(rows: Iterable[Iterable[str]], *head: str) -> str:
    """A table of cells that are HTML already; empty without rows."""
    top = "".join(f"<th>{name}</th>" for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>" if body else ""


def _results(results: Mapping[str, Any]) -> str:
    rows = [(_text(k), f"<b>{_text(v)}</b>") for k, v in results.items() if k != "unreadable"]
    lost = [(_text(row["id"]), _text(row["reason"])) for row in results.get("unreadable") or []]
    return _table(rows) + _table(lost, "unreadable video", "reason")


def _runs(workdir: epath.Path) -> str:
    rows = []
    for path in sorted(p for p in workdir.iterdir() if (p / "config.json").exists()):
        config, last = _json(path / "config.json"), last_values(path / "metrics.jsonl")
        name = _text(path.name)
        if (path / "report.html").exists():
            name = f'<a href="{urllib.parse.quote(path.name)}/report.html">{name}</a>'
        top1 = _json(path / "results.json").get("top1", "")
        cells = (config.get("task", ""), last.get("step", ""), last.get("loss", ""), top1)
        rows.append((name, *map(_text, cells)))
    return _table(rows, "run", "task", "steps", "last loss", "top-1, %")


def _config(config: Mapping[str, Any]) -> str:
    default = json.loads(json.dumps(keys.flat(keys.defaults())))
    changed = {k: v for k, v in keys.flat(config).items() if v != default.get(k)}
    return _table((map(_text, pair) for pair in changed.items()), "key", "where not the default")


def _figures(folder: epath.Path) -> str:
    found = {p.stem: p for p in folder.glob("*.png")} if folder.exists() else {}
    page = ""
    for name in dict.fromkeys([n for n in CAPTIONS if n in found] + sorted(found)):
        title = escape(CAPTIONS.get(name, name.replace("_", " ")))
        data = base64.b64encode(found[name].read_bytes()).decode()
        image = f'<img alt="{title}" src="data:image/png;base64,{data}">'
        page += f"<figure><figcaption>{title}</figcaption>{image}</figure>"
    return page


def write(workdir: epath.PathLike) -> epath.Path:
    """Writes `report.html` into a run directory from whatever of a run is there.

    Reads `summary.json` (title, lines), `config.json`, `metrics.jsonl`, `results.json`,
    `figures/*.png`, and one level of folders that have a `config.json` of their own. All of them
    may be missing.
    """
    root = epath.Path(workdir)
    summary, config = _json(root / "summary.json"), _json(root / "config.json")
    last = last_values(root / "metrics.jsonl")
    sections = {
        "Result": _results(_json(root / "results.json")),
        "Figures": _figures(root / "figures"),
        "Runs": _runs(root),
        "Last logged values": _table(map(_text, pair) for pair in last.items()),
        "Configuration": _config(config),
    }
    body = "".join(f"<p>{_text(line)}</p>\n" for line in summary.get("lines", []))
    body += "".join(f"<h2>{title}</h2>{part}\n" for title, part in sections.items() if part)
    path = root / "report.html"
    page = PAGE.substitute(
        title=_text(summary.get("title") or config.get("name") or root.name),
        subtitle=_text(config.get("task", "")),
        body=body or "<p>Nothing has been written to this run directory yet.</p>",
    )
    path.write_text(page)
    return path
