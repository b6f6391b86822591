"""Mutants of a module: its syntax tree with one small error, as Python text.

Left alone: annotations, decorators, imports, assertions, docstrings, type aliases, and the words of errors.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.MatMult: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitAnd,
}
NAMES = {
    **{"min": "max", "max": "min", "any": "all", "all": "any", "sorted": "list", "set": "list"},
    **{"floor": "ceil", "ceil": "floor", "minimum": "maximum", "maximum": "minimum"},
    **{"startswith": "endswith", "endswith": "startswith", "partition": "rpartition", "rpartition": "partition"},
    **{"union": "intersection", "argsort": "argmax"},
}
WORDS = {"fact", "values", "hint", "source", "what", "whose", "help"}  # arguments that only a person reads


@dataclass(frozen=True)
class Mutant:
    """A module with one error: its text, the line that has the error, the code there, and what it has become."""

    line: int
    context: str  # the line's text
    code: str
    becomes: str
    text: str


def mutants(source: str) -> Iterator[Mutant]:
    """Every mutant of a module, in the order of its lines; none twice, none equal to the module."""
    tree, lines = ast.parse(source), source.splitlines()
    seen = {ast.unparse(tree)}
    found = []
    for slot in list(slots(tree)):
        before = slot.node
        for after in replacements(before):
            slot.put(after)
            text = ast.unparse(ast.fix_missing_locations(tree))
            slot.put(before)
            if text not in seen:
                seen.add(text)
                becomes = "…" if isinstance(after, ast.Pass) else ast.unparse(after)
                found.append(Mutant(slot.line, lines[slot.line - 1].strip(), ast.unparse(before), becomes, text))
    return iter(sorted(found, key=lambda mutant: mutant.line))


@dataclass(frozen=True)
class Slot:
    """A place in a tree that holds a node."""

    parent: ast.AST
    field: str
    index: int | None
    line: int

    @property
    def node(self) -> ast.AST:
        """What it holds."""
        held = getattr(self.parent, self.field)
        node: ast.AST = held if self.index is None else held[self.index]
        return node

    def put(self, node: ast.AST) -> None:
        """Hold another one."""
        if self.index is None:
            setattr(self.parent, self.field, node)
        else:
            getattr(self.parent, self.field)[self.index] = node


def slots(parent: ast.AST, line: int = 0) -> Iterator[Slot]:
    """The places below a node that may be mutated."""
    line = getattr(parent, "lineno", line)
    for field, value in ast.iter_fields(parent):
        if field in ("annotation", "returns", "decorator_list", "type_comment", "bases"):
            continue
        for index, node in enumerate(value if isinstance(value, list) else [value]):
            if not isinstance(node, ast.AST) or spared(parent, field, node):
                continue
            yield Slot(parent, field, index if isinstance(value, list) else None, getattr(node, "lineno", line))
            yield from slots(node, line)


def spared(parent: ast.AST, field: str, node: ast.AST) -> bool:
    """Whether an error in a node would be one of words or types only."""
    if isinstance(node, ast.Import | ast.ImportFrom | ast.Assert | ast.JoinedStr | ast.AnnAssign):
        return not isinstance(node, ast.AnnAssign) or node.value is None
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True  # a docstring
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "Literal":
        return True
    if isinstance(node, ast.keyword) and (node.arg in WORDS or node.arg == "strict"):
        return True  # zip's is an assertion
    if isinstance(parent, ast.Raise) and field == "cause":
        return True
    spoken = isinstance(parent, ast.Call) and (_is_error(parent) or getattr(parent.func, "id", "") == "cast")
    return spoken and isinstance(node, ast.Constant)


def _is_error(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    errors = ("Error", "ChainError", "BadInput", "NotTrusted", "TooFewUpdates", "UsageProblem", "DoesNotFit")
    return name.endswith(errors)


def replacements(node: ast.AST) -> Iterator[ast.AST]:
    """What a node may become."""
    match node:
        case ast.Compare(ops=[operator]):
            for other in COMPARISONS[type(operator)]:
                yield ast.Compare(node.left, [other()], node.comparators)
        case ast.Compare(ops=ops):
            for place, operator in enumerate(ops):
                for other in COMPARISONS[type(operator)]:
                    yield ast.Compare(node.left, [*ops[:place], other(), *ops[place + 1 :]], node.comparators)
        case ast.BinOp() if type(node.op) in ARITHMETIC:
            yield ast.BinOp(node.left, ARITHMETIC[type(node.op)](), node.right)
        case ast.AugAssign() if type(node.op) in ARITHMETIC:
            yield ast.AugAssign(node.target, ARITHMETIC[type(node.op)](), node.value)
            yield ast.Assign([node.target], node.value)
        case ast.BoolOp(values=values):
            yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), values)
            for place in range(len(values)):
                rest = values[:place] + values[place + 1 :]
                yield rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)
        case ast.UnaryOp():
            yield node.operand
        case ast.Constant(value=value):
            yield from (ast.Constant(other) for other in _other_values(value))
        case ast.If() | ast.While():
            yield type(node)(ast.UnaryOp(ast.Not(), node.test), node.body, node.orelse)
        case ast.IfExp():
            yield from (node.body, node.orelse)
        case ast.comprehension(ifs=[_, *_]):
            yield ast.comprehension(node.target, node.iter, [], node.is_async)
        case ast.Return(value=ast.expr() as value) if not isinstance(value, ast.Constant):
            yield ast.Return(ast.Constant(None))
        case ast.Raise() | ast.Expr(value=ast.Call()) | ast.Delete():
            yield ast.Pass()
        case ast.Break():
            yield ast.Continue()
        case ast.Continue():
            yield ast.Break()
        case ast.Slice():
            yield from _wider(node)
        case ast.Name() if node.id in NAMES:
            yield ast.Name(NAMES[node.id], node.ctx)
        case ast.Attribute() if node.attr in NAMES:
            yield ast.Attribute(node.value, NAMES[node.attr], node.ctx)
        case ast.Call(keywords=[_, *_]):
            for place, keyword in enumerate(node.keywords):
                if keyword.arg not in {None, "strict", *WORDS}:
                    yield ast.Call(node.func, node.args, node.keywords[:place] + node.keywords[place + 1 :])


def _other_values(value: object) -> list[bool | int | float | str | bytes]:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [value + 1, value - 1]
    if isinstance(value, str | bytes) and value:
        return [value[:0]]
    return []


def _wider(node: ast.Slice) -> Iterator[ast.Slice]:
    if node.lower:
        yield ast.Slice(None, node.upper, node.step)
    if node.upper:
        yield ast.Slice(node.lower, None, node.step)
