"""Finds the values of a Python program's arguments, as far as they can be read without running it.

Understands literals, names, sums of texts and lists, common methods, conditions on Python's version and on
the platform, and files of the tree that the program opens. Anything else is UNKNOWN.

Invariants: nothing runs. What a hostile program can make this do is bounded: MAX_STEPS nodes and items are
read, no value grows over MAX_VALUE, and only flat values are compared, hashed or made to text.
"""

from __future__ import annotations

import ast
import os
import posixpath
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

MAX_STEPS = 50_000
MAX_VALUE = 1 << 20  # characters of a text, or items of a list
MAX_DEPTH = 60


class _Unknown:
    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN: Any = _Unknown()


@dataclass(frozen=True)
class Call:
    """A call whose arguments were read. name: of the function, as `setup` or `session.install`."""

    name: str
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]

    def argument(self, position: int, keyword: str) -> Any:
        """The value of an argument, UNKNOWN if it is not given."""
        if keyword in self.keywords:
            return self.keywords[keyword]
        return self.arguments[position] if position < len(self.arguments) else UNKNOWN


@dataclass(frozen=True)
class OpenedFile:
    """A file of the tree that the program opens."""

    path: str


class _TooMuch(Exception):
    """The program is larger than what is read."""


@dataclass
class ProgramReader:
    """Reads one module.

    text_of  gives the text of a file that the program opens, None if there is none
    folder   of the module
    wanted   the calls to keep, by the last part of their names
    python   the version that `sys.version_info` stands for, None for the one that runs selfplay
    """

    text_of: Callable[[str], str | None]
    folder: str
    wanted: frozenset[str]
    python: str | None = None
    calls: list[Call] = field(default_factory=list)
    _names: dict[str, Any] = field(default_factory=dict)
    _functions: dict[str, ast.FunctionDef] = field(default_factory=dict)
    _steps: int = 0
    _depth: int = 0

    def read(self, module: ast.Module) -> list[Call]:
        """Every wanted call in the order of the module, those in functions included."""
        try:
            self._run(module.body)
            for function in list(self._functions.values()):
                self._run(function.body)
        except (_TooMuch, RecursionError):
            pass
        return self.calls

    # ---- statements

    def _run(self, body: Sequence[ast.stmt]) -> None:
        for statement in body:
            self._step()
            self._statement(statement)

    def _statement(self, node: ast.stmt) -> None:
        if isinstance(node, ast.Assign):
            value = self.value(node.value)
            for target in node.targets:
                self._assign(target, value)
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            self._assign(node.target, self.value(node.value))
        elif isinstance(node, ast.AugAssign):
            self._assign(node.target, _add(self.value(node.target), self.value(node.value)))
        elif isinstance(node, ast.Expr):
            self.value(node.value)
        elif isinstance(node, ast.Return):
            self.value(node.value) if node.value is not None else None
        elif isinstance(node, ast.If):
            truth = self.value(node.test)
            self._run(node.body if truth is not UNKNOWN and truth else node.orelse)
            if truth is UNKNOWN:
                self._look_into(node.body)
        elif isinstance(node, ast.With):
            for item in node.items:
                if item.optional_vars is not None:
                    self._assign(item.optional_vars, self.value(item.context_expr))
            self._run(node.body)
        elif isinstance(node, ast.Try):
            self._run([*node.body, *node.orelse, *node.finalbody])
        elif isinstance(node, ast.For):
            self._loop(node)
        elif isinstance(node, ast.FunctionDef):
            self._functions[node.name] = node

    def _look_into(self, body: Sequence[ast.stmt]) -> None:
        """Read the wanted calls under a condition that nobody knows, and forget what is assigned there."""
        if any(self._is_wanted(node) for statement in body for node in ast.walk(statement)):
            self._run(body)

    def _is_wanted(self, node: ast.AST) -> bool:
        return isinstance(node, ast.Call) and _name_of(node.func).rpartition(".")[2] in self.wanted

    def _loop(self, node: ast.For) -> None:
        for item in self._items(self._contents(self.value(node.iter)))[:100] or [UNKNOWN]:
            self._assign(node.target, item)
            self._run(node.body)

    def _assign(self, target: ast.expr, value: Any) -> None:
        if isinstance(target, ast.Name):
            self._names[target.id] = value
        elif isinstance(target, ast.Subscript):
            holder, key = self.value(target.value), self.value(target.slice)
            if isinstance(holder, dict) and isinstance(key, str | int):
                holder[key] = value
        elif isinstance(target, ast.Tuple | ast.List):
            values = self._items(value)
            for index, part in enumerate(target.elts):
                self._assign(part, values[index] if index < len(values) else UNKNOWN)

    # ---- expressions

    def value(self, node: ast.expr) -> Any:
        """The value of an expression, or UNKNOWN."""
        self._step()
        self._depth += 1
        try:
            if self._depth > MAX_DEPTH:
                return UNKNOWN
            reader: Callable[[Any], Any] | None = getattr(self, f"_read_{type(node).__name__}", None)
            return UNKNOWN if reader is None else _bounded(reader(node))
        except (TypeError, ValueError, LookupError, AttributeError, OverflowError):
            return UNKNOWN
        finally:
            self._depth -= 1

    def _step(self, count: int = 1) -> None:
        self._steps += count
        if self._steps > MAX_STEPS:
            raise _TooMuch

    def _read_Constant(self, node: ast.Constant) -> Any:
        return node.value

    def _read_Name(self, node: ast.Name) -> Any:
        if node.id == "__name__":
            return "__main__"
        if node.id == "__file__":
            return posixpath.join(self.folder, "setup.py")
        return self._names.get(node.id, UNKNOWN)

    def _read_Attribute(self, node: ast.Attribute) -> Any:
        known = {
            "sys.version_info": self._version(),
            "sys.platform": sys.platform,
            "os.name": os.name,
        }
        name = _name_of(node)
        if name in known:
            return known[name]
        holder = self.value(node.value)
        if isinstance(holder, str | OpenedFile) and node.attr in ("parent", "dirname"):
            return posixpath.dirname(_path(holder))
        if isinstance(holder, tuple) and node.attr in ("major", "minor"):
            return holder[("major", "minor").index(node.attr)]
        return UNKNOWN

    def _version(self) -> tuple[int, ...]:
        return (*map(int, self.python.split(".")), 0) if self.python else tuple(sys.version_info[:3])

    def _read_List(self, node: ast.List) -> list[Any]:
        return list(self._elements(node.elts))

    def _read_Tuple(self, node: ast.Tuple) -> tuple[Any, ...]:
        return tuple(self._elements(node.elts))

    def _read_Set(self, node: ast.Set) -> list[Any]:
        return list(self._elements(node.elts))

    def _elements(self, nodes: Sequence[ast.expr]) -> Iterator[Any]:
        for node in nodes:
            if isinstance(node, ast.Starred):
                yield from self._items(self.value(node.value))
            else:
                yield self.value(node)

    def _read_Dict(self, node: ast.Dict) -> dict[Any, Any]:
        values: dict[Any, Any] = {}
        for key, item in zip(node.keys, node.values, strict=True):
            value = self.value(item)
            if key is not None:
                name = self.value(key)
                if isinstance(name, str | int):
                    values[name] = value
            elif isinstance(value, dict):
                values.update(value)
        return values

    def _read_BinOp(self, node: ast.BinOp) -> Any:
        left, right = self.value(node.left), self.value(node.right)
        if isinstance(node.op, ast.Add):
            return _add(left, right)
        if isinstance(node.op, ast.BitOr) and isinstance(left, dict) and isinstance(right, dict):
            return {**left, **right}
        if isinstance(node.op, ast.Div) and isinstance(left, str | OpenedFile) and isinstance(right, str):
            return posixpath.join(_path(left), right)
        if isinstance(node.op, ast.Mod) and isinstance(left, str) and not re.search(r"%[^s%]", left):
            return left % (tuple(map(_plain, right)) if isinstance(right, tuple) else _plain(right))
        return UNKNOWN

    def _read_BoolOp(self, node: ast.BoolOp) -> Any:
        values = [self.value(part) for part in node.values]
        is_and = isinstance(node.op, ast.And)
        for value in values:
            if value is not UNKNOWN and bool(value) != is_and:
                return value
        return UNKNOWN if any(value is UNKNOWN for value in values) else values[-1]

    def _read_UnaryOp(self, node: ast.UnaryOp) -> Any:
        value = self.value(node.operand)
        return UNKNOWN if value is UNKNOWN or not isinstance(node.op, ast.Not) else not value

    def _read_IfExp(self, node: ast.IfExp) -> Any:
        truth = self.value(node.test)
        return UNKNOWN if truth is UNKNOWN else self.value(node.body if truth else node.orelse)

    def _read_Compare(self, node: ast.Compare) -> Any:
        left, right = self.value(node.left), self.value(node.comparators[0])
        if len(node.ops) > 1 or not (_is_flat(left) and _is_flat(right)):
            return UNKNOWN
        match node.ops[0]:
            case ast.Lt():
                return left < right
            case ast.LtE():
                return left <= right
            case ast.Gt():
                return left > right
            case ast.GtE():
                return left >= right
            case ast.Eq():
                return left == right
            case ast.NotEq():
                return left != right
            case ast.In():
                return left in right
            case ast.NotIn():
                return left not in right
        return UNKNOWN

    def _read_JoinedStr(self, node: ast.JoinedStr) -> Any:
        parts = []
        for part in node.values:
            plain = part.value if isinstance(part, ast.FormattedValue) else part
            if isinstance(part, ast.FormattedValue) and part.format_spec is not None:
                return UNKNOWN
            value = self.value(plain)
            if value is UNKNOWN:
                return UNKNOWN
            parts.append(_plain(value))
        return "".join(parts)

    def _read_Subscript(self, node: ast.Subscript) -> Any:
        holder = self.value(node.value)
        if isinstance(node.slice, ast.Slice):
            bounds = [
                None if part is None else self.value(part) for part in (node.slice.lower, node.slice.upper)
            ]
            return (
                UNKNOWN
                if holder is UNKNOWN or any(bound is UNKNOWN for bound in bounds)
                else holder[bounds[0] : bounds[1]]
            )
        key = self.value(node.slice)
        return holder[key] if isinstance(key, str | int) and holder is not UNKNOWN else UNKNOWN

    def _read_ListComp(self, node: ast.ListComp) -> Any:
        first = node.generators[0]
        found = []
        for item in self._items(self._contents(self.value(first.iter))):
            self._assign(first.target, item)
            if all(self.value(test) is UNKNOWN or self.value(test) for test in first.ifs):
                value = self.value(node.elt) if len(node.generators) == 1 else UNKNOWN
                found.append(item if value is UNKNOWN else value)
        return found

    _read_GeneratorExp = _read_SetComp = _read_ListComp

    # ---- calls

    def _read_Call(self, node: ast.Call) -> Any:
        name = _name_of(node.func)
        arguments = tuple(self._elements(node.args))
        keywords: dict[str, Any] = {}
        for keyword in node.keywords:
            value = self.value(keyword.value)
            if keyword.arg is not None:
                keywords[keyword.arg] = value
            elif isinstance(value, dict):
                keywords.update({key: item for key, item in value.items() if isinstance(key, str)})
            else:
                keywords["**"] = UNKNOWN
        last = name.rpartition(".")[2]
        call = Call(name, arguments, keywords)
        if last in self.wanted:
            self.calls.append(call)
        if last in ("find_packages", "find_namespace_packages"):
            return call
        if isinstance(node.func, ast.Attribute):
            holder = self.value(node.func.value)
            if holder is not UNKNOWN:
                return self._method(holder, node.func.attr, arguments)
        return self._function(last, call)

    def _function(self, last: str, call: Call) -> Any:
        first = call.arguments[0] if call.arguments else UNKNOWN
        if last == "dict":
            return {**(first if isinstance(first, dict) else {}), **call.keywords}
        if last in ("list", "tuple", "set", "sorted", "frozenset"):
            return self._items(self._contents(first)) if call.arguments else []
        if last in ("str", "Path", "PurePath", "abspath", "realpath", "fspath", "resolve"):
            return first
        if last == "dirname":
            return posixpath.dirname(_path(first))
        if last in ("join", "joinpath"):
            return posixpath.join(*(_path(part) for part in call.arguments))
        if last in ("chain", "sum"):
            parts = call.arguments if last == "chain" else self._items(first)
            return [item for part in parts for item in self._items(part)]
        file = self._named_file(call)
        return self._own_function(call) if file is None else OpenedFile(file)

    def _own_function(self, call: Call) -> Any:
        """What a function of the program returns at its end."""
        function = self._functions.get(call.name)
        if function is None or self._depth > MAX_DEPTH // 2:
            return UNKNOWN
        for parameter, value in zip(function.args.args, call.arguments, strict=False):
            self._names[parameter.arg] = value
        self._run([node for node in function.body if not isinstance(node, ast.Return)])
        last = function.body[-1]
        return self.value(last.value) if isinstance(last, ast.Return) and last.value else UNKNOWN

    def _named_file(self, call: Call) -> str | None:
        """The file of the tree that a call of `open`, or of an unknown function, names."""
        texts = [item for item in (*call.arguments, *call.keywords.values()) if isinstance(item, str)]
        for text in [*texts, posixpath.join(*texts)] if texts else []:
            for folder in (self.folder, ""):
                path = posixpath.normpath(posixpath.join(folder, text.lstrip("/")))
                if self.text_of(path) is not None:
                    return path
        return None

    def _items(self, value: Any) -> list[Any]:
        """The items of a list, or the keys of a dictionary, and [] for any other value."""
        items = list(value) if isinstance(value, list | tuple | dict) else []
        self._step(1 + len(items))
        return items

    def _contents(self, value: Any) -> Any:
        """The lines of a file, and any other value as it is."""
        return (self.text_of(value.path) or "").splitlines() if isinstance(value, OpenedFile) else value

    def _method(self, holder: Any, name: str, arguments: tuple[Any, ...]) -> Any:
        if isinstance(holder, OpenedFile) or (isinstance(holder, str) and name in ("read_text", "open")):
            path = posixpath.normpath(_path(holder))
            text = self.text_of(path) or ""
            self._step(1 + len(text) // 100)
            if name in ("readlines", "splitlines"):
                return text.splitlines()
            if name in ("read", "read_text", "decode", "strip", "readline"):
                return text.split("\n")[0] if name == "readline" else text
            if name == "open":
                return OpenedFile(path)
            holder = text
        if isinstance(holder, dict) and name in ("values", "items", "keys", "get", "update", "setdefault"):
            return _dict_method(holder, name, arguments)
        if isinstance(holder, list) and name in ("append", "extend", "insert", "copy"):
            if name == "extend":
                holder.extend(self._items(self._contents(arguments[0])))
            elif name != "copy":
                holder.append(arguments[-1])
            return list(holder) if name == "copy" else None
        if isinstance(holder, str):
            return _text_method(holder, name, arguments)
        return UNKNOWN


def _dict_method(holder: dict[Any, Any], name: str, arguments: tuple[Any, ...]) -> Any:
    if name == "update":
        return holder.update(arguments[0] if isinstance(arguments[0], dict) else {})
    if name == "setdefault":
        return holder.setdefault(_plain(arguments[0]), arguments[1] if len(arguments) > 1 else None)
    if name == "get":
        return holder.get(_plain(arguments[0]), UNKNOWN)
    return list(holder.items() if name == "items" else holder.values() if name == "values" else holder)


def _text_method(text: str, name: str, arguments: tuple[Any, ...]) -> Any:
    if any(argument is UNKNOWN for argument in arguments):
        return UNKNOWN
    plain = ("strip", "lstrip", "rstrip", "split", "splitlines", "startswith", "endswith", "lower", "decode")
    if name == "decode":
        return text
    if name in plain:
        return getattr(text, name)(*arguments)
    if name == "join":
        parts = [_plain(item) for item in arguments[0]]
        is_small = sum(map(len, parts)) + len(text) * len(parts) < MAX_VALUE
        return text.join(parts) if is_small else UNKNOWN
    if name == "replace" and len(text) * max(1, len(_plain(arguments[1]))) < MAX_VALUE:
        return text.replace(_plain(arguments[0]), _plain(arguments[1]))
    if name == "format" and re.fullmatch(r"[^{}]*(\{\d?\}[^{}]*)*", text):
        return text.format(*map(_plain, arguments))
    return UNKNOWN


def _add(left: Any, right: Any) -> Any:
    if isinstance(left, str) and isinstance(right, str):
        return left + right
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return [*left, *right]
    # Half of a list is better than none.
    known = [value for value in (left, right) if isinstance(value, list | tuple)]
    return [*known[0], UNKNOWN] if len(known) == 1 and (left is UNKNOWN or right is UNKNOWN) else UNKNOWN


def _plain(value: Any) -> str:
    """The text of a plain value. Raises TypeError for a list, whose text could be without end."""
    if isinstance(value, str | int | float):
        return str(value)
    raise TypeError


def _is_flat(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return len(value) < 1000 and all(isinstance(item, str | int | float) for item in value)
    return isinstance(value, str | int | float | None)


def _bounded(value: Any) -> Any:
    return UNKNOWN if isinstance(value, str | list | tuple | dict) and len(value) > MAX_VALUE else value


def _path(value: Any) -> str:
    return value.path if isinstance(value, OpenedFile) else value if isinstance(value, str) else ""


def _name_of(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        holder = _name_of(node.value)
        return f"{holder}.{node.attr}" if holder else node.attr
    return ""
