"""A study as one HTML page, which opens from a file without a network or is served on this machine while it grows.

    Study -> views -> payload (plain data) -> document (a file, or what `server` serves)

The page keeps every number once, in columns; its script draws them for whichever axes are chosen.
"""
