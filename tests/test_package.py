"""The package as a whole: its public names, its documentation, and that nothing it loads runs code."""

import ast
import importlib
import importlib.util
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import igc_nas

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "igc_nas").glob("*.py"))
TREES = {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in MODULES}


def project() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


# Public names.


def test_the_public_names_are_these() -> None:
    assert igc_nas.__all__ == sorted(igc_nas.__all__)
    assert set(igc_nas.__all__) == igc_nas._HOME.keys() | {"__version__"}
    assert list(igc_nas._HOME) == sorted(igc_nas._HOME)
    assert dir(igc_nas) == igc_nas.__all__


@pytest.mark.parametrize("name", igc_nas._HOME)
def test_a_public_name_is_what_its_module_defines(name: str) -> None:
    found = getattr(igc_nas, name)
    assert found is getattr(importlib.import_module(f"igc_nas.{igc_nas._HOME[name]}"), name)
    assert found.__module__ == f"igc_nas.{igc_nas._HOME[name]}"
    assert found.__doc__


def test_type_checkers_see_the_same_names() -> None:
    (block,) = (node for node in TREES["__init__"].body if isinstance(node, ast.If))
    seen = {
        alias.name: node.module.removeprefix("igc_nas.")
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == igc_nas._HOME


@pytest.mark.parametrize("name", ["nothing", "Sampler", "__path_", "cost_off"])
def test_an_unknown_name_is_an_attribute_error(name: str) -> None:
    with pytest.raises(AttributeError, match=f"has no attribute '{name}'"):
        getattr(igc_nas, name)


def test_importing_the_package_is_cheap() -> None:
    code = "import sys, igc_nas; print(sorted({'torch', 'optuna', 'pydantic', 'numpy', 'click'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_version_is_the_project_s() -> None:
    assert igc_nas.__version__ == project()["version"]


def test_the_command_is_the_entry_point() -> None:
    module, _, name = project()["scripts"]["igc-nas"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))


def test_the_package_is_typed() -> None:
    assert (ROOT / "igc_nas" / "py.typed").is_file()


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_a_module_says_what_it_is(tree: ast.Module) -> None:
    text = ast.get_docstring(tree)
    assert text
    assert text.splitlines()[0].strip()


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_every_import_of_ours_or_theirs_is_declared(tree: ast.Module) -> None:
    # SQLAlchemy is Optuna's, pydantic_core is pydantic's: both are there wherever these are.
    allowed = {"igc_nas", "sqlalchemy", "pydantic_core", *sys.stdlib_module_names, *_distributions()}
    roots = {alias.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
    roots |= {n.module.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}
    assert roots <= allowed


def _distributions() -> set[str]:
    """What pyproject.toml declares, by the names that are imported."""
    imported = {"nvidia-ml-py": "pynvml", "tomli-w": "tomli_w"}
    extras = [line for name, lines in project()["optional-dependencies"].items() if name != "dev" for line in lines]
    names = [re.split(r"[\[>]", line)[0] for line in [*project()["dependencies"], *extras]]
    return {imported.get(name, name) for name in names}


# Nothing that is loaded runs code.


FORBIDDEN_CALLS = {
    "eval", "exec", "compile", "__import__", "breakpoint",
    "torch.load", "torch.jit.load", "torch.hub.load", "torch.package",
    "os.system", "os.popen", "os.execv", "os.execvp", "os.spawnv",
    "pickle.load", "pickle.loads", "marshal.load", "marshal.loads", "shelve.open", "numpy.load", "np.load",
    "yaml.load", "joblib.load", "pandas.read_pickle", "pd.read_pickle", "runpy.run_path", "runpy.run_module",
}  # fmt: skip
FORBIDDEN_METHODS = {"extractall", "extract", "unpack_archive", "load_module", "exec_module"}
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "code", "runpy", "yaml"}


def name_of(node: ast.expr) -> str:
    """`torch.load` for `torch.load(...)`; what has no name is empty."""
    match node:
        case ast.Name(name):
            return name
        case ast.Attribute(value, attribute):
            return f"{name_of(value)}.{attribute}"
    return ""


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    return ((name_of(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call))


def modules_imported(tree: ast.AST) -> set[str]:
    found = {alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
    return found | {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_no_module_runs_what_it_reads(tree: ast.Module) -> None:
    for name, call in calls(tree):
        assert name not in FORBIDDEN_CALLS, f"line {call.lineno}: {name}"
        assert name.rpartition(".")[2] not in FORBIDDEN_METHODS, f"line {call.lineno}: {name}"


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_no_module_goes_through_a_shell(tree: ast.Module) -> None:
    for name, call in calls(tree):
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        assert "shell" not in given, f"line {call.lineno}: {name}"
        assert not name.endswith(("create_subprocess_shell", "getoutput", "getstatusoutput"))


def test_one_module_unpickles_and_it_takes_arrays_only() -> None:
    users = {name for name, tree in TREES.items() if modules_imported(tree) & FORBIDDEN_MODULES}
    assert users == {"fetch"}
    uses = {name_of(node) for node in ast.walk(TREES["fetch"]) if isinstance(node, ast.Attribute) and _of_pickle(node)}
    assert uses == {"pickle.Unpickler", "pickle.UnpicklingError"}
    (unpickler,) = (
        node
        for node in ast.walk(TREES["fetch"])
        if isinstance(node, ast.ClassDef) and "pickle.Unpickler" in map(name_of, node.bases)
    )
    assert "find_class" in {method.name for method in unpickler.body if isinstance(method, ast.FunctionDef)}
    from_pickle = [n for n in ast.walk(TREES["fetch"]) if isinstance(n, ast.ImportFrom) and n.module == "pickle"]
    assert from_pickle == []


def _of_pickle(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id == "pickle"


def test_these_checks_see_what_they_forbid() -> None:
    tree = ast.parse(
        "import torch, pickle\ntorch.load('x')\nsubprocess.run('x', shell=True)\nt.extractall()\neval('1')"
    )
    assert [name for name, _ in calls(tree)] == ["torch.load", "subprocess.run", "t.extractall", "eval"]
    assert "pickle" in modules_imported(tree)
