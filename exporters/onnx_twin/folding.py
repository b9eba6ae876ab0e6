"""BatchNorm into the convolution before it, as ONNX Runtime does."""

from typing import Any

import torch.nn.functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

from exporters.onnx_twin.tracing import Recorder

CONVOLUTIONS = {F.conv1d, F.conv2d, F.conv3d}


def fold_batch_norm(recorder: Recorder) -> None:
    """Replace each pair of a convolution and a BatchNorm that alone reads it by one convolution.

    Args:
        recorder: its graph is changed in place, and the new weights are added to its constants.
    """
    nodes: list[Any] = list(recorder.graph.nodes)
    for norm in nodes:
        if norm.target is not F.batch_norm:
            continue
        conv = norm.args[0]
        if conv.target not in CONVOLUTIONS or len(conv.users) != 1:
            continue
        x, kernel, shift, *others = conv.args
        read = [kernel, *norm.args[1:5], *([] if shift is None else [shift])]
        if any(node.op != "get_attr" for node in read):
            continue
        # In double: the factors are rounded once, not at every step on the way.
        weight, mean, variance, scale, offset, *bias = (recorder.constants[node.target].double() for node in read)
        folded = fuse_conv_bn_weights(weight, bias[0] if bias else None, mean, variance, norm.args[7], scale, offset)
        dtype = recorder.constants[kernel.target].dtype
        with recorder.graph.inserting_before(conv):
            new = [
                recorder.buffer(tensor.detach().to(dtype), f"{kernel}_{name}")
                for tensor, name in zip(folded, ("folded", "folded_bias"), strict=True)
            ]
        conv.args = (x, *new, *others)
        norm.replace_all_uses_with(conv)
        recorder.graph.erase_node(norm)
