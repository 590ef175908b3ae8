"""Who may import whom, who sees what, and how long things are: one test for each rule."""

import ast
import collections
import functools
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
ROOMS = ("mvm", "input_pipeline", "configs")
FILES = [*(path for room in ROOMS for path in (ROOT / room).rglob("*.py")), ROOT / "main.py"]
PRODUCT = sorted(path.relative_to(ROOT).as_posix() for path in FILES)

# Lines of each room; the longest prefix counts.
LIMITS = {
    "main.py": 102,
    "configs": 1_166,
    "mvm/tasks": 1_756,
    "mvm/masking": 521,
    "mvm/models": 1_357,
    "mvm/runtime": 1_063,
    "mvm/weights": 876,
    "mvm/figures": 920,
    "mvm": 4_211,
    "input_pipeline/sources": 1_086,
    "input_pipeline/video": 540,
    "input_pipeline/transforms": 756,
    "input_pipeline/synthetic": 356,
    "input_pipeline": 2_123,
}
LONGEST_FILE = 350

# An import goes to a lower floor, or stays in its package.
FLOORS = [
    {"mvm.types"},
    {"mvm.config", "mvm.optim", "mvm.objectives"},
    {
        *("mvm.models", "mvm.runtime", "mvm.masking", "mvm.weights", "mvm.preprocess"),
        *("mvm.figures", "mvm.detections"),
    },
    {"mvm.data", "mvm.health"},
    {"mvm.tasks"},
    {"mvm.runs", "mvm.samples", "mvm.step", "mvm.log"},
    {"mvm.figures.gallery", "mvm.initial"},
    {"mvm.inference"},
    {"mvm.api", "mvm.compare", "mvm.convert", "mvm.evaluate"},
    {"mvm.frozen"},
    {"mvm.tasks.features", "mvm.tasks.knn", "mvm.tasks.probe"},
    {"mvm.train"},
    {"mvm.sweep"},
]
SEE_CONFIG = {"main.py"} | {
    f"mvm/{name}.py"
    for name in (
        *("train", "evaluate", "sweep", "runs", "api", "initial", "config", "convert"),
        *("inference", "frozen", "figures/gallery"),
        # As a dictionary that is saved or shown; that of a Hugging Face folder.
        *("runtime/checkpoint", "figures/report", "weights/huggingface"),
    )
}


def under(*prefixes):
    found = [path for path in PRODUCT if path.startswith(prefixes)]
    assert found, f"no file under {prefixes}"
    return found


@functools.cache
def tree_of(path):
    return ast.parse((ROOT / path).read_text())


def named(node):
    """Dotted names an import statement brings in; `from a import b` names `a` and `a.b`."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute here"
        return {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return set()


@functools.cache
def imports(path):
    return set().union(*(named(node) for node in ast.walk(tree_of(path))))


def imports_at_once(path):
    """What importing the module imports: all but what stands inside functions."""
    found, todo = set(), list(tree_of(path).body)
    while todo:
        node = todo.pop()
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            found |= named(node)
            todo += ast.iter_child_nodes(node)
    return found


def inside(name, *packages):
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def importing(paths, *packages, of=imports):
    """Files that import any of the packages."""
    return [path for path in paths if any(inside(name, *packages) for name in of(path))]


def test_nobody_imports_what_is_not_theirs():
    libraries = ("jax", "jaxlib", "flax", "optax", "orbax", "torch", "tensorflow")
    assert importing(under("input_pipeline/"), *libraries, "mvm") == []
    assert importing(under("mvm/models/"), "mvm.masking", "mvm.runtime") == []
    # Nothing imports configurations, which import the list of keys alone.
    assert importing(under("mvm/", "input_pipeline/", "main.py"), "configs") == []
    for path in under("configs/"):
        allowed = ("mvm.config", "ml_collections", "configs", *sys.stdlib_module_names)
        assert [n for n in imports(path) if not inside(n, *allowed) and n != "mvm"] == [], path
    # PyTorch and TensorFlow are never needed.
    libraries = ("torch", "transformers", "tensorflow")
    assert importing(under("mvm/"), *libraries, of=imports_at_once) == []
    # Strategies know no model but blocks.
    for path in under("mvm/masking/"):
        models = {name for name in imports(path) if inside(name, "mvm.models")} - {"mvm.models"}
        assert all(inside(n, "mvm.models.vit") for n in models), path
    # Runs meet the input pipeline in one file; beside it: class names; figures and single videos.
    meeting = importing(under("mvm/"), "input_pipeline")
    assert set(meeting) <= {"mvm/data.py", "mvm/initial.py", "mvm/samples.py"}


def test_no_private_name_of_a_library_is_used():
    private = [
        (path, name)
        for path in PRODUCT
        for name in imports(path)
        if any(part.startswith("_") for part in name.split(".")) and name != "__future__"
    ]
    assert private == []


def floor_of(name):
    known = {n: i for i, floor in enumerate(FLOORS) for n in floor if inside(name, n)}
    return known[max(known, key=len)] if known else None


def test_imports_go_down():
    up = []
    for path in under("mvm/"):
        own = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in imports_at_once(path):
            floor, theirs = floor_of(own), floor_of(name)
            if None not in (floor, theirs) and theirs > floor:
                up.append((path, name))
    assert up == []


def test_the_configuration_stays_at_the_door():
    """Below, functions get values; a task's `build` takes them out."""
    seeing = {
        path
        for path in under("mvm/")
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.arg) and node.arg == "config"
    }
    assert {path for path in seeing if not path.startswith("mvm/tasks/")} <= SEE_CONFIG


def test_nobody_asks_which_task_or_strategy_it_is():
    asking = [
        (path, ast.unparse(node))
        for path in under("mvm/", "main.py")
        if not path.startswith(("mvm/tasks/", "mvm/masking/"))
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Compare)
        and ast.unparse(node.left).endswith((".task", "strategy.name"))
    ]
    assert asking == []


def test_rooms_and_files_keep_their_size():
    lines = {path: len((ROOT / path).read_text().splitlines()) for path in PRODUCT}
    rooms = collections.Counter()
    for path, n in lines.items():
        rooms[max((room for room in LIMITS if path.startswith(room)), key=len)] += n
    full = [f"{room}/ has {n} of {LIMITS[room]}" for room, n in rooms.items() if n > LIMITS[room]]
    full += [f"{path} has {n} of {LONGEST_FILE}" for path, n in lines.items() if n > LONGEST_FILE]
    assert not full, "delete or split; or, where a room has a reason to grow, raise LIMITS"
