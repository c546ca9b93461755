"""Export formats, the files of an exported folder, and the check of its destination. Imports next to nothing."""

from __future__ import annotations

from pathlib import Path

from igc_nas.errors import UsageError

FORMATS = ("toml", "py", "onnx", "pt2", "c", "dir")
FORMS = ("fastest", "factored", "folded", "semidense", "dense", "mixed")
"""Forms of an exported graph: the fastest allowed one, or one of `igc_nas.nn.lowering.variants` by name."""
MARKER = "# a folder of igc-nas export"
"""The first line of config.toml in an exported folder: only a folder with it is overwritten."""
CONFIG, MODEL, WEIGHTS, ONNX, CARD = "config.toml", "model.py", "model.safetensors", "model.onnx", "README.md"
HUB_CONFIG = "config.json"
OLD_WEIGHTS = "weights.safetensors"
"""The name of the weights in folders that an earlier version wrote."""
C_SOURCE, C_HEADER, C_MAIN = "model.c", "model.h", "model_main.c"
FILES = (CONFIG, HUB_CONFIG, MODEL, WEIGHTS, ONNX, C_SOURCE, C_HEADER, C_MAIN, CARD)
C_COMMAND = "cc -std=c11 -O2 -march=native -ffp-contract=fast {name}_main.c {name}.c -o {name}"
"""How an exported C file is compiled with its program."""


def c_paths(path: Path) -> tuple[Path, ...]:
    """The files that an export to NAME.c writes: NAME.c, NAME.h, NAME_main.c and, with --weights-file, NAME.bin."""
    names = (f"{path.stem}.c", f"{path.stem}.h", f"{path.stem}_main.c", f"{path.stem}.bin")
    return tuple(path.with_name(name) for name in names)


def check_destination(path: Path, force: bool) -> None:
    """Raise `UsageError` unless `path` is free, or `force` is set and it is an exported folder without other files."""
    if not path.exists() and not path.is_symlink():
        return
    if not force:
        raise UsageError(f"{path} exists", "choose another -o, or add --force")
    if not path.is_dir():
        raise UsageError(f"{path} is not a folder, and is not overwritten", "choose another -o")
    foreign = sorted(
        entry.name for entry in path.iterdir() if entry.name not in (*FILES, OLD_WEIGHTS) or not entry.is_file()
    )
    if foreign:
        raise UsageError(f"{path} holds {foreign[0]!r:.80}, which igc-nas export does not write", "choose another -o")
    if not _is_exported(path / CONFIG):
        raise UsageError(f"{path} is not a folder of igc-nas export, and is not overwritten", "choose another -o")


def _is_exported(config: Path) -> bool:
    try:
        with config.open(encoding="utf-8") as file:
            return file.readline(200).rstrip("\n") == MARKER
    except (OSError, UnicodeDecodeError):
        return False
