"""A model's own functions, written out where they are called."""

from onnx import ModelProto
from onnx.inliner import inline_local_functions

from dgad_tk.common import UserError, reason_of


def inlined(model: ModelProto) -> ModelProto:
    """`model` without functions, as ONNX Runtime reads them.

    A function may name other versions of the operator sets than the model does. ONNX Runtime runs its nodes in the
    model's versions all the same, and ONNX's inliner leaves such a function standing. So they are given the model's.

    Args:
        model: one that ONNX Runtime loads. It is not changed.

    Raises:
        UserError: they cannot be written out.
    """
    if not model.functions:
        return model
    copy = ModelProto()
    copy.CopyFrom(model)
    versions = {_domain(entry.domain): entry.version for entry in copy.opset_import}
    for function in copy.functions:
        for entry in function.opset_import:
            entry.version = versions.get(_domain(entry.domain), entry.version)
    try:
        written_out = inline_local_functions(copy)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"its functions cannot be written out: {reason_of(error)}", hint="export it without functions"
        ) from None
    return written_out


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain
