"""Options of ONNX Runtime's sessions, and a limit to what a graph may allocate while it is folded and while it runs."""

import os
from functools import cache

import onnxruntime

WITHOUT_KNOWLEDGE = 16 * 2**30
"""Bytes, where the system does not say how much memory it has."""

FULL = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL


def session_options(
    *, threads: int = 0, level: onnxruntime.GraphOptimizationLevel = FULL, bounded: bool = False
) -> onnxruntime.SessionOptions:
    """Options of a session that logs nothing: what goes wrong comes as an exception too.

    Args:
        threads: of the pool inside an operator; 0 is one for each core.
        level: how far the graph is optimised.
        bounded: for files from strangers. All such sessions share one arena on the CPU, of at most half the machine's
            memory. A graph that wants more fails with an error of ONNX Runtime, where the system would have ended the
            process.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = level
    options.log_severity_level = 4
    if bounded:
        _register_arena()
        options.add_session_config_entry("session.use_env_allocators", "1")
    return options


@cache
def _register_arena() -> None:
    """Runs once in a process: a second registration is an error."""
    memory = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    onnxruntime.create_and_register_allocator(memory, onnxruntime.OrtArenaCfg(memory_limit(), -1, -1, -1))


def memory_limit() -> int:
    """Bytes that all bounded sessions of a process may take together."""
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return WITHOUT_KNOWLEDGE
