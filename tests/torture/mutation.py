"""Mutants of Python functions: their source with one small change, compiled to the code of one function.

Changed are comparisons, `and`/`or`/`not`, conditions, arithmetic, whole numbers, what is returned, what an `except`
does, and statements, which are left out. Not changed is what only people read (log lines, f-strings, what a `raise`
says, docstrings, `__repr__`, annotations), nor assertions (`strict=` of a zip is one), `with`, strings, and what runs
once at import: constants of a module, bodies of classes, default arguments.

A mutant's name has no line number: module, function, kind, and its line before and after, as ast.unparse writes them.
"""

from __future__ import annotations

import ast
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any

Change = tuple[str, ast.AST]  # its kind, and what stands there instead

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult, ast.Div: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr, ast.BitXor: ast.BitOr,
}  # fmt: skip
CALLS = {"min": "max", "max": "min", "any": "all", "all": "any", "sorted": "list", "reversed": "iter"}
FOR_PEOPLE = ("__repr__", "__str__")
UNCHANGED = (ast.Assert, ast.Raise, ast.JoinedStr, ast.Import, ast.ImportFrom, ast.arguments)
ANNOTATIONS = ("annotation", "returns", "decorator_list")
FLAGS = annotations.compiler_flag


@dataclass(frozen=True, eq=False)
class Function:
    """One that no other function surrounds."""

    name: str  # qualified
    line: int  # where its code begins
    top: ast.stmt  # what it is part of in the module
    node: ast.FunctionDef

    @property
    def variables(self) -> Counter[str]:
        """How often each name gets a value in it."""
        named = [node.arg for node in ast.walk(self.node) if isinstance(node, ast.arg)]
        for node in ast.walk(self.node):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                named.append(node.id)
        return Counter(named)


@dataclass(frozen=True, eq=False)
class Mutant:
    """A function with another node in one place: `owner.field`, or of a list there that with this index."""

    source: Source
    function: Function
    kind: str
    statement: ast.AST  # what it is a part of, as far as its name goes
    owner: Any
    field: str
    index: int | None
    node: ast.AST
    line: int

    def _put(self, node: Any) -> Any:
        if self.index is None:
            before = getattr(self.owner, self.field)
            setattr(self.owner, self.field, node)
        else:
            nodes = getattr(self.owner, self.field)
            before, nodes[self.index] = nodes[self.index], node
        return before

    @property
    def name(self) -> str:
        """No other mutant has it."""
        return self.source.names(self.function)[self]

    def describe(self) -> str:
        """Its name, but for the number of those that look the same."""
        before = head(self.statement)
        original = self._put(self.node)
        after = head(self.node if original is self.statement else self.statement)
        self._put(original)
        after = "raise" if isinstance(self.node, ast.ExceptHandler) else after
        return f"{self.source.module}:{self.function.name}: {self.kind}: {before} -> {after}"

    @property
    def lot(self) -> int:
        """A number that follows from its name, to draw lots with."""
        return hashlib.blake2b(self.name.encode(), digest_size=1).digest()[0]

    @property
    def lines(self) -> range:
        """Those of its statement, without its blocks."""
        first, body = getattr(self.statement, "lineno", self.line), getattr(self.statement, "body", None)
        last = body[0].lineno - 1 if isinstance(body, list) else getattr(self.statement, "end_lineno", self.line)
        return range(first, max(first, last) + 1)

    def code(self) -> CodeType:
        """The code of the function with the change. Raises SyntaxError where none can have it."""
        original = self._put(self.node)
        try:
            module = compile(ast.Module([self.function.top], []), self.source.path, "exec", FLAGS, dont_inherit=True)
        finally:
            self._put(original)
        return next(code for code in codes(module) if (code.co_qualname, code.co_firstlineno) == self.key[1:])

    @property
    def key(self) -> tuple[str, str, int]:
        """What tells its function from all others."""
        return self.source.path, self.function.name, self.function.line


def codes(code: CodeType) -> Iterator[CodeType]:
    """A code object and all within it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes(constant)


def head(statement: ast.AST) -> str:
    """A statement in one line, without its blocks."""
    short: Any = type(statement)(**dict(ast.iter_fields(statement)))
    for block in ("body", "orelse", "finalbody", "handlers"):
        if isinstance(getattr(short, block, None), list):
            setattr(short, block, [ast.Pass()] if block == "body" else [])
    return ast.unparse(ast.fix_missing_locations(short)).strip().splitlines()[0]


class Source:
    """A module, and all mutants of it."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        parts = path.with_suffix("").parts
        self.module = ".".join(parts[len(parts) - parts[::-1].index("cowengine") - 1 :])
        self.name = self.module.replace(".", "/") + ".py"  # from the project's root
        tree = ast.parse(path.read_text())
        self._mutants = {
            function: list(self._of(function, function.node, "body", None, function.node, function.variables))
            for top in tree.body
            for function in _functions(top, top, "")
        }
        self._names: dict[Function, dict[Mutant, str]] = {}

    def mutants(self) -> Iterator[Mutant]:
        for each in self._mutants.values():
            yield from each

    def names(self, function: Function) -> dict[Mutant, str]:
        """Of all mutants of a function. The second that looks the same is called so."""
        if function not in self._names:
            seen: Counter[str] = Counter()
            named = self._names[function] = {}
            for mutant in self._mutants[function]:
                name = mutant.describe()
                seen[name] += 1
                named[mutant] = name if seen[name] == 1 else f"{name} ({seen[name]})"
        return self._names[function]

    def _of(
        self, function: Function, owner: ast.AST, field: str, index: int | None, statement: ast.AST,
        variables: Counter[str],
    ) -> Iterator[Mutant]:  # fmt: skip
        """The mutants of what stands in a place, and of all within it."""
        node = getattr(owner, field)
        if index is None and isinstance(node, list):
            for place, each in enumerate(node):
                if isinstance(each, ast.AST):
                    yield from self._of(function, owner, field, place, statement, variables)
            return
        node = node if index is None else node[index]
        if not isinstance(node, ast.AST):
            return
        if isinstance(node, ast.stmt | ast.ExceptHandler):
            statement = node
        for kind, other in changes(node, owner, field, function, variables):
            ast.fix_missing_locations(ast.copy_location(other, node))
            line = getattr(node, "lineno", function.line)
            yield Mutant(self, function, kind, statement, owner, field, index, other, line)
        if not isinstance(node, UNCHANGED) and not _is_logging(node) and getattr(node, "arg", None) != "strict":
            for name in node._fields:
                if name not in ANNOTATIONS:
                    yield from self._of(function, node, name, None, statement, variables)


