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
