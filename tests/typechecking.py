"""beartype for every function but the public ones, which check their arguments themselves: those checks are what tests call."""

import ast
import functools
import pathlib
import sys
import threading

import beartype


def check(function):
    """The function with its arguments checked against their types, unless it is decorated as an entry point.

    Functions that are made in worker threads are left out too: beartype catches warnings while it decorates, for all threads.
    """
    in_worker = threading.current_thread() is not threading.main_thread()
    if in_worker or function.__qualname__ in _entry_points(function.__module__):
        return function
    return beartype.beartype(function)


@functools.cache
def _entry_points(module):
    """The qualified names of the functions and methods of a module that `entry_point` decorates."""
    tree = ast.parse(pathlib.Path(sys.modules[module].__spec__.origin).read_text())
    owners = [("", tree), *((f"{node.name}.", node) for node in tree.body if isinstance(node, ast.ClassDef))]
    return {
        prefix + node.name
        for prefix, owner in owners
        for node in owner.body
        if isinstance(node, ast.FunctionDef) and any(ast.unparse(d) == "entry_point" for d in node.decorator_list)
    }
