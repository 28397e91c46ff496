"""Small faults put into a module's syntax tree, one at a time."""

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

_SWAPPED: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitOr,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
_SWAPPED_NAMES = {"min": "max", "max": "min", "any": "all", "all": "any"}

# Fields that no test should depend on: types, and the wording of messages. Strings are never
# mutated.
_SKIPPED_FIELDS = {"annotation", "returns", "decorator_list", "type_params", "exc", "cause"}
_SKIPPED = (ast.Assert, ast.Import, ast.ImportFrom, ast.JoinedStr)


@dataclass(frozen=True)
class Mutant:
    """One fault: the function it is in, the statement before and after, the module's text."""

    function: str
    before: str
    after: str
    source: str


def mutants(source: str) -> list[Mutant]:
    """Every fault that can be made in a module, each on its own. Deterministic.

    Comparison, arithmetic and boolean operators are exchanged, conditions negated, constants
    moved by one (floats doubled), not, - and ~ dropped, min and max, any and all exchanged,
    and statements that act (calls, raise, break, +=) removed. Faults that fail at once or that mypy
    refuses are left out: other indices and axes, None in place of a return value. Where two mutants
    read alike, the later ones are numbered. Source: the usual mutation operators, ours.
    """
    tree = ast.parse(source)
    counts: Counter[tuple[str, str, str]] = Counter()
    numbered = []
    for mutant in _mutants(tree, tree, tree.body[0], ""):
        key = (mutant.function, mutant.before, mutant.after)
        counts[key] += 1
        number = f"  # {counts[key]}" if counts[key] > 1 else ""
        numbered.append(replace(mutant, after=mutant.after + number))
    return numbered


def _mutants(
    tree: ast.Module, parent: ast.AST, statement: ast.stmt, function: str
) -> Iterator[Mutant]:
    for field, value in ast.iter_fields(parent):
        if field in _SKIPPED_FIELDS:
            continue
        places = value if isinstance(value, list) else [value]
        for index, child in enumerate(places):
            if not isinstance(child, ast.AST) or isinstance(child, _SKIPPED):
                continue
            if isinstance(child, ast.Constant) and _is_axis(parent, field):
                continue
            around = child if isinstance(child, ast.stmt) else statement
            for fault in _faults(child, condition=field == "test"):
                before = _header(around)
                _put(parent, field, index, fault)
                after = _header(fault if around is child else around)
                yield Mutant(function, before, after, ast.unparse(tree))
                _put(parent, field, index, child)
            inside = function
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                inside = f"{function}.{child.name}".lstrip(".")
            yield from _mutants(tree, child, around, inside)


def _is_axis(parent: ast.AST, field: str) -> bool:
    """Whether a number in this field is an index, or an argument such as the 1 of x.sum(1)."""
    if isinstance(parent, ast.Call):
        return field == "args" and isinstance(parent.func, ast.Attribute)
    return isinstance(parent, ast.Subscript) and field == "slice"


def _put(parent: ast.AST, field: str, index: int, child: ast.AST) -> None:
    value = getattr(parent, field)
    if isinstance(value, list):
        value[index] = child
    else:
        setattr(parent, field, child)


def _header(statement: ast.AST) -> str:
    """The first line of a statement, which leaves out the body of a compound statement."""
    return ast.unparse(statement).strip().partition("\n")[0]


def _faults(node: ast.AST, condition: bool) -> Iterator[ast.AST]:
    if type(node) in _SWAPPED:
        yield _SWAPPED[type(node)]()
    match node:
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert()):
            yield node.operand
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield ast.Constant(value + 1)
        case ast.Constant(value=float(value)):
            yield ast.Constant(2 * value or 1.0)
        case ast.Call(func=ast.Name(id=name)) if name in _SWAPPED_NAMES:
            yield ast.Call(ast.Name(_SWAPPED_NAMES[name]), node.args, node.keywords)
        case ast.Expr(value=ast.Call()) | ast.Raise() | ast.Continue() | ast.Break():
            yield ast.Pass()
        case ast.AugAssign():
            yield ast.Pass()
    # A comparison and a `not` have their negation among the faults above.
    if condition and isinstance(node, ast.expr) and not isinstance(node, ast.UnaryOp | ast.Compare):
        yield ast.UnaryOp(ast.Not(), node)
