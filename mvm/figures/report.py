"""One page for one run: `report.html`, self-contained, from what lies in the run directory."""

import base64
import json
import math
import urllib.parse
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from etils import epath

from mvm import config as keys
from mvm.runtime.metrics import last_values

CAPTIONS = {
    "accuracies": "Accuracy of each arm",
    "compute": "Accuracy against compute",
    "strategies": "What each strategy chose of the same clips",
    "curves": "Training",
    "frames": "Which frames were kept",
    "masks": "What the masking chose",
    "reconstruction": "What the model rebuilt",
    "per_class": "Accuracy of each class",
    "clips": "The data",
}
SECTIONS = ("name", "task", "data", "model", "mask", "optim")
SCORES = {"top1": "top-1", "top5": "top-5", "mean_class": "class mean"}
CSS = """
:root{color-scheme:light dark;--paper:#f6f7f9;--card:#fff;--ink:#1b2330;--muted:#5d6778;
--rule:#e1e5eb;--accent:#0072b2;--bar:#cce3f0;--code:#f1f3f6}
@media(prefers-color-scheme:dark){:root{--paper:#11151c;--card:#1a2029;--ink:#e6e9ef;
--muted:#9aa5b5;--rule:#2b3340;--accent:#6fb9e6;--bar:#1d4d6b;--code:#222935}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Liberation Sans",sans-serif}
main{max-width:1020px;margin:0 auto;padding:44px 20px 64px}
h1{font-size:29px;line-height:1.2;letter-spacing:-.015em;margin:0 0 4px;overflow-wrap:anywhere}
h2{font-size:17px;letter-spacing:-.005em;margin:38px 0 12px}
p{margin:0 0 6px;max-width:72ch}.muted,figcaption{color:var(--muted)}.lead{margin-top:18px}
section>p.muted{font-size:13px;margin-top:8px}
a{color:var(--accent);text-decoration-thickness:1px;text-underline-offset:2px}
.tiles{display:flex;flex-wrap:wrap;gap:12px}
.tile,.card{background:var(--card);border:1px solid var(--rule);border-radius:10px}
.tile{padding:12px 18px 10px;min-width:124px}.tile b{display:block;font-size:25px;line-height:1.25;
font-weight:650;font-variant-numeric:tabular-nums}.tile span{color:var(--muted);font-size:13px}
.small .tile b{font-size:18px}
.card{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:7px 16px;text-align:left;vertical-align:top;border-top:1px solid var(--rule)}
tr:first-child>*{border-top:0}thead th,tbody th{font-weight:500;color:var(--muted)}
thead th{font-size:13px;padding-bottom:5px}thead+tbody tr:first-child>*{border-top:1px solid
var(--rule)}td.n,th.n{text-align:right}td{overflow-wrap:break-word}td.n{white-space:nowrap}
.meter{position:relative;height:10px;margin-top:7px;min-width:120px;background:var(--code);
border-radius:3px}.meter i{display:block;height:100%;background:var(--accent);border-radius:3px}
code{font:13px/1.5 ui-monospace,Menlo,"Liberation Mono",monospace}
.pair{display:inline-block;margin:0 16px 0 0}.pair span{color:var(--muted)}
details{margin-top:12px}summary{cursor:pointer;color:var(--muted);font-size:13px}
pre{margin:10px 0 0;padding:14px 16px;overflow-x:auto;background:var(--code);border-radius:8px;
font:12.5px/1.55 ui-monospace,Menlo,"Liberation Mono",monospace}
figure{margin:0 0 18px;padding:16px 16px 12px;background:#fff;border:1px solid var(--rule);
border-radius:10px}figure img{display:block;max-width:100%;height:auto;margin:0 auto}
figcaption{font-weight:600;font-size:14px;color:#1b2330;margin:0 0 10px}
@media(max-width:640px){main{padding-top:28px}th,td{padding:7px 10px}.meter{display:none}}
@media print{body{background:#fff}figure,.card,.tile{break-inside:avoid}}
"""


def _json(path: epath.Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}); repair or delete it") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, not an object; rewrite it")
    return value


def flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves of a nested dict by dotted name, without those that are `None` or empty."""
    return {k: v for k, v in keys.flat(tree).items() if v is not None and v != "" and v != []}


def _text(value: Any) -> str:
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _percent(value: Any) -> str:
    return f"{value:.1f}%" if isinstance(value, (int, float)) else "–"  # noqa: RUF001


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>" if body else ""


def _table(head: Iterable[str], rows: Iterable[Iterable[str]], numbers: Iterable[int] = ()) -> str:
    """A table of cells that are HTML already; the columns in `numbers` are set to the right."""
    right = {i: ' class="n"' for i in numbers}
    top = "".join(f"<th{right.get(i, '')}>{escape(name)}</th>" for i, name in enumerate(head))
    body = ""
    for row in rows:
        cells = "".join(f"<td{right.get(i, '')}>{cell}</td>" for i, cell in enumerate(row))
        body += f"<tr>{cells}</tr>"
    top = f"<thead><tr>{top}</tr></thead>" if top else ""
    return f'<div class="card"><table>{top}<tbody>{body}</tbody></table></div>' if body else ""


def _tiles(pairs: Iterable[tuple[str, str]], kind: str = "") -> str:
    """Cards of a value over its name, from plain text."""
    tiles = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>'
        for value, name in pairs
    )
    return f'<div class="tiles {kind}">{tiles}</div>' if tiles else ""


def _arms(accuracies: Mapping[str, Iterable[float]], compute: Mapping[str, float]) -> str:
    """Of each arm its accuracies and, where it is known, the TFLOP of its pre-training."""
    rows = []
    for name, values in accuracies.items():
        seeds = list(values)
        mean = sum(seeds) / len(seeds) if seeds else 0.0
        width = min(100.0, max(0.0, mean))
        rows.append(
            (
                escape(name),
                f'<div class="meter"><i style="width:{width:.1f}%"></i></div>',
                f"<b>{_percent(mean) if seeds else 'no seed yet'}</b>",
                escape(", ".join(f"{value:.1f}" for value in seeds)),
                f"{compute[name]:.1f}" if compute.get(name) else "",
            )
        )
    if not any(compute.values()):
        return _table(("arm", "", "mean accuracy", "seeds"), (r[:4] for r in rows), (2, 3))
    head = ("arm", "", "mean accuracy", "seeds", "pre-training, TFLOP")
    return _table(head, rows, numbers=(2, 3, 4))


def _results(results: Mapping[str, Any]) -> str:
    tiles = [(_percent(results[key]), name) for key, name in SCORES.items() if key in results]
    names = {"num_videos": "videos", "num_unreadable": "unreadable", "views": "views"}
    tiles += [(_text(results[key]), name) for key, name in names.items() if key in results]
    page = _tiles(tiles)
    lost = results.get("unreadable") or []
    if lost:
        rows = [(f"<code>{escape(str(r['id']))}</code>", escape(str(r["reason"]))) for r in lost]
        table = _table(("video", "reason"), rows)
        page += f"<details><summary>{len(lost)} unreadable videos</summary>{table}</details>"
    return page


def _runs(workdir: epath.Path) -> str:
    rows = []
    for path in sorted(p for p in workdir.iterdir() if (p / "config.json").exists()):
        config, last = _json(path / "config.json"), last_values(path / "metrics.jsonl")
        name = escape(str(config.get("name") or path.name))
        if (path / "report.html").exists():
            name = f'<a href="{urllib.parse.quote(path.name)}/report.html">{name}</a>'
        results = _json(path / "results.json")
        top1 = _percent(results["top1"]) if "top1" in results else ""
        cells = (config.get("task", ""), last.get("step", ""), last.get("loss", ""), top1)
        rows.append((name, f"<code>{escape(path.name)}</code>", *(escape(_text(c)) for c in cells)))
    return _table(("run", "folder", "task", "steps", "last loss", "top-1"), rows, (3, 4, 5))


def _config(config: Mapping[str, Any]) -> str:
    rows = []
    for key in SECTIONS:
        value = config.get(key)
        if isinstance(value, Mapping):
            pairs = flat(value).items()
            cell = " ".join(
                f'<code class="pair"><span>{escape(str(k))}</span> {escape(_text(v))}</code>'
                for k, v in pairs
            )
        else:
            cell = "" if value is None else f"<code>{escape(_text(value))}</code>"
        if cell:
            rows.append((escape(key), cell))
    whole = escape(json.dumps(config, indent=2, default=str))
    details = f"<details><summary>every key</summary><pre>{whole}</pre></details>"
    return _table((), rows) + details if config else ""


def _figures(folder: epath.Path) -> str:
    found = [p for p in folder.iterdir() if p.name.endswith(".png")] if folder.exists() else []
    known = list(CAPTIONS)
    found.sort(key=lambda p: (known.index(p.stem) if p.stem in known else len(known), p.name))
    page = ""
    for path in found:
        title = escape(CAPTIONS.get(path.stem, path.stem.replace("_", " ")))
        data = base64.b64encode(path.read_bytes()).decode()
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
        FileNotFoundError: if there is no such directory; names it.
        ValueError: if a JSON file cannot be read; names it.
    """
    root = epath.Path(workdir)
    if not root.is_dir():
        raise FileNotFoundError(f"no run directory {root}; give the --workdir of a run")
    summary, config = _json(root / "summary.json"), _json(root / "config.json")
    last, runs = last_values(root / "metrics.jsonl"), _runs(root)
    title = escape(str(summary.get("title") or config.get("name") or root.name))
    under = [str(config["task"])] if "task" in config else []
    under += [f"step {_text(last['step'])}"] if "step" in last else []
    lines = "".join(f"<p>{escape(str(line))}</p>" for line in summary.get("lines", []))
    values = [(_text(value), key.replace("_", " ")) for key, value in flat(last).items()]
    page = [
        f'<header><h1>{title}</h1><p class="muted">{escape(" · ".join(under))}</p>',
        f'<div class="lead">{lines}</div></header>' if lines else "</header>",
        _section("Accuracy", _arms(summary.get("accuracies", {}), summary.get("compute", {}))),
        _section("Result", _results(_json(root / "results.json"))),
        _section("Figures", _figures(root / "figures")),
        _section("Runs", runs),
        _section("Last logged values", _tiles(values, "small")),
        _section("Configuration", _config(config)),
    ]
    body = "\n".join(part for part in page if part)
    if "<section>" not in body and not lines:
        body += '\n<p class="muted">Nothing has been written to this run directory yet.</p>'
    head = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{title}</title><style>{CSS}</style></head>"
    )
    path = root / "report.html"
    path.write_text(f"{head}\n<body><main>\n{body}\n</main></body></html>\n")
    return path
