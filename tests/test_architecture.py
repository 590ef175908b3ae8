"""Who may import whom, read from the source."""

import ast
import functools
import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent
PRODUCT = [
    *sorted(
        path.relative_to(ROOT).as_posix()
        for folder in ("mvm", "input_pipeline", "configs")
        for path in (ROOT / folder).rglob("*.py")
    ),
    "main.py",
]


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


def packages(names):
    return {name.split(".")[0] for name in names}


def inside(names, package):
    """Whether any name is the package or lies in it."""
    return any(name == package or name.startswith(f"{package}.") for name in names)


def test_the_input_pipeline_knows_neither_jax_nor_the_models():
    forbidden = {"jax", "jaxlib", "flax", "optax", "orbax", "mvm", "torch", "tensorflow"}
    assert not [p for p in under("input_pipeline/") if packages(imports(p)) & forbidden]


def test_configs_import_the_list_of_keys_alone():
    allowed = {"ml_collections", "configs", "typing", "collections"}
    for path in under("configs/"):
        others = {name for name in imports(path) if not inside([name], "mvm.config")}
        assert packages(others) <= allowed, path


def test_nothing_imports_configs():
    paths = under("mvm/", "input_pipeline/", "main.py")
    assert not [p for p in paths if inside(imports(p), "configs")]


def test_torch_is_never_needed():
    forbidden = {"torch", "transformers", "tensorflow"}
    assert not [p for p in under("mvm/") if packages(imports_at_once(p)) & forbidden]


def test_the_bottom_imports_only_what_is_below():
    for path, below in {"mvm/types.py": set(), "mvm/models/tubelets.py": {"mvm.types"}}.items():
        ours = {name for name in imports(path) if name.startswith("mvm.") and name[4].islower()}
        assert {name for name in ours if name.rsplit(".", 1)[-1][0].islower()} <= below, path


UPWARD = {"mvm.tasks", "mvm.step", "mvm.train", "mvm.data"}


def test_a_strategy_knows_no_model_but_its_own_sampler():
    for path in under("mvm/masking/"):
        models = {name for name in imports(path) if name.startswith("mvm.models")}
        assert models <= {"mvm.models", "mvm.models.sampler", "mvm.models.vit"}, path
        assert not imports(path) & (UPWARD | {"mvm.optim", "mvm.state"}), path


def test_models_are_handed_a_strategy_and_choose_none():
    for path in under("mvm/models/"):
        assert not inside(imports(path), "mvm.masking"), path
        assert not imports(path) & (UPWARD | {"mvm.runtime.sharding"}), path


def test_the_core_meets_the_input_pipeline_in_three_files():
    # For runs; for class names; for figures and single videos.
    meeting = [path for path in under("mvm/") if inside(imports(path), "input_pipeline")]
    assert meeting == ["mvm/data.py", "mvm/labels.py", "mvm/samples.py"]


def test_the_door_takes_only_errors_from_the_input_pipeline():
    taken = {name for name in imports("main.py") if name.startswith("input_pipeline.")}
    classes = {name.split(".")[-1] for name in taken if name.split(".")[-1][0].isupper()}
    assert classes <= {"DataError", "VideoError"}


SHELL = {
    "main.py",
    "mvm/runtime/checkpoint.py",
    "mvm/data.py",
    "mvm/evaluate.py",
    "mvm/figures/gallery.py",
    "mvm/runtime/multihost.py",
    "mvm/runtime/sharding.py",
    "mvm/sweep.py",
    "mvm/log.py",
    "mvm/train.py",
    "mvm/runs.py",
}
DEVICES = {"devices", "local_devices", "device_count", "local_device_count"}
DEVICES |= {"process_index", "process_count", "make_mesh", "Mesh", "NamedSharding"}


def names_used(path):
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield node.value.id, node.attr
        for name in named(node):
            yield tuple(name.rsplit(".", 1)) if "." in name else ("", name)


def test_only_the_shell_speaks_of_devices_and_processes():
    for path in set(PRODUCT) - SHELL:
        used = {name for owner, name in names_used(path) if owner in ("jax", "jax.sharding")}
        assert not used & DEVICES, path


def test_meshes_are_made_in_one_file():
    made = {
        path
        for path in PRODUCT
        for owner, name in names_used(path)
        if owner in ("jax", "jax.sharding") and name in ("make_mesh", "Mesh", "NamedSharding")
    }
    assert made == {"mvm/runtime/sharding.py"}


def test_no_model_or_step_asks_for_a_strategy_by_name():
    for path in under("mvm/models/", "mvm/step.py", "mvm/tasks.py"):
        compared = [n for n in ast.walk(tree_of(path)) if isinstance(n, ast.Compare)]
        assert not [node for node in compared if ".name ==" in ast.unparse(node)], path


def test_flags_live_at_the_door():
    paths = under("mvm/", "input_pipeline/", "configs/")
    assert not [p for p in paths if inside(imports(p), "absl.flags")]
