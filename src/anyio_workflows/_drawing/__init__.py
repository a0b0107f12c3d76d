"""Pictures of workflows: what there is to draw, where it goes, and how each format writes it."""

# Theory of operation
#
# A picture is made in two moves, and the second one knows nothing of workflows:
#
#   (graph, run) -- picture_of() --> Picture -- svg(), mermaid(), dot(), plain() --> (text)
#
#   picture   the nodes and edges of a graph, in words and kinds; what one run did is in their notes
#   mermaid, dot, plain
#             a picture as text for other programs, and for people; they lay it out, or read it
#   measure   how wide text is, and text that is too long
#   layers    boxes in layers from left to right: cycles, labels, the order within a layer
#   layout    where boxes, labels and edges go, in pixels
#   svg       all of it as SVG, in light and dark mode
#   summary   how a run stands, beside its picture, in a few lines of text
#   page      both as a part of a notebook, and as a page by itself
#   files     any of these in a file
#
# Layout
# ======
#
#   cycles are broken -> each box gets a layer -> edges are led through the layers -> each layer is
#   ordered -> heights -> columns
#
# Between two layers of boxes there is one for labels, unless there are none. In every layer between
# its ends an edge has a point, or its labels, with a place of its own. So nothing can overlap:
#
# 1. The items of a layer are apart from each other, and so are the columns of the layers.
# 2. Inside a column, edges are level; they bend only in the gaps between columns.
# 3. From its labels on, an edge is one with all others of its kind to its target: a handler of every
#    step's failures has one line, not a bundle. If more of them have its source, and it no labels,
#    it is one with those until it leaves them: an answer that all steps wait for. No line does both,
#    or there would seem to be an edge from each that joins it to each that leaves it.
# 4. Coordinates are whole numbers, and nothing depends on hashes: the same picture, the same bytes.
