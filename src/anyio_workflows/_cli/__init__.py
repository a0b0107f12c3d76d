"""The command line: run, check, draw and serve workflows, and follow runs that a server keeps."""

# A command reads its arguments, and then drives a `Runtime`, a `WorkflowServer` or a `WorkflowClient`; nothing is
# known here that they do not know. A run of a `Runtime` here and one of a server look the same to what follows it:
# both say what the wire says (`_documents`).
#
# Results and JSON go to standard output, everything else to standard error.
#
# The modules, each using those before it:
#
#   problems  what a command cannot do, and its exit status
#   parser    the arguments; nothing else is imported to print help
#   targets   `module:Workflow` to workflows
#   values    `key=value` to data, by a JSON Schema
#   texts     how runs, events and questions are written for people
#   keys      a line typed in a terminal, without blocking the event loop
#   follow    one run from a cursor to its end: what is shown, and who answers its questions
#   plain     shows a run line by line (`live`: in a part of the terminal that is drawn again)
#   answers   answers given as arguments, and those of a person
#   showing   which of these it is to be, as the arguments and the terminal say
#   local     runs in a `Runtime` of this process (`far`: on a server)
#   run, look, serve
#             the commands that need no server
#   remote    those that ask one
#   main      chooses the command, and turns its problems into messages and exit statuses
