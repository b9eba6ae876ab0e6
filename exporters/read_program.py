"""The graph inside a .pt2, which is JSON, judged before `torch.export.load` makes Python of it."""

import math
import re
from collections.abc import Callable, Mapping

from exporters.program_text import (
    MAX_DEPTH,
    Forbidden,
    check_expression,
    check_guard,
    check_name,
    check_number,
    check_path,
    check_symbol,
    check_target,
    check_tree,
    check_word,
    parse,
)

ITEM_SIZE = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 2, 7: 4, 8: 8, 12: 1, 13: 2}
"""Bytes an element by the element types of torch's schema that image classifiers are made of."""


def check_program(content: bytes) -> None:
    """See that an exported program calls aten operators only, and that none of its text is code.

    Args:
        content: `models/model.json`.

    Raises:
        Forbidden: names the first thing that is neither.
    """
    program = parse(content)
    if not isinstance(program, dict):
        raise Forbidden("its graph is no JSON object")
    _visit(program, "", 0)


def check_payloads(content: bytes, sizes: Mapping[str, int]) -> None:
    """See that a list of tensors names members that are there, hold the bytes it says, and are no pickles.

    Args:
        content: `model_weights_config.json` or `model_constants_config.json`.
        sizes: bytes of each member in the same folder.

    Raises:
        Forbidden: names the first tensor that is not so.
    """
    config = parse(content)
    entries = config.get("config") if isinstance(config, dict) else None
    if not isinstance(entries, dict):
        raise Forbidden("its list of tensors is damaged")
    for name, entry in entries.items():
        check_path(name)
        meta = entry.get("tensor_meta") if isinstance(entry, dict) else None
        if not isinstance(meta, dict) or entry.get("use_pickle") is not False:
            raise Forbidden(f"tensor '{name}' is a pickle, which could run anything")
        member = entry.get("path_name")
        if not (isinstance(member, str) and re.fullmatch(r"(weight|tensor)_\d+", member) and member in sizes):
            raise Forbidden(f"tensor '{name}' is missing")
        _visit(meta, "", 0)
        try:
            shape = [size["as_int"] for size in meta["sizes"]]
            item = ITEM_SIZE[meta["dtype"]]
        except (KeyError, TypeError):
            raise Forbidden(f"tensor '{name}' has no plain type or shape") from None
        if not all(type(size) is int and size >= 0 for size in shape) or math.prod(shape) * item > sizes[member]:
            raise Forbidden(f"tensor '{name}' is larger than its bytes: {str(shape)[:100]}")


def _visit(value: object, key: str, depth: int) -> None:
    """Check every text in `value`, by the key that it is found under."""
    if depth > MAX_DEPTH:
        raise Forbidden("its graph is nested too deeply")
    if isinstance(value, dict):
        for inner, entry in value.items():
            if inner in _FORBIDDEN and entry:
                raise Forbidden(f"its graph has {_FORBIDDEN[inner]}")
            if key == "metadata":
                _metadata(inner, entry)
                continue
            check_name(inner)
            if key == "range_constraints":
                check_symbol(inner)
            _visit(entry, inner, depth + 1)
    elif isinstance(value, list):
        for entry in value:
            _visit(entry, key, depth + 1)
    elif isinstance(value, str):
        if key not in _CHECKS:
            raise Forbidden(f"its graph has unexpected text under '{key}'")
        _CHECKS[key](value)
    elif not (value is None or isinstance(value, bool | int | float)):
        raise Forbidden("its graph is no plain JSON")


def _metadata(key: str, text: object) -> None:
    """Notes on where a node came from. They are kept as text, or as JSON."""
    if key not in ("stack_trace", "nn_module_stack", "torch_fn", "from_node", "custom") or not isinstance(text, str):
        raise Forbidden(f"a node has unknown notes under '{key[:100]}'")
    if key in ("from_node", "custom"):
        parse(text.encode())


_CHECKS: dict[str, Callable[[str], None]] = {
    "as_float": check_number,
    "as_floats": check_number,
    "as_name": check_name,
    "as_operator": check_target,
    "as_string": check_word,
    "as_strings": check_word,
    "buffer_name": check_path,
    "expr_str": check_expression,
    "forward_arg_names": check_name,
    "fqn": check_path,
    "guards_code": check_guard,
    "in_spec": check_tree,
    "max_val": check_word,
    "min_val": check_word,
    "name": check_name,
    "out_spec": check_tree,
    "parameter_name": check_path,
    "target": check_target,
    "tensor_constant_name": check_path,
    "torch_version": check_word,
    "type": check_word,
    "user_input_name": check_name,
    "verifiers": check_word,
}

_FORBIDDEN = {
    "as_custom_obj": "an object of its own",
    "as_graph": "a graph inside a node",
    "custom_obj": "an object of its own",
    "custom_obj_values": "an object of its own",
    "treespec_namedtuple_fields": "named tuples",
    "token": "effects",
}
