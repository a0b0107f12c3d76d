"""Measure runs that are kept: on SQLite, beside DBOS, LangGraph, and the reference with its DBOS plugin.

`python -m benchmarks.durable` makes an environment for each peer, starts a PostgreSQL server of its
own if one is installed, prints tables, and writes them to `benchmarks/results/durable.md`. What
cannot be installed here is named as missing, and the others are measured.
"""

# General layout:
#
#   programs     one for each side, which does all jobs, in an environment of its own, in a process
#                for each measurement; `measured` is what they share, `syncs.c` counts the syncs
#   sides        the sides, and the requirements of their environments
#   works        what is measured, and with how many runs on each side
#   postgres     a server in a temporary folder
#   disk         the file system, what a sync costs on it, and how syncs are counted
#   rounds       one side of a work, in a process
#   report       the tables
