"""Give functions that are loaded the code of a mutant, so that nothing has to be imported again.

What a function does is in its code object, which may be replaced while everyone who has imported the function keeps
it.  An error outside of functions (a constant of a module, a default, a field) cannot be put in like that.
"""

import ast
import gc
import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import CodeType, FunctionType

Functions = Mapping[str, Sequence[FunctionType]]


class CannotSwap(Exception):
    """The error is not in the body of a function, or of one that is not to be found."""


def functions_of(path: Path) -> Functions:
    """The functions of a module that are loaded, by qualified name."""
    found: dict[str, list[FunctionType]] = {}
    for one in gc.get_objects():
        if type(one) is FunctionType and one.__code__.co_filename == str(path):
            found.setdefault(one.__code__.co_qualname, []).append(one)
    return found


def swap(functions: Functions, source: str, mutant: str, path: Path) -> None:
    """Put a mutant of the module in.  Raises `CannotSwap`, before anything has changed."""
    whole = compile(ast.unparse(ast.parse(source)), path, "exec", dont_inherit=True)
    codes = list(_changed(whole, compile(mutant, path, "exec", dont_inherit=True)))
    chosen = [(functions.get(code.co_qualname, ()), code) for code in codes]
    for loaded, code in chosen:
        if len({(one.__code__.co_firstlineno, len(one.__code__.co_freevars)) for one in loaded}) != 1:
            raise CannotSwap(code.co_qualname)
        if len(loaded[0].__code__.co_freevars) != len(code.co_freevars):
            raise CannotSwap(code.co_qualname)
    if not chosen or len({code.co_qualname for code in codes}) < len(codes):
        raise CannotSwap
    for loaded, code in chosen:
        for one in loaded:
            one.__code__ = code


def _changed(before: CodeType, after: CodeType) -> Iterator[CodeType]:
    """The outermost functions whose code differs, as they are after.  Raises `CannotSwap` where other code does."""
    if before.co_flags & inspect.CO_OPTIMIZED:
        if before != after:
            yield after
        return
    inner = [[one for one in code.co_consts if isinstance(one, CodeType)] for code in (before, after)]
    if _own(before) != _own(after) or len(inner[0]) != len(inner[1]):
        raise CannotSwap(before.co_qualname)
    for one, other in zip(*inner, strict=True):
        yield from _changed(one, other)


def _own(code: CodeType) -> tuple[object, ...]:
    """What code does but for the functions and classes in it; 1 and True are not the same."""
    constants = tuple(repr(one) for one in code.co_consts if not isinstance(one, CodeType))
    return code.co_qualname, code.co_code, code.co_names, constants
