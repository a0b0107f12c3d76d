"""Values to JSON and back: strict, and nothing in the data names code (E4, P4)."""

# Theory of operation
#
# JSON's own values stand for themselves. A value of the very type that an annotation names is written in
# its usual text form, or as a list or object: "2024-05-01" under `date`. Everything else is tagged,
# `{"$": tag, "value": ...}`, so that what comes back is exactly what was written: a `datetime` in a field
# annotated with `date` is a tagged value of its own type. What cannot come back is refused when it is
# written.
#
# An `Encoding` says all this for one annotation, for both directions. Each field of a record has one, which
# has one for its items, and so on: writing and reading walk along the encodings.
#
# The data may come from anywhere. So
#
# - nothing is imported or looked up in modules: a tag like `module:qualname` names one of the types that
#   the codec was given, and exceptions are made of builtin types only;
# - nothing is converted, and a tagged value, too, has to be of the type that the annotation wants;
# - nesting is bounded before anything is read, and nothing nested is read twice: reading takes linear time.
#
# What leaves for other programs (E7) is in the same notation, but nothing is refused when it is written:
# `{"$repr": text}` stands for the innermost value at fault, and is refused when it is read.
#
# The modules, each using those before it:
#
#   formats   text forms; how values are written under an annotation; errors and bounds
#   fields    the fields of events, attrs classes, dataclasses and pydantic models; the types that data may name
#   plain     the text of events whose values are plain, at once
#   hooks     the hooks of a converter, for all other classes
#   renamed   names that have changed since data was written
#   reader    JSON data to values
#   codec     values to JSON data; `JsonCodec` does both
#   lenient   values to JSON data, whatever they are
#   schema    JSON Schema of what the reader takes
