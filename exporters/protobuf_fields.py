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
