"""`python -m igc_nas`."""

from igc_nas.cli import run

run()
