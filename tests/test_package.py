"""The package as a whole: its public names, its documentation, what it imports."""

import ast
import importlib
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import igc_nas

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "igc_nas").rglob("*.py"))
TREES = {path.relative_to(ROOT / "igc_nas").as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in MODULES}


def project() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


# Public names.


def test_the_public_names_are_these() -> None:
    assert igc_nas.__all__ == sorted(igc_nas.__all__)
    assert set(igc_nas.__all__) == igc_nas._HOME.keys() | {"__version__"}
    assert list(igc_nas._HOME) == sorted(igc_nas._HOME)
    assert dir(igc_nas) == igc_nas.__all__


def test_the_first_page_of_the_reference_names_what_there_is() -> None:
    assert igc_nas.__doc__ is not None
    assert set(igc_nas._HOME) <= set(re.findall(r"\w+", igc_nas.__doc__))


@pytest.mark.parametrize("name", igc_nas._HOME)
def test_a_public_name_is_what_its_module_defines(name: str) -> None:
    found = getattr(igc_nas, name)
    assert found is getattr(importlib.import_module(f"igc_nas.{igc_nas._HOME[name]}"), name)
    assert found.__module__ == f"igc_nas.{igc_nas._HOME[name]}"
    assert found.__doc__


def test_type_checkers_see_the_same_names() -> None:
    (block,) = (node for node in TREES["__init__.py"].body if isinstance(node, ast.If))
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
    code += "; import igc_nas.engine.search; print('torch' in sys.modules)"  # an evaluator of the user's may need none
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "False"]


def test_the_version_is_the_distributions() -> None:
    assert igc_nas.__version__ == importlib.metadata.version("igc-nas")


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
    # SQLAlchemy and tqdm are Optuna's, pydantic_core is pydantic's, IPython a notebook's: each is there where they are.
    # Triton comes with torch's CUDA builds; without it nothing of it is imported.
    theirs = {"sqlalchemy", "tqdm", "pydantic_core", "IPython", "triton", "_typeshed"}  # _typeshed is mypy's alone
    allowed = {"igc_nas", *theirs, *sys.stdlib_module_names, *_distributions()}
    roots = {alias.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
    roots |= {n.module.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}
    assert roots <= allowed


def _distributions() -> set[str]:
    """What pyproject.toml declares, by the names that are imported."""
    imported = {
        "nvidia-ml-py": "pynvml",
        "pillow": "PIL",
        "tomli-w": "tomli_w",
        "optuna-integration": "optuna_integration",
    }
    extras = [line for name, lines in project()["optional-dependencies"].items() if name != "dev" for line in lines]
    names = [re.split(r"[\[>]", line)[0] for line in [*project()["dependencies"], *extras]]
    return {imported.get(name, name.replace("-", "_")) for name in names}
