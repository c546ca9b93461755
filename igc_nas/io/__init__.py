"""Reading and writing: files whole or not at all, frozen records, quantities with units, text and tables on a terminal.

Imported by every package; imports `errors` only.
"""
