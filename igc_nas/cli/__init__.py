"""The command line: one thin function per command.

stdout carries data, stderr progress and errors. Exit status: 0 ok, 1 the run failed, 2 usage, 3 nothing feasible,
4 study or store, 5 data, 130, 143 and 129 after Ctrl-C, SIGTERM and SIGHUP. Commands import what they need when they
run, so that `--help` answers at once and `cost`, `front`, `show` and `space` never load torch.
"""

try:
    from igc_nas.cli.program import main, run
except KeyboardInterrupt:  # Ctrl-C before `run` could hear it
    raise SystemExit(130) from None

__all__ = ["main", "run"]
