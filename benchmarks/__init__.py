"""Measure the library against hand-written AnyIO that does the same job.

`python -m benchmarks` prints one table. Nothing here asserts a time: machines differ, and ratios
that were measured side by side are what counts.
"""

# General layout:
#
#   ours        the jobs as workflows
#   by_hand     the same jobs as an expert writes them with AnyIO alone
#   rows        which job is measured how, and the ratio it should have
#   measuring   time and memory of one job; both sides in turn; medians and spread
#   growth      what an item costs when there are more of them
#   imports     what `import anyio_workflows` costs, in fresh interpreters
