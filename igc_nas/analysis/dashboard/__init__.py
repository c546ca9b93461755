"""A study as one HTML page, which opens from a file without a network or is served on this machine while it grows.

Study -> views -> payload (every number once, in columns) -> document (a file, or what `server` serves); its script
draws the axes that are chosen. Imported by `cli` and `bench`.
"""