def _functions(node: ast.stmt, top: ast.stmt, prefix: str) -> Iterator[Function]:
    if isinstance(node, ast.ClassDef):
        for each in node.body:
            yield from _functions(each, top, f"{prefix}{node.name}.")
    elif isinstance(node, ast.FunctionDef) and node.name not in FOR_PEOPLE:
        line = min([node.lineno, *(each.lineno for each in node.decorator_list)])
        yield Function(prefix + node.name, line, top, node)


def _is_logging(node: ast.AST) -> bool:
    """A statement or call that writes to the log."""
    call = node.value if isinstance(node, ast.Expr) else node
    return isinstance(call, ast.Call) and ast.unparse(call.func).startswith("logger.")


# -- what can stand in the place of a node ----------------------------------------------------------------------------
def changes(node: ast.AST, owner: ast.AST, field: str, function: Function, variables: Counter[str]) -> Iterator[Change]:
    """The changes of one node, but not of what is in it."""
    if field in ("test", "ifs") and not isinstance(owner, ast.Assert):
        if not isinstance(owner, ast.While):
            yield "always", ast.Constant(True)
        yield "never", ast.Constant(False)
    if isinstance(node, ast.stmt):
        yield from _of_statement(node, function, variables)
    elif isinstance(node, ast.ExceptHandler) and not isinstance(node.body[0], ast.Raise):
        yield "not caught", ast.ExceptHandler(node.type, node.name, [ast.Raise()])
    elif isinstance(node, ast.Compare):
        for place, operator in enumerate(node.ops):
            others = [*node.ops[:place], COMPARISONS[type(operator)](), *node.ops[place + 1 :]]
            yield "comparison", ast.Compare(node.left, others, node.comparators)
    elif isinstance(node, ast.BoolOp):
        yield "and, or", ast.BoolOp(ast.And() if isinstance(node.op, ast.Or) else ast.Or(), node.values)
        for place, _ in enumerate(node.values):
            rest = node.values[:place] + node.values[place + 1 :]
            yield "part of a condition", rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)
    elif isinstance(node, ast.UnaryOp):
        yield "sign", node.operand
    elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        yield "operator", ast.BinOp(node.left, OPERATORS[type(node.op)](), node.right)
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield "constant", ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int):
        yield "constant", ast.Constant(node.value + 1)
        if node.value:
            yield "constant", ast.Constant(node.value - 1)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CALLS:
        keywords = [] if node.func.id == "sorted" else node.keywords
        yield "call", ast.Call(ast.Name(CALLS[node.func.id], ast.Load()), node.args, keywords)


def _of_statement(node: ast.stmt, function: Function, variables: Counter[str]) -> Iterator[Change]:
    if _is_dropped(node, variables):
        yield "dropped", ast.Pass()
    if isinstance(node, ast.AugAssign) and type(node.op) in OPERATORS:
        yield "operator", ast.AugAssign(node.target, OPERATORS[type(node.op)](), node.value)
    if isinstance(node, ast.Return) and node.value is not None:
        kind = "" if function.node.returns is None else ast.unparse(function.node.returns)
        if isinstance(node.value, ast.Constant):
            return  # is changed as such, or is None
        if kind == "int":
            yield "returned", ast.Return(ast.BinOp(node.value, ast.Add(), ast.Constant(1)))
        elif kind != "bool":
            yield "returned", ast.Return(ast.Constant(None))
        elif not isinstance(node.value, ast.UnaryOp | ast.Compare):
            yield "returned", ast.Return(ast.UnaryOp(ast.Not(), node.value))


def _is_dropped(node: ast.stmt, variables: Counter[str]) -> bool:
    """Whether a function without the statement is worth a look. One that lacks a variable is not."""
    if isinstance(node, ast.Expr):
        return not isinstance(node.value, ast.Constant) and not _is_logging(node)
    if isinstance(node, ast.Assign | ast.AugAssign):  # with an annotation it is the first, and tells the type
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names = [each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)
                 and isinstance(each.ctx, ast.Store)]  # fmt: skip
        return all(variables[name] > 1 for name in names)
    if isinstance(node, ast.Return):
        return node.value is None
    return isinstance(node, ast.Raise | ast.Delete | ast.Break | ast.Continue)
