"""Text in the graph of a .pt2, each kind held to what it may be, since PyTorch makes code of most.

Symbolic sizes go through `sympify`, which is `eval`; guards are compiled and run; targets are looked up by name under
`torch`; and every name and path becomes source code of an fx module.
"""

import ast
import json
import keyword
import re
from typing import Any

import torch

MAX_DEPTH = 60
MAX_EXPRESSION = 2_000


class Forbidden(Exception):
    """An archive holds what a plain one does not; the text says what.

    Args:
        hint: what helps against this one reason, where that is not what helps against most.
    """

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.hint = hint


def parse(content: bytes) -> Any:
    """JSON as Python values.

    Raises:
        Forbidden: damaged, or nested beyond what Python can read.
    """
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Forbidden(f"its JSON is damaged: {error}") from None


def check_name(text: str) -> None:
    """A name in Python, or none."""
    if keyword.iskeyword(text) or not re.fullmatch(r"([A-Za-z_]\w{0,300})?", text, re.ASCII):
        raise Forbidden(f"{text[:100]!r} is no name")


def check_path(text: str) -> None:
    """Where a tensor or a module is in its module."""
    if not re.fullmatch(r"[\w.@-]{0,500}", text, re.ASCII):
        raise Forbidden(f"{text[:100]!r} is no path of a module")


def check_word(text: str) -> None:
    """A mode of an operator, a device, a version, or einsum's equation."""
    if not re.fullmatch(r"[\w ,.>+<=-]{0,200}", text, re.ASCII):
        raise Forbidden(f"{text[:100]!r} is no argument of an operator")


def check_number(text: str) -> None:
    """What JSON has no number for."""
    if text not in ("Infinity", "-Infinity", "NaN"):
        raise Forbidden(f"{text[:100]!r} is no number")


_HARMLESS = re.compile(
    r"_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|neg|eq|ne|lt|le|gt|ge|and_|or_)"
    r"|math\.(ceil|floor|trunc)|torch\.sym_(int|float|max|min|not|ite)"
)
"""What a graph calls besides operators: arithmetic on sizes, and parts of a tuple."""

_DENIED = re.compile(
    r"from_file|save|warn|set_|set_data|resize\w*|record_stream|wait|manual_seed|\w*_backward|backward"
)
"""Operators of aten that reach beyond tensors, or beyond a tensor's memory."""

_PRIVATE = re.compile(
    r"_adaptive_avg_pool2d|_assert_scalar|_assert_tensor_metadata|_log_softmax|_softmax|_to_copy|_unsafe_view"
    r"|_native_batch_norm_legit(_no_training)?|_native_multi_head_attention|_prelu_kernel|_weight_norm_interface"
    r"|_scaled_dot_product_flash_attention_for_cpu|_upsample_(bicubic|bilinear)2d_aa"
)
"""Operators with an underscore that exported classifiers do use."""


def check_target(text: str) -> None:
    """An operator that exists, or a harmless function."""
    if _HARMLESS.fullmatch(text):
        return
    match = re.fullmatch(r"torch\.ops\.aten\.(_?[a-z]\w*)\.([A-Za-z]\w*)", text, re.ASCII)
    operator = match and match.group(1)
    if match is None or operator is None or _DENIED.fullmatch(operator):
        raise Forbidden(f"it calls {text[:100]!r}, which is no tensor operator of PyTorch")
    overload = getattr(getattr(torch.ops.aten, operator, None), match.group(2), None)
    if not isinstance(overload, torch._ops.OpOverload) or (operator[0] == "_" and not _PRIVATE.fullmatch(operator)):
        raise Forbidden(f"it calls {text[:100]!r}, which is no tensor operator of PyTorch")


def check_tree(text: str) -> None:
    """How inputs and outputs are packed: nested tuples, lists and dicts of names."""

    def walk(node: Any, depth: int) -> None:
        if not isinstance(node, dict) or depth > MAX_DEPTH:
            raise Forbidden("its inputs are packed in an unknown way")
        kind, context, children = node.get("type"), node.get("context"), node.get("children_spec")
        if kind not in (None, "builtins.tuple", "builtins.list", "builtins.dict") or not isinstance(children, list):
            raise Forbidden(f"its inputs are packed as {str(kind)[:100]!r}")
        names = parse((context or "null").encode()) if isinstance(context, str | None) else context
        if not (names is None or (isinstance(names, list) and all(isinstance(name, str) for name in names))):
            raise Forbidden("its inputs are packed in an unknown way")
        for name in names or []:
            check_name(name)
        for child in children:
            walk(child, depth + 1)

    specification = parse(text.encode())
    if not isinstance(specification, list) or len(specification) != 2 or specification[0] != 1:
        raise Forbidden("its inputs are packed in an unknown way")
    walk(specification[1], 0)


