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

from mvm import config as schema
from mvm.runtime.metrics import last_values

CAPTIONS = {
    "accuracies": "Accuracy of each arm",
    "compute": "Accuracy against compute",
    "strategies": "What each strategy chose of the same clips",
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
:root{color-scheme:light dark;--paper:#f6f7f9;--card:#fff;--ink:#1b2330;--muted:#5d6778;
--rule:#e1e5eb;--accent:#0072b2}
@media(prefers-color-scheme:dark){:root{--paper:#11151c;--card:#1a2029;--ink:#e6e9ef;
--muted:#9aa5b5;--rule:#2b3340;--accent:#6fb9e6}}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.55 system-ui,sans-serif}
main{max-width:1020px;margin:0 auto;padding:44px 20px 64px}
h1{font-size:29px;line-height:1.2;margin:0 0 4px;overflow-wrap:anywhere}
h2{font-size:17px;margin:38px 0 12px}
p{margin:0 0 6px;max-width:72ch}.muted,summary,th{color:var(--muted);font-weight:500}
a{color:var(--accent)}
.card,figure{background:var(--card);border:1px solid var(--rule);border-radius:10px;
overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:7px 18px;text-align:left;vertical-align:top}
tr+tr>*,thead+tbody tr>*{border-top:1px solid var(--rule)}
code,pre{font:13px/1.5 ui-monospace,monospace}pre{margin:10px 0 0;overflow-x:auto}
details{margin-top:12px}summary{cursor:pointer;font-size:13px}
figure{margin:0 0 18px;padding:16px;background:#fff;color:#1b2330;break-inside:avoid}
figure img{display:block;max-width:100%;height:auto;margin:10px auto 0}
figcaption{font-weight:600}
</style></head>
<body><main>
<h1>$title</h1><p class="muted">$subtitle</p>
$body
</main></body></html>
""")


def _json(path: epath.Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text()) if path.exists() else {}
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}); repair or delete it") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, not an object; rewrite it")
    return value


def _text(value: Any) -> str:
    """A value as escaped HTML: numbers to four digits, strings as they are, the rest as JSON."""
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.4g}"
    return escape(value if isinstance(value, str) else json.dumps(value, default=str))


def _table(rows: Iterable[Iterable[str]], head: Iterable[str] = ()) -> str:
    """A table of cells that are HTML already; empty without rows."""
    top = "".join(f"<th>{name}</th>" for name in head)
    top = f"<thead><tr>{top}</tr></thead>" if top else ""
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="card"><table>{top}<tbody>{body}</tbody></table></div>' if body else ""


def _details(title: str, body: str) -> str:
    return f"<details><summary>{title}</summary>{body}</details>" if body else ""


def _arms(summary: Mapping[str, Any]) -> str:
    """The accuracies of each arm and the TFLOP of its pre-training."""
    rows = []
    for name, seeds in summary.get("accuracies", {}).items():
        mean = f"{sum(seeds) / len(seeds):.1f}" if seeds else "no seed yet"
        spent = summary.get("compute", {}).get(name)
        each = ", ".join(f"{value:.1f}" for value in seeds)
        rows.append((_text(name), f"<b>{mean}</b>", each, _text(float(spent)) if spent else ""))
    return _table(rows, ("arm", "mean accuracy, %", "seeds", "pre-training, TFLOP"))


def _results(results: Mapping[str, Any]) -> str:
    rows = [(_text(k), f"<b>{_text(v)}</b>") for k, v in results.items() if k != "unreadable"]
    lost = [(_text(row["id"]), _text(row["reason"])) for row in results.get("unreadable") or []]
    return _table(rows) + _details("unreadable videos", _table(lost, ("video", "reason")))


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
    return _table(rows, ("run", "task", "steps", "last loss", "top-1, %"))


def _config(config: Mapping[str, Any]) -> str:
    """What differs from the defaults, and below it everything."""
    if not config:
        return ""
    flat, default = schema.flat(config), json.loads(json.dumps(schema.flat(schema.defaults())))
    rows = [(_text(k), _text(v)) for k, v in flat.items() if v != default.get(k)]
    whole = escape(json.dumps(config, indent=2, default=str))
    table = _table(rows, ("key", "where it is not the default"))
    return table + _details("every key", f"<pre>{whole}</pre>")


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

    Reads `summary.json` (title, lines, accuracies in percent, compute in TFLOP), `config.json`,
    `metrics.jsonl`, `results.json` (accuracies in percent), `figures/*.png`, and one level of
    folders that have a `config.json` of their own. All of them may be missing. The page needs
    nothing outside itself.

    Raises:
        ValueError: if a JSON file cannot be read; names it.
    """
    root = epath.Path(workdir)
    summary, config = _json(root / "summary.json"), _json(root / "config.json")
    last = last_values(root / "metrics.jsonl")
    sections = {
        "Accuracy": _arms(summary),
        "Result": _results(_json(root / "results.json")),
        "Figures": _figures(root / "figures"),
        "Runs": _runs(root),
        "Last logged values": _table((_text(k), _text(v)) for k, v in last.items()),
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
