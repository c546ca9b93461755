"""What can be written, the files of an exported folder, and where one may stand. Imports next to nothing."""

from __future__ import annotations

from pathlib import Path

from igc_nas.errors import UsageError

FORMATS = ("toml", "py", "onnx", "pt2", "dir")
FORMS = ("fastest", "factored", "folded", "semidense", "dense", "mixed")
"""Of a graph: the fastest, or one by the names of `igc_nas.nn.lowering.variants`."""
MARKER = "# a folder of igc-nas export"
"""The first line of config.toml in a folder that may be written anew."""
CONFIG, MODEL, WEIGHTS, ONNX, CARD = "config.toml", "model.py", "weights.safetensors", "model.onnx", "README.md"
FILES = (CONFIG, MODEL, WEIGHTS, ONNX, CARD)


def may_write(path: Path, force: bool) -> None:
    """Raise `UsageError` unless nothing is at `path`, or, `force`, a folder of an export and nothing else."""
    if not path.exists() and not path.is_symlink():
        return
    if not force:
        raise UsageError(f"{path} exists", "choose another -o, or add --force")
    if not path.is_dir():
        raise UsageError(f"{path} is no folder, and stays", "choose another -o")
    strange = sorted(entry.name for entry in path.iterdir() if entry.name not in FILES or not entry.is_file())
    if strange:
        raise UsageError(f"{path} holds {strange[0]!r:.80}, which is not of an export, and stays", "choose another -o")
    if not _is_ours(path / CONFIG):
        raise UsageError(f"{path} is no folder of igc-nas export, and stays", "choose another -o")


def _is_ours(config: Path) -> bool:
    try:
        with config.open(encoding="utf-8") as file:
            return file.readline(200).rstrip("\n") == MARKER
    except (OSError, UnicodeDecodeError):
        return False
