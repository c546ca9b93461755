"""What no file of igc-nas may do: run what it reads. Each rule is shown to find what it is for."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import igc_nas

PACKAGE = Path(igc_nas.__file__).parent

FORBIDDEN_MODULES = {
    "pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "dbm", "yaml", "code",
    "codeop", "pty", "pdb", "torch.jit", "torch.package",
}  # fmt: skip
FORBIDDEN_CALLS = {
    "eval", "exec", "compile", "__import__", "breakpoint", "os.system", "os.popen", "os.startfile", "os.posix_spawn",
    "os.posix_spawnp", "subprocess.getoutput", "subprocess.getstatusoutput", "tempfile.mktemp", "yaml.load",
    "runpy.run_path", "runpy.run_module", "shutil.unpack_archive", "pandas.read_pickle", "pd.read_pickle",
    "np.fromregex", "torch.hub.load", "torch.export.load", "torch.jit.load", "torch.package.PackageImporter",
    "importlib.util.spec_from_file_location",
    *(f"os.exec{kind}" for kind in ("l", "le", "lp", "lpe", "v", "ve", "vp", "vpe")),
    *(f"os.spawn{kind}" for kind in ("l", "le", "lp", "lpe", "v", "ve", "vp", "vpe")),
}  # fmt: skip
FORBIDDEN_METHODS = {"extractall", "read_pickle", "to_pickle"}
FORBIDDEN_NAMES = {"CmaEsSampler", "JournalStorage"}
"""Optuna's CmaEsSampler unpickles what is in the database; one torn line makes a journal unreadable for ever."""

ALLOWED = {
    # Whether a person's own evaluator can be sent to a worker is tried by writing it; nothing is read.
    ("engine/process_executor.py", "", "pickle"),
    ("engine/process_executor.py", "_imports_main", "pickle.dumps"),
    ("engine/process_executor.py", "_imports_main", "pickle.PicklingError"),
    ("nn/device.py", "keep_freed_memory", "ctypes.CDLL"),  # glibc's mallopt, in this process
    ("bench/executorch.py", "executorch_runner", "importlib.import_module"),  # packages named in the code
    ("bench/executorch.py", "require_executorch", "importlib.import_module"),
    # The one unpickler: of CIFAR's python files, restricted to arrays, once their hash is the official one.
    ("data/fetch.py", "", "pickle"),
    ("data/fetch.py", "_ArraysOnly", "pickle.Unpickler"),
    ("data/fetch.py", "_ArraysOnly.find_class", "pickle.UnpicklingError"),
    # Names of our own modules, and of the runtimes that `--runtime` offers.
    ("__init__.py", "__getattr__", "importlib.import_module"),
    ("evaluation/runtimes.py", "require", "importlib.import_module"),
    # Ray, where a cluster is asked for.
    ("engine/ray/executor.py", "RayExecutor._start", "importlib.import_module"),
    ("engine/ray/nodes.py", "_silent", "importlib.import_module"),
    ("engine/ray/nodes.py", "_ray", "importlib.import_module"),
    ("engine/ray/nodes.py", "_found", "importlib.import_module"),
    # What has been written a moment ago, read back to be compared.
    ("exports/graph.py", "_pt2_reader", "torch.export.load"),
    # Our own C, compiled for this processor; kept in a folder to which only the user may write.
    ("nn/c_compiler.py", "load", "ctypes.CDLL"),
}
"""(file, function, what), each of which is there."""

Finding = tuple[str, str]
"""(function, what)."""


def findings(source: str) -> Iterator[Finding]:
    """All that a file does of what is forbidden, in order."""
    yield from _Gate().walked(ast.parse(source), ())


