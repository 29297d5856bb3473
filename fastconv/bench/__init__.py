"""``fastconv bench``: layers of well-known networks, timed on our backends and beside other libraries.

`workloads` says what is measured, `peers` beside whom, `timing` how; `suite` does it, `report` and `plot` show it.
"""
