"""The command line: one file per command, each of which parses, calls the library and prints.

stdout carries data, stderr progress and errors. Exit status: 0 ok, 1 the run failed, 2 usage, 3 nothing feasible,
4 study or store, 5 data; 130, 143 and 129 after Ctrl-C, SIGTERM and SIGHUP. Commands import what they need when they
run: `--help` takes less than 0.3 s, and `cost`, `front`, `show`, `space` and `status` never load torch.
"""

try:
    from igc_nas.cli.program import main, run
except KeyboardInterrupt:  # Ctrl-C while modules are imported, before `run` handles it
    raise SystemExit(130) from None

__all__ = ["main", "run"]
