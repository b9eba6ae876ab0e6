"""Where a protobuf file ends too early: a download that stopped half-way looks like a damaged model otherwise."""

from mmap import mmap

from google.protobuf.descriptor import Descriptor, FieldDescriptor

_NUMBERS = (FieldDescriptor.TYPE_INT64, FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_ENUM)
"""Types of fields that are numbers; the others come with their length."""


def ends_early(content: bytes | mmap, message: Descriptor) -> str:
    """The field of `message` within which `content` ends, while all before it is such a message; empty for none.

    Writers put fields in the order of their numbers. A file that begins with another than the first was never one.
    """
    position, name = 0, ""
    fields = {field.number: field for field in message.fields}
    try:
        while position < len(content):
            tag, position = _varint(content, position)
            field = fields.get(tag >> 3)
            wire = 0 if field is not None and field.type in _NUMBERS else 2
            if field is None or tag & 7 != wire or (not name and tag >> 3 != 1):
                return ""
            name = field.name
            length, position = _varint(content, position)
            position += length if wire == 2 else 0
    except IndexError:
        return name
    return name if position > len(content) else ""


def _varint(content: bytes | mmap, position: int) -> tuple[int, int]:
    """A number of 7 bits in each byte, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        byte = content[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise IndexError("a number of more than 64 bits")
