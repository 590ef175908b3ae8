"""Who may import whom, read from the source."""

import ast
import pathlib

import pytest

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


@pytest.mark.parametrize("path", under("input_pipeline/"))
def test_the_input_pipeline_knows_neither_jax_nor_the_models(path):
    forbidden = {"jax", "jaxlib", "flax", "optax", "orbax", "mvm", "torch", "tensorflow"}
    assert not packages(imports(path)) & forbidden


@pytest.mark.parametrize("path", under("configs/"))
def test_configs_import_the_list_of_keys_alone(path):
    others = {name for name in imports(path) if not inside([name], "mvm.config")}
    assert packages(others) <= {"ml_collections", "configs", "typing", "collections"}


@pytest.mark.parametrize("path", under("mvm/", "input_pipeline/", "main.py"))
def test_nothing_imports_configs(path):
    assert not inside(imports(path), "configs")


@pytest.mark.parametrize("path", under("mvm/"))
def test_torch_is_never_needed(path):
    assert not packages(imports_at_once(path)) & {"torch", "transformers", "tensorflow"}


@pytest.mark.parametrize("path", under("mvm/types.py", "mvm/tubelets.py"))
def test_the_bottom_imports_only_what_is_below(path):
    below = {"mvm/types.py": set(), "mvm/tubelets.py": {"mvm.types"}}[path]
    ours = {name for name in imports(path) if name.startswith("mvm.") and name[4].islower()}
    assert {".".join(name.split(".")[:2]) for name in ours} <= below


@pytest.mark.parametrize("path", under("mvm/masking/"))
def test_a_strategy_knows_no_model_but_its_own_sampler(path):
    models = {name for name in imports(path) if name.startswith("mvm.models")}
    assert models <= {"mvm.models", "mvm.models.sampler", "mvm.models.vit"}
    upward = {"mvm.tasks", "mvm.train_step", "mvm.trainer", "mvm.data", "mvm.optim", "mvm.state"}
    assert not imports(path) & upward


@pytest.mark.parametrize("path", under("mvm/models/"))
def test_models_are_handed_a_strategy_and_choose_none(path):
    assert not inside(imports(path), "mvm.masking")
    upward = {"mvm.tasks", "mvm.train_step", "mvm.trainer", "mvm.data", "mvm.sharding"}
    assert not imports(path) & upward


@pytest.mark.parametrize("path", under("mvm/"))
def test_the_core_meets_the_input_pipeline_in_two_files(path):
    meeting = ("mvm/data.py", "mvm/samples.py")  # For runs; for figures and single videos.
    assert inside(imports(path), "input_pipeline") == (path in meeting)


def test_the_door_takes_only_errors_from_the_input_pipeline():
    taken = {name for name in imports("main.py") if name.startswith("input_pipeline.")}
    assert {name.split(".")[2] for name in taken if name.count(".") == 2} <= {
        "DataError",
        "VideoError",
    }


SHELL = {
    "main.py",
    "mvm/checkpoint.py",
    "mvm/data.py",
    "mvm/evaluate.py",
    "mvm/gallery.py",
    "mvm/hosts.py",
    "mvm/sharding.py",
    "mvm/stages.py",
    "mvm/start.py",
    "mvm/trainer.py",
}
DEVICES = {"devices", "local_devices", "device_count", "local_device_count"}
DEVICES |= {"process_index", "process_count", "make_mesh", "Mesh", "NamedSharding"}


def names_used(path):
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield node.value.id, node.attr
        for name in named(node):
            yield tuple(name.rsplit(".", 1)) if "." in name else ("", name)


@pytest.mark.parametrize("path", sorted(set(PRODUCT) - SHELL))
def test_only_the_shell_speaks_of_devices_and_processes(path):
    used = {name for owner, name in names_used(path) if owner in ("jax", "jax.sharding")}
    assert not used & DEVICES


def test_meshes_are_made_in_one_file():
    made = {
        path
        for path in PRODUCT
        for owner, name in names_used(path)
        if owner in ("jax", "jax.sharding") and name in ("make_mesh", "Mesh", "NamedSharding")
    }
    assert made == {"mvm/sharding.py"}


@pytest.mark.parametrize("path", under("mvm/models/", "mvm/train_step.py", "mvm/tasks.py"))
def test_no_model_or_step_asks_for_a_strategy_by_name(path):
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Compare):
            text = ast.unparse(node)
            assert ".name ==" not in text, text


@pytest.mark.parametrize("path", under("mvm/", "input_pipeline/", "configs/"))
def test_flags_live_at_the_door(path):
    assert not inside(imports(path), "absl.flags")
