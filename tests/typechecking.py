"""Types and shapes of the library checked when its functions are called: beartype and jaxtyping by an import hook.

jaxtyping's own hook decorates each function twice, wraps also what has no annotations, and decorates a function that is made
inside another anew at each call of that one: together two fifths of the time of the tests. This one decorates once, when
a function is first called, opens a context for names of axes only where there are some, and checks a function that is made inside
another the first time.
"""

import ast
import contextlib
import dataclasses
import functools
import importlib.abc
import importlib.machinery
import inspect
import sys
import threading

import beartype
import jaxtyping

_checked_before = set()  # code of functions made inside others


def check(function):
    """The function, which raises where an argument or the result is not of its type.

    It is decorated when it is first called, since most functions are not called by most tests. In a worker thread it is left as it
    is: beartype catches warnings while it decorates, for all threads.
    """
    if not function.__annotations__:
        return function
    if "<locals>" in function.__qualname__:
        if function.__code__ in _checked_before or not _in_main_thread():
            return function
        _checked_before.add(function.__code__)
    checked, in_context = None, False

    @functools.wraps(function)
    def call(*arguments, **keywords):
        __tracebackhide__ = True
        nonlocal checked, in_context
        if checked is None:
            if not _in_main_thread():
                return function(*arguments, **keywords)
            in_context = _names_axes(function) and not inspect.isgeneratorfunction(function)
            checked = beartype.beartype(function)
            if checked is not function:
                _as_of_a_library(checked)
        if not in_context:
            return checked(*arguments, **keywords)
        with jaxtyping.jaxtyped("context"):
            return checked(*arguments, **keywords)

    _as_of_a_library(call)
    return call


def _in_main_thread():
    return threading.current_thread() is threading.main_thread()


def _as_of_a_library(function):
    """Error messages name the last line of a traceback that is in no library: it would be one here or in what beartype made."""
    function.__code__ = function.__code__.replace(co_filename=beartype.__file__)


def check_fields(cls):
    """The class, whose fields are checked when an instance is made, if it is a dataclass."""
    if dataclasses.is_dataclass(cls):
        cls.__init__ = check(cls.__init__)
    return cls


def _names_axes(function):
    return any("jaxtyping" in repr(annotation) for annotation in function.__annotations__.values())


class Loader(importlib.machinery.SourceFileLoader):
    """What decorates the functions of a module by `check`, below their other decorators, and the classes by `check_fields`, above.

    Left as they are: public functions, which check their arguments themselves (those checks are what tests call), and `__new__`,
    which an enumeration calls before the class that it returns has its name.
    """

    def get_code(self, fullname):
        tree = ast.parse(self.get_data(self.path), self.path)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                public = any(isinstance(d, ast.Name) and d.id == "entry_point" for d in node.decorator_list)
                if not public and node.name != "__new__":
                    node.decorator_list.append(ast.copy_location(ast.Name("__check__", ast.Load()), node))
            elif isinstance(node, ast.ClassDef):
                node.decorator_list.insert(0, ast.copy_location(ast.Name("__check_fields__", ast.Load()), node))
        return compile(tree, self.path, "exec", dont_inherit=True)

    def exec_module(self, module):
        vars(module).update(__check__=check, __check_fields__=check_fields)
        super().exec_module(module)


class Finder(importlib.abc.MetaPathFinder):
    """What finds the modules of a package for `Loader`."""

    def __init__(self, package):
        self.package = package

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] != self.package:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None:
            spec.loader = Loader(spec.loader.name, spec.loader.path)
        return spec


@contextlib.contextmanager
def checking(package):
    """Check the functions of what is imported meanwhile from this package."""
    finder = Finder(package)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
