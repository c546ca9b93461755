"""The commands as functions: `igc_nas.search(budget_params="2M")`, `export`, `finals`, ...

Imported by nothing; imports `cli`, whose options are the functions' keyword arguments.
"""
