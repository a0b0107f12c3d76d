"""Measure the library against hand-written AnyIO and against llama-index-workflows.

`python -m benchmarks` prints tables, and writes them and a chart to `benchmarks/results/`.
Nothing here asserts a time: machines differ, and only ratios that were measured side by side
count.
"""

# General layout:
#
#   the jobs    ours         as workflows
#               reference    as workflows of llama-index-workflows
#               by_hand      as an expert writes them with AnyIO alone
#               gates        a gate at which runs wait together, the same for all
#
#   measuring   backends     asyncio, trio, uvloop
#               measuring    rounds, all sides of a row in turn; medians and ratios
#
#   what        rows         the rows of the main table, with their targets
#               imports      the row about `import anyio_workflows`
#               growth       what an item costs when there are more of them
#               memory       what a waiting run holds, and whether a long-running program grows
#               fairness     how long other tasks wait next to a run that never awaits
#               drawing      how long the picture of a graph takes
#               instruments  what a step costs that instruments are told about
#
#   commands    durable      runs on SQLite beside other libraries with databases
#   of their    serving      runs over HTTP beside the reference's server, and a load test
#   own         comparing    sides in processes of their own, in turn; medians and ratios
#               environments a virtual environment for a side that needs one
#
#   showing     tables       a table as text and as Markdown
#               report       the main table, and the file with all tables
#               picture      the chart of the ratios, on a log scale
#               machine      the machine and the versions
