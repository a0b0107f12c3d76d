"""Values to JSON and back: strict, and nothing in the data names code (E4, P4)."""

# Theory of operation
#
# JSON's own values stand for themselves, and what an annotation announces has its usual text form.
# Everything else is tagged, `{"$": tag, "value": ...}`. A tag with a colon in it, `module:qualname`, is
# looked up among the types that the codec was given; nothing is ever imported. Where an annotation says
# `date`, "2024-05-01" is read, and so is a tagged value of that type: that is how a `datetime` gets into
# the field. What would come back as something else is tagged, or refused.
#
#   fields    the fields of events, attrs classes and dataclasses; the types that data may name
#   formats   what is written under which annotation; text forms; bounds and faults
#   reader    JSON data to values
#   codec     values to JSON data; `JsonCodec` does both
