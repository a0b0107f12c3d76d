"""Measure runs over HTTP: our server, on uvicorn and on hypercorn, beside the reference's; and a load test.

`python -m benchmarks.serving` starts each server in a process of its own and asks it over loopback. What
counts is the processor time of the server's process, so it does not matter how fast the client is, which is
the same for all. It prints tables, and writes them to `benchmarks/results/serving.md`. `--load` does the
load test alone.
"""

# General layout:
#
#   programs  a server each: `ours`, and `reference` in an environment of its own; `told` is the channel
#             through which a server's process is asked for its processor time and memory
#   sides     the servers, and what the reference's needs
#   servers   a server's process
#   wires     what is asked, in the words of each server
#   client    connections, and readers that check what they get
#   works     what is measured, with which sizes; the targets
#   jobs      how it is done
#   load      many readers, many runs, many waiting runs
#   starts    what imports and the command line's help take
#   report    the tables
