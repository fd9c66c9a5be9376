"""Classes of this package, with all that they need of it, as the text of one file.

transformers runs code that is in a model directory, from files that import only installed libraries and
each other. Such a file is made here from the sources: the definitions that a class needs, directly or through
others, in an order in which they can be executed. Nothing is kept by hand.
"""

import ast
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

_PACKAGE = "lpa"
_SOURCES = Path(__file__).parents[2]
_LINE_LENGTH = 100


@dataclass(frozen=True)
class FlatFile:
    """A file that was made.

    Attributes:
        name: without the suffix.
        body: imports and definitions.
        definitions: the names that it defines.
    """

    name: str
    body: str
    definitions: frozenset[str]


def flatten(name: str, roots: list[tuple[str, str]], beside: FlatFile | None = None) -> FlatFile:
    """The definitions that some names need, as one file.

    A method that imports this package inside itself is left out: it serves the package alone.

    Args:
        name: of the file, without its suffix.
        roots: (module of this package, name in it).
        beside: a file in the same directory; what it defines is imported from it.

    Raises:
        ValueError: two modules give one name to two things, or a function that is needed imports this
            package inside itself. Either is a mistake in the sources.
    """
    closure = _Closure()
    for module, root in roots:
        closure.add(module, root)
    imported = beside.definitions if beside else frozenset()
    needed = [(m, n) for m, n in closure.ordered_definitions() if n not in imported]
    used = {bound for definition in needed for bound in closure.uses[definition]}
    lines = _import_lines({n: found for n, found in closure.imports.items() if n in used})
    if beside and used & imported:
        lines.append(_import_line(f".{beside.name}", used & imported))
    definitions = [_text(_read(module), _read(module).definitions[n]) for module, n in needed]
    body = "\n\n\n".join(["\n".join(lines), *definitions])
    return FlatFile(name, f"{body}\n", frozenset(n for _, n in needed))


class _Closure:
    """What some names need, followed through the modules of this package.

    Attributes:
        uses: (module, name) of a definition -> the names of other definitions and of imports in it.
        imports: name -> (library, name in it, or "" where the library itself is imported).
    """

    def __init__(self) -> None:
        self.uses: dict[tuple[str, str], set[str]] = {}
        self.imports: dict[str, tuple[str, str]] = {}
        self._owners: dict[str, object] = {}
        self._modules: dict[str, None] = {}

    def add(self, module: str, name: str) -> None:
        """Take a name of a module, and all that its definition needs."""
        source = _read(module)
        if name in source.own_imports:
            origin, original = source.own_imports[name]
            if original != name:
                raise ValueError(f"{module}: imports {original} under another name, {name}")
            self.add(origin, name)
        elif name in source.other_imports:
            self._claim(name, source.other_imports[name])
            self.imports[name] = source.other_imports[name]
        elif (module, name) not in self.uses:
            self._claim(name, module)
            self.uses[module, name] = _names_used(source, source.definitions[name])
            for used in sorted(self.uses[module, name]):
                self.add(module, used)

    def _claim(self, name: str, owner: object) -> None:
        if self._owners.setdefault(name, owner) != owner:
            raise ValueError(f"{name}: is one thing in {self._owners[name]}, another in {owner}")

    def ordered_definitions(self) -> list[tuple[str, str]]:
        """Each module after those that it imports, its definitions in its order."""
        for module, _ in self.uses:
            self._visit(module)
        return [(m, n) for m in self._modules for n in _read(m).definitions if (m, n) in self.uses]

    def _visit(self, module: str) -> None:
        if module in self._modules:
            return
        for origin, _ in _read(module).own_imports.values():
            self._visit(origin)
        self._modules[module] = None