class _Gate:
    def __init__(self) -> None:
        self._known: dict[str, str] = {}  # `from os import system as s`: s is os.system

    def walked(self, node: ast.AST, scope: tuple[str, ...]) -> Iterator[Finding]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inner = (*scope, node.name)
        else:
            inner = scope
        for what in self._wrong(node):
            yield ".".join(inner), what
        for child in ast.iter_child_nodes(node):
            yield from self.walked(child, inner)

    def _wrong(self, node: ast.AST) -> Iterator[str]:
        match node:
            case ast.Import(names):
                for name in names:
                    self._known[name.asname or name.name.partition(".")[0]] = (
                        name.name if name.asname else name.name.partition(".")[0]
                    )
                    yield from self._module(name.name)
            case ast.ImportFrom(module=str(module), names=names):
                yield from self._module(module)
                for name in names:
                    self._known[name.asname or name.name] = f"{module}.{name.name}"
                    yield from self._name(f"{module}.{name.name}")
            case ast.Attribute() | ast.Name():
                yield from self._name(self._dotted(node))
            case ast.Call():
                yield from self._call(node)

    def _module(self, name: str) -> Iterator[str]:
        if name in FORBIDDEN_MODULES or name.partition(".")[0] in FORBIDDEN_MODULES:
            yield name

    def _name(self, name: str) -> Iterator[str]:
        last = name.rpartition(".")[2]
        if (
            name in FORBIDDEN_CALLS
            or name.removeprefix("builtins.") in FORBIDDEN_CALLS
            or last in FORBIDDEN_NAMES
            or (last in FORBIDDEN_METHODS and "." in name)
            or (name.partition(".")[0] in FORBIDDEN_MODULES and "." in name)
            or name == "importlib.import_module"
        ):
            yield name

    def _call(self, call: ast.Call) -> Iterator[str]:
        name = self._dotted(call.func)
        given = {keyword.arg: keyword.value for keyword in call.keywords}

        def is_true(key: str) -> bool:
            value = given.get(key)
            return isinstance(value, ast.Constant) and value.value is True

        def may_be_true(key: str) -> bool:
            return key in given and not (isinstance(given[key], ast.Constant) and not given[key].value)

        if name in ("ctypes.CDLL", "ctypes.PyDLL", "ctypes.cdll.LoadLibrary"):
            yield name
        if name == "torch.load" and not is_true("weights_only"):
            yield "torch.load without weights_only=True"
        if may_be_true("allow_pickle"):
            yield f"{name} with allow_pickle"
        if may_be_true("shell"):
            yield f"{name} with a shell"
        if name.endswith(".extract") and not name.startswith("re."):
            yield name
        if None in given and name in ("torch.load", "np.load", "numpy.load", "subprocess.run", "subprocess.Popen"):
            yield f"{name} with arguments that cannot be seen"

    def _dotted(self, node: ast.expr) -> str:
        """`a.b.c`, with the module that `a` was imported from; what is no name is a dot."""
        match node:
            case ast.Name(name):
                return self._known.get(name, name)
            case ast.Attribute(value, name):
                return f"{self._dotted(value)}.{name}"
        return ""


def files() -> Iterator[tuple[str, str]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).as_posix(), path.read_text(encoding="utf-8")


def test_no_file_runs_what_it_reads() -> None:
    found = {(file, function, what) for file, source in files() for function, what in findings(source)}
    assert found - ALLOWED == set()


def test_nothing_is_allowed_that_is_not_there() -> None:
    assert {(file, function, what) for file, source in files() for function, what in findings(source)} >= ALLOWED


