"""The command line: one file and one thin function a command; `program.py` says how each way out ends.

Imported by `__main__` only. Commands import what they need when they run: `--help` answers at once, and `cost`,
`front`, `show`, `space` and `status` never load torch.
"""

try:
    from igc_nas.cli.program import main, run
except KeyboardInterrupt:  # Ctrl-C while modules are imported, before `run` handles it
    raise SystemExit(130) from None

__all__ = ["main", "run"]