@dataclass
class _Source:
    """A module's text, and what its top level binds.

    Attributes:
        own_imports: name -> (module of this package, name in it).
        other_imports: name -> (library, name in it).
    """

    name: str
    lines: list[str]
    definitions: dict[str, ast.stmt] = field(default_factory=dict)
    own_imports: dict[str, tuple[str, str]] = field(default_factory=dict)
    other_imports: dict[str, tuple[str, str]] = field(default_factory=dict)

    def bind(self, statement: ast.stmt) -> None:
        match statement:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                self.definitions[name] = statement
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                self.definitions[name] = statement
            case ast.Import(names=aliases):
                for alias in aliases:
                    bound = alias.asname or alias.name.partition(".")[0]
                    self.other_imports[bound] = (alias.name, "")
            case ast.ImportFrom(module=str(module), names=aliases):
                imports = self.own_imports if _is_ours(statement) else self.other_imports
                for alias in aliases:
                    imports[alias.asname or alias.name] = (module, alias.name)
            # What names stand for in a package whose modules load on first use.
            case ast.If(test=ast.Name(id="TYPE_CHECKING"), body=body):
                for inner in body:
                    self.bind(inner)


@cache
def _read(module: str) -> _Source:
    path = _SOURCES.joinpath(*module.split(".")[1:])
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = path.read_text(encoding="utf-8")
    source = _Source(module, text.splitlines())
    for statement in ast.parse(text).body:
        source.bind(statement)
    return source


def _names_used(source: _Source, node: ast.stmt) -> set[str]:
    """Names of the module's top level that a definition may use, apart from methods that are left out."""
    top_level = source.definitions.keys() | source.own_imports.keys() | source.other_imports.keys()
    left_out = {id(inner) for method in _left_out(node) for inner in ast.walk(method)}
    kept = [inner for inner in ast.walk(node) if id(inner) not in left_out]
    if any(map(_is_ours, kept)):
        raise ValueError(f"{source.name}:{node.lineno}: imports {_PACKAGE} within a function")
    return {inner.id for inner in kept if isinstance(inner, ast.Name) and inner.id in top_level}


def _left_out(node: ast.stmt) -> list[ast.FunctionDef]:
    if not isinstance(node, ast.ClassDef):
        return []
    methods = [inner for inner in node.body if isinstance(inner, ast.FunctionDef)]
    return [method for method in methods if any(map(_is_ours, ast.walk(method)))]


def _is_ours(node: ast.AST) -> bool:
    match node:
        case ast.ImportFrom(module=str(module)):
            return module.partition(".")[0] == _PACKAGE
        case ast.Import(names=aliases):
            return any(alias.name.partition(".")[0] == _PACKAGE for alias in aliases)
    return False


def _text(source: _Source, node: ast.stmt) -> str:
    """The lines of a definition, with the comment above it."""
    left_out = {line for method in _left_out(node) for line in _line_numbers(method)}
    first, *_ = numbers = _line_numbers(node)
    while first > 1 and source.lines[first - 2].startswith("#"):
        first -= 1
    kept = [n for n in range(first, numbers.stop) if n not in left_out]
    return "\n".join(source.lines[n - 1] for n in kept).rstrip()


def _line_numbers(node: ast.stmt) -> range:
    """The lines of a definition, from its first decorator on."""
    decorators = getattr(node, "decorator_list", [])
    assert node.end_lineno is not None
    return range(min([node.lineno, *(d.lineno for d in decorators)]), node.end_lineno + 1)


def _import_lines(imports: dict[str, tuple[str, str]]) -> list[str]:
    """Statements that bind each name to what it is in a library."""
    lines: set[str] = set()
    members: dict[str, set[str]] = defaultdict(set)
    for bound, (library, original) in imports.items():
        if original:
            members[library].add(original if original == bound else f"{original} as {bound}")
        else:
            lines.add(f"import {library}" if library == bound else f"import {library} as {bound}")
    return sorted(lines) + [_import_line(library, members[library]) for library in sorted(members)]


def _import_line(library: str, names: Iterable[str]) -> str:
    line = f"from {library} import {', '.join(sorted(names))}"
    if len(line) <= _LINE_LENGTH:
        return line
    return "\n".join([f"from {library} import (", *(f"    {name}," for name in sorted(names)), ")"])
