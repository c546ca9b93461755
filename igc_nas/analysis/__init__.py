"""What a study says: rank correlations, what the proxy is worth, importance of choices, tables and plots.

Imported by `engine` (progress), `export`, `bench` and `cli`; imports `samplers` and `study`. `dashboard` is the page.
"""
