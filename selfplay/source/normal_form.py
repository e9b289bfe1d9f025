"""The normal form of a source file: a text that is equal for files that differ in their spelling alone. Pure.

Comments, blank lines, formatting and quotes never count. Docstrings, names of parameters and local variables,
their annotations, `pass` and the order of neighbouring definitions or imports count in the exact form only.
It does not find that two programs do the same: an added statement without effect gives another form.

Invariant: the source may be hostile. The work is linear in its size but for sorting, and its depth does not
matter.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count, groupby

from selfplay.source.syntax import parse_module, source_encoding

UNREADABLE = "no Python"
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
IMPORTS = (ast.Import, ast.ImportFrom)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
LEFT_OUT = ("ctx", "kind", "type_comment")  # fields of nodes that only repeat what stands elsewhere


def normal_form(path: str, content: bytes, exact: bool = False) -> str:
    """The normal form of a file. A Python file that does not parse is UNREADABLE, whatever is in it.

    Files in other languages lose blank lines and trailing blanks only.
    """
    if not path.endswith(".py"):
        text = content.decode(*source_encoding(path, content))
        return "\n".join(line.rstrip() for line in text.split("\n") if line.strip())
    module = parse_module(content)
    if module is None:
        return UNREADABLE
    return "\n".join(_block(module.body, _Scope(exact)))


# ---- names


@dataclass
class _Scope:
    """Where a name is looked up.

    exact    keep every name and statement
    own      the names that a function binds; None for a module or class, whose names stay as they are
    plain    names that stay as they are: those of a class, and those that a function calls global
    parent   the scope around this one
    numbers  of the local variables, in the order in which they first appear in the outermost function
    """

    exact: bool
    own: frozenset[str] | None = None
    plain: frozenset[str] = frozenset()
    parent: _Scope | None = None
    numbers: count[int] = field(default_factory=count)
    known: dict[str, str] = field(default_factory=dict)

    def shown(self, name: str) -> str:
        """The name, or the number that stands for a local variable."""
        scope: _Scope | None = self
        while scope is not None and not self.exact and name not in scope.plain:
            if scope.own is not None and name in scope.own:
                if name not in scope.known:
                    scope.known[name] = f"_{next(scope.numbers)}"
                return scope.known[name]
            scope = scope.parent
        return name

    def function(self, own: Iterable[str], plain: Iterable[str] = ()) -> _Scope:
        """The scope of a function within this one. Functions do not see the names of a class around them."""
        outer = self
        while outer.own is None and outer.parent is not None:
            outer = outer.parent
        is_outermost = outer.own is None
        numbers = count() if is_outermost else outer.numbers
        return _Scope(self.exact, frozenset(own), frozenset(plain), outer, numbers)


def _parameters(arguments: ast.arguments) -> list[str]:
    rest = [one for one in (arguments.vararg, arguments.kwarg) if one is not None]
    return [one.arg for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, *rest)]


def _bound(body: Sequence[ast.AST]) -> tuple[set[str], set[str]]:
    """The names that the statements bind in their own scope, and those that they declare global."""
    bound: set[str] = set()
    declared: set[str] = set()
    globals_: set[str] = set()
    stack: list[tuple[ast.AST, bool]] = [(node, False) for node in body]
    while stack:
        node, in_comprehension = stack.pop()
        if isinstance(node, ast.Name):
            if not in_comprehension and not isinstance(node.ctx, ast.Load):
                bound.add(node.id)
        elif isinstance(node, ast.NamedExpr):
            bound.add(node.target.id)
            stack.append((node.value, in_comprehension))
            continue
        elif isinstance(node, DEFINITIONS):
            bound.add(node.name)
            continue
        elif isinstance(node, ast.Lambda):
            continue
        elif isinstance(node, ast.alias):
            bound.add(node.asname or node.name.partition(".")[0])
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            bound.add(node.name)
        elif isinstance(node, ast.MatchMapping) and node.rest:
            bound.add(node.rest)
        elif isinstance(node, ast.Global | ast.Nonlocal):
            declared.update(node.names)
            globals_.update(node.names if isinstance(node, ast.Global) else ())
        inside = in_comprehension or isinstance(node, COMPREHENSIONS)
        stack += [(child, inside) for child in ast.iter_child_nodes(node)]
    return bound - declared, globals_


# ---- writing


def _block(body: Sequence[ast.stmt], scope: _Scope) -> list[str]:
    """The statements of a module or class. Neighbouring definitions, and neighbouring imports, are sorted."""

    def kind(node: ast.stmt) -> int:
        return 1 if isinstance(node, DEFINITIONS) else 2 if isinstance(node, IMPORTS) else 0

    rows: list[str] = []
    for number, nodes in groupby(_kept(body, scope), kind):
        texts = [_statement(node, scope) for node in nodes]
        rows += sorted(texts) if number and not scope.exact else texts
    return rows


def _statement(node: ast.stmt, scope: _Scope) -> str:
    if not isinstance(node, ast.ClassDef):
        return _written([node], scope)
    head = _written([*node.decorator_list, *node.bases, *node.keywords], scope)
    return f"class {node.name} {head} {{ {' ; '.join(_block(node.body, _class_scope(node, scope)))} }}"


def _class_scope(node: ast.ClassDef, scope: _Scope) -> _Scope:
    return _Scope(scope.exact, None, frozenset(_bound(node.body)[0]), scope, scope.numbers)


def _kept(nodes: Sequence[ast.stmt], scope: _Scope) -> list[ast.stmt]:
    """The statements that do something."""
    return [node for node in nodes if scope.exact or not _is_idle(node, scope)]


def _is_idle(node: ast.AST, scope: _Scope) -> bool:
    is_constant = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    is_annotation = isinstance(node, ast.AnnAssign) and node.value is None and scope.own is not None
    return is_constant or is_annotation or isinstance(node, ast.Pass | ast.Global | ast.Nonlocal)


class _Text(str):
    """Text that is written as it is."""


def _written(nodes: Sequence[ast.AST], scope: _Scope) -> str:
    """The nodes in order, with their names as `scope` shows them."""
    words: list[str] = []
    stack: list[tuple[object, _Scope]] = [(node, scope) for node in reversed(nodes)]
    while stack:
        item, scope = stack.pop()
        if isinstance(item, _Text):
            words.append(item)
        elif isinstance(item, list | tuple):
            kept = [
                part
                for part in item
                if scope.exact or not (isinstance(part, ast.stmt) and _is_idle(part, scope))
            ]
            stack += [(part, scope) for part in (_Text("]"), *reversed(kept), _Text("["))]
        elif isinstance(item, ast.AST):
            stack += reversed(_parts(item, scope))
        else:
            words.append(hex(item) if type(item) is int else repr(item))  # repr refuses large numbers
    return " ".join(words)


def _parts(node: ast.AST, scope: _Scope) -> list[tuple[object, _Scope]]:
    """What is written for a node: parts, each with the scope of its names."""
    kind = _Text(type(node).__name__)

    def parts(*items: object) -> list[tuple[object, _Scope]]:
        return [(item, scope) for item in (kind, *items)]

    if isinstance(node, ast.Name):
        return parts(_Text(scope.shown(node.id)))
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        bound, plain = _bound(node.body)
        inner = scope.function(bound.union(_parameters(node.args)), plain)
        hints = [node.returns] if scope.exact else []
        head = parts(_Text(scope.shown(node.name)), node.decorator_list, *hints)
        return [*head, *_arguments(node.args, scope, inner), (node.body, inner)]
    if isinstance(node, ast.Lambda):
        inner = scope.function({*_parameters(node.args), *_bound([node.body])[0]})
        return [*parts(), *_arguments(node.args, scope, inner), (node.body, inner)]
    if isinstance(node, ast.ClassDef):
        inner = _class_scope(node, scope)
        head = parts(_Text(scope.shown(node.name)), node.decorator_list, node.bases, node.keywords)
        return [*head, (node.body, inner)]
    if isinstance(node, COMPREHENSIONS):
        targets = [generator.target for generator in node.generators]
        inner = scope.function(_bound(targets)[0])
        values = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        first = node.generators[0]
        rest = [first.target, first.ifs, first.is_async, node.generators[1:], values]
        return [*parts(first.iter), *((part, inner) for part in rest)]
    if isinstance(node, ast.AnnAssign) and scope.own is not None and not scope.exact:
        return [(_Text("Assign"), scope), ([node.target], scope), (node.value, scope)]
    if isinstance(node, ast.alias):
        return parts(node.name, _Text(scope.shown(node.asname or node.name.partition(".")[0])))
    if isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar | ast.MatchMapping):
        name = node.rest if isinstance(node, ast.MatchMapping) else node.name
        others = [getattr(node, part) for part in node._fields if part not in ("name", "rest")]
        return parts(_Text(scope.shown(name)) if name else None, *others)
    return parts(*(getattr(node, part, None) for part in node._fields if part not in LEFT_OUT))


def _arguments(arguments: ast.arguments, scope: _Scope, inner: _Scope) -> list[tuple[object, _Scope]]:
    """The parameters of a function in its own scope, and their defaults in the one around it."""
    if scope.exact:
        return [(getattr(arguments, part), scope) for part in arguments._fields]
    groups = (
        [one.arg for one in group] for group in (arguments.posonlyargs, arguments.args, arguments.kwonlyargs)
    )
    names = [*groups, *([one.arg] if one else [] for one in (arguments.vararg, arguments.kwarg))]
    written = [([_Text(inner.shown(name)) for name in group], inner) for group in names]
    return [*written, (arguments.defaults, scope), (arguments.kw_defaults, scope)]