BAD = {
    "import pickle": "pickle",
    "import pickle as p\np.loads(b'')": "pickle.loads",
    "from pickle import loads": "pickle",
    "from pickle import loads as l\nl(b'')": "pickle.loads",
    "import _pickle": "_pickle",
    "import marshal": "marshal",
    "import shelve": "shelve",
    "from dill import load": "dill",
    "import cloudpickle": "cloudpickle",
    "import joblib": "joblib",
    "import yaml": "yaml",
    "def f(x):\n    return eval(x)": "eval",
    "exec('1')": "exec",
    "compile('1', 'a', 'eval')": "compile",
    "import builtins\nbuiltins.eval('1')": "builtins.eval",
    "run = eval": "eval",
    "__import__('os')": "__import__",
    "import importlib\nimportlib.import_module(name)": "importlib.import_module",
    "from importlib import import_module as i\ni(name)": "importlib.import_module",
    "import torch\ntorch.load(path)": "torch.load without weights_only=True",
    "import torch\ntorch.load(path, weights_only=False)": "torch.load without weights_only=True",
    "import torch\ntorch.load(path, weights_only=flag)": "torch.load without weights_only=True",
    "from torch import load\nload(path)": "torch.load without weights_only=True",
    "import torch\ntorch.export.load(path)": "torch.export.load",
    "import torch\ntorch.jit.load(path)": "torch.jit.load",
    "import torch\ntorch.hub.load('a', 'b')": "torch.hub.load",
    "import numpy as np\nnp.load(path, allow_pickle=True)": "numpy.load with allow_pickle",
    "import numpy as np\nnp.load(path, allow_pickle=flag)": "numpy.load with allow_pickle",
    "import numpy as np\nnp.load(path, **more)": "numpy.load with arguments that cannot be seen",
    "import tarfile\ntarfile.open(path).extractall()": ".extractall",
    "tar.extractall(path, filter='data')": "tar.extractall",
    "tar.extract(member)": "tar.extract",
    "import shutil\nshutil.unpack_archive(path)": "shutil.unpack_archive",
    "import subprocess\nsubprocess.run(command, shell=True)": "subprocess.run with a shell",
    "from subprocess import Popen\nPopen(command, shell=flag)": "subprocess.Popen with a shell",
    "import subprocess\nsubprocess.getoutput('ls')": "subprocess.getoutput",
    "import os\nos.system('ls')": "os.system",
    "from os import system as s\ns('ls')": "os.system",
    "import os\nos.popen('ls')": "os.popen",
    "import os\nos.execvp('ls', [])": "os.execvp",
    "import tempfile\ntempfile.mktemp()": "tempfile.mktemp",
    "import optuna\noptuna.samplers.CmaEsSampler()": "optuna.samplers.CmaEsSampler",
    "from optuna.samplers import CmaEsSampler": "optuna.samplers.CmaEsSampler",
    "import pandas as pd\npd.read_pickle(path)": "pandas.read_pickle",
    "import runpy\nrunpy.run_path(path)": "runpy.run_path",
    "import ctypes\nctypes.CDLL(path)": "ctypes.CDLL",
    "class A:\n    def f(self):\n        def g():\n            exec('1')": "exec",
}


@pytest.mark.parametrize("source", BAD, ids=ascii)
def test_the_gate_finds(source: str) -> None:
    assert BAD[source] in [what for _, what in findings(source)]


@pytest.mark.parametrize(
    "source",
    [
        "import re\nre.compile('a')",
        "network.eval()",
        "import torch\ntorch.compile(network)",
        "import torch\ntorch.load(path, weights_only=True)",
        "import numpy as np\nnp.load(path)\nnp.load(path, allow_pickle=False)",
        "import subprocess\nsubprocess.run(['ls'], check=True)\nsubprocess.run(['ls'], shell=False)",
        "file = tar.extractfile(member)",
        "import importlib\nimportlib.metadata.version('a')",
        "import tempfile\ntempfile.mkdtemp()",
        "import json\njson.loads(text)",
    ],
)
def test_the_gate_lets_in(source: str) -> None:
    assert list(findings(source)) == []


def test_a_finding_has_its_function() -> None:
    assert list(findings("class A:\n    def f(self):\n        eval('1')")) == [("A.f", "eval")]


# What is not Python: the page's script and style, the kernels.

FORBIDDEN_WORDS = {
    ".js": ("eval(", "Function(", "innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "import(", "fetch(",
            "XMLHttpRequest", "WebSocket", "http:", "https:"),
    ".css": ("@import", "url(", "expression(", "http:", "https:"),
    ".c": ("system(", "popen(", "exec", "fopen(", "dlopen(", "socket("),
    ".h": ("system(", "popen(", "exec", "fopen(", "dlopen(", "socket("),
}  # fmt: skip


HARMLESS = ("fetch(`data.json?", "http://www.w3.org/2000/svg")
"""What the served page asks for, of the server that it came from; a name that looks like an address."""


def forbidden_words(name: str, text: str) -> list[str]:
    for words in HARMLESS:
        text = text.replace(words, "")
    return [word for word in FORBIDDEN_WORDS[Path(name).suffix] if word in text]


def test_no_asset_runs_or_loads_anything() -> None:
    assets = [path for path in PACKAGE.rglob("*") if path.suffix in FORBIDDEN_WORDS]
    assert {path.suffix for path in assets} >= {".js", ".css", ".c"}
    for path in assets:
        assert forbidden_words(path.name, path.read_text(encoding="utf-8")) == [], path


@pytest.mark.parametrize(
    ("name", "text", "word"),
    [
        ("page.js", "element.innerHTML = name", "innerHTML"),
        ("page.js", "eval(text)", "eval("),
        ("page.css", "a { background: url(x) }", "url("),
        ("norm.c", 'system("ls");', "system("),
    ],
)
def test_the_words_are_found(name: str, text: str, word: str) -> None:
    assert word in forbidden_words(name, text)
