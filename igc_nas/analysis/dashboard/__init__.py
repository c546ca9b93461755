"""A study as one HTML page: a file that opens offline, or served on this machine while the search runs.

    Study -> views -> payload (plain data) -> document (a file, or what `server` serves)

The page holds every number once, in columns; its script draws them over the axes that the user chooses.
"""