_SYMBOL = r"(s|u|zf|zuf|ps)\d{1,4}"
_SIZE_FUNCTIONS = re.compile(
    r"Symbol|Integer|Rational|Float|Add|Mul|Pow|Max|Min|Abs|Mod|PythonMod|ModularIndexing|FloorDiv|CeilDiv|CleanDiv"
    r"|IntTrueDiv|FloatTrueDiv|Where|Identity|CeilToInt|FloorToInt|RoundToInt|TruncToInt|TruncToFloat|ToFloat|floor"
    r"|ceiling|Eq|Ne|Lt|Le|Gt|Ge|Equality|Unequality|(Strict)?(Less|Greater)Than|And|Or|Not"
)
_ARITHMETIC = (
    ast.Expression | ast.Call | ast.Name | ast.Constant | ast.keyword | ast.BinOp | ast.UnaryOp | ast.BoolOp
    | ast.Compare | ast.Load | ast.operator | ast.unaryop | ast.boolop | ast.cmpop | ast.Subscript | ast.Attribute
)  # fmt: skip


def check_symbol(text: str) -> None:
    """The name of a size that is known later."""
    if not re.fullmatch(_SYMBOL, text):
        raise Forbidden(f"{text[:100]!r} is no symbol of a size")


def check_expression(text: str) -> None:
    """Arithmetic on sizes, as sympy writes it."""
    for node in ast.walk(_arithmetic(text)):
        match node:
            case ast.Subscript() | ast.Attribute() | ast.Name(id="L"):
                raise Forbidden(f"{text[:100]!r} is no size")
            case ast.Name(id=name) if not _SIZE_FUNCTIONS.fullmatch(name) and not re.fullmatch(_SYMBOL, name):
                raise Forbidden(f"{text[:100]!r} is no size")
            case ast.Constant(value=str(literal)) if not re.fullmatch(_SYMBOL + r"|-?[\d.]{1,20}", literal):
                raise Forbidden(f"{text[:100]!r} is no size")


def check_guard(text: str) -> None:
    """A comparison of input sizes, such as `L['x'].size()[0] % 2 == 0`."""
    for node in ast.walk(_arithmetic(text)):
        match node:
            case ast.Attribute(attr=name) if name not in ("size", "stride", "storage_offset", "dim"):
                raise Forbidden(f"{text[:100]!r} is no guard")
            case ast.Name(id=name) if name != "L" and not _SIZE_FUNCTIONS.fullmatch(name):
                raise Forbidden(f"{text[:100]!r} is no guard")
            case ast.Constant(value=str(literal)):
                check_name(literal)


def _arithmetic(text: str) -> ast.Expression:
    """`text` parsed, if it is arithmetic whose value stays small.

    No powers but those of a symbol, no shifts, and no text but a symbol's name, a number or the name of an input:
    `'a' * 10**10` is arithmetic too.
    """
    try:
        if len(text) > MAX_EXPRESSION or not re.fullmatch(r"[\w ()\[\],.'=<>!%*/+-]+", text, re.ASCII):
            raise ValueError("too long, or with comments and escapes in it")
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise Forbidden(f"{text[:100]!r} is no expression of sizes") from None
    nodes = list(ast.walk(tree))
    quoted = {id(node.slice) for node in nodes if isinstance(node, ast.Subscript)}
    quoted |= {
        id(arg) for node in nodes if isinstance(node, ast.Call) and _is(node, "Symbol", "Float") for arg in node.args
    }
    for node in nodes:
        match node:
            case ast.Constant(value=str()):
                plain = id(node) in quoted
            case ast.Constant(value=int(number)):  # or a bool
                plain = number < 2**63
            case ast.Constant(value=value):
                plain = isinstance(value, float)
            case ast.Call(args=args, keywords=keywords):
                plain = not _is(node, "Pow") or _small_power(args)
                plain &= all(isinstance(k.value, ast.Constant) and k.value.value in range(100) for k in keywords)
                plain &= not _is(node, "Float") or len(args) == 1
            case _:
                plain = isinstance(node, _ARITHMETIC) and not isinstance(node, ast.Pow | ast.LShift | ast.RShift)
        if not plain:
            raise Forbidden(f"{text[:100]!r} is no expression of sizes")
    return tree


def _is(node: ast.Call, *names: str) -> bool:
    return isinstance(node.func, ast.Name) and node.func.id in names


def _small_power(args: list[ast.expr]) -> bool:
    """Whether the arguments of Pow are a symbol and an integer of one digit."""
    if len(args) != 2:
        return False
    base, exponent = (ast.unparse(arg) for arg in args)
    return base.startswith("Symbol(") and re.fullmatch(r"Integer\(-?\d\)", exponent) is not None
