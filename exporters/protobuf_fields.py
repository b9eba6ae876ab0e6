"""How much a protobuf holds, before it is parsed: an empty message is 2 bytes in a file and 80 times that in memory."""

from functools import cache
from mmap import mmap

from google.protobuf.descriptor import Descriptor, FieldDescriptor

MAX_FIELDS = 2_000_000
"""Of a file. Swin-V2, among the largest graphs of a classifier, has 50,000."""


def too_many_fields(content: bytes | mmap, message: Descriptor, limit: int = MAX_FIELDS) -> bool:
    """Whether `content`, read as `message`, has more than `limit` fields in all, nested ones included.

    What cannot be decoded ends the count: the parser will say so.
    """
    with memoryview(content) as data:
        return _more_fields(data, message, limit)


def ends_early(content: bytes | mmap, message: Descriptor) -> str:
    """The field of `message` within which `content` ends, while all before it is such a message; empty for none.

    Writers put fields in the order of their numbers. A file that begins with another than the first was never one.
    """
    with memoryview(content) as data:
        position, name = 0, ""
        fields = {field.number: field for field in message.fields}
        try:
            while position < len(data):
                tag, position = _varint(data, position)
                field = fields.get(tag >> 3)
                if field is None or tag & 7 != _WIRES.get(field.type, 2) or (not name and tag >> 3 != 1):
                    return ""
                name = field.name
                length, position = _varint(data, position)  # no field of a model is of a fixed size
                position += length if tag & 7 == 2 else 0
        except IndexError:
            return name
        return name if position > len(data) else ""


_WIRES = dict.fromkeys((FieldDescriptor.TYPE_INT64, FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_ENUM), 0)
"""Which fields are numbers; the others come with their length."""


def _more_fields(data: memoryview, message: Descriptor, limit: int) -> bool:
    parts = [(0, len(data), message)]
    count = 0
    try:
        while parts:
            position, end, kind = parts.pop()
            messages = _messages(kind)
            while position < end:
                tag, position = _varint(data, position)
                count += 1
                if count > limit:
                    return True
                wire, number = tag & 7, tag >> 3
                if wire == 0:
                    _, position = _varint(data, position)
                elif wire in (1, 5):
                    position += 8 if wire == 1 else 4
                elif wire == 2:
                    length, position = _varint(data, position)
                    if position + length > end:
                        return False
                    if number in messages:
                        parts.append((position, position + length, messages[number]))
                    position += length
                else:
                    return False
    except IndexError:
        pass  # it ends within a number
    return False


@cache
def _messages(kind: Descriptor) -> dict[int, Descriptor]:
    """Fields of a message that are messages themselves, by number."""
    return {field.number: field.message_type for field in kind.fields if field.type == FieldDescriptor.TYPE_MESSAGE}


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """A number of 7 bits a byte, and where it ends."""
    value = data[position]
    position += 1
    if value < 128:
        return value, position
    value &= 127
    for shift in range(7, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise IndexError("a number of more than 64 bits")
