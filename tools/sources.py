"What can be said of a package's style from its source alone: each function gives what is wrong, one line a fault."
import ast, re
from collections.abc import Iterable, Iterator
from pathlib import Path

COLUMNS, ATTRIBUTES = 120, 12


def classes(tree: ast.AST) -> Iterator[ast.ClassDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))


def names(nodes: Iterable[ast.expr]) -> list[str]: return [node.id for node in nodes if isinstance(node, ast.Name)]


def reopened(path: Path) -> list[str]:
    "Classes that derive from their own name, or whose name is defined twice in one place."
    tree, found = ast.parse(path.read_text(encoding='utf-8')), []
    for node in classes(tree):
        if node.name in names(node.bases): found.append(f'{path.name}:{node.lineno} opens the class {node.name} again')
    for scope in ast.walk(tree):
        if not isinstance(scope, (ast.Module, ast.ClassDef, ast.FunctionDef)): continue
        seen: set[str] = set()
        for node in scope.body:
            if not isinstance(node, ast.ClassDef): continue
            if node.name in seen and node.name not in names(node.bases):
                found.append(f'{path.name}:{node.lineno} defines the class {node.name} a second time')
            seen.add(node.name)
    return found


def long_lines(path: Path) -> list[str]:
    "Lines over the limit, but for the list of names that nbdev writes."
    source = re.sub(r'^__all__ = \[.*?\]$', lambda found: '\n'*found[0].count('\n'), path.read_text(encoding='utf-8'),
                    flags=re.M | re.S)
    lines = source.splitlines()
    return [f'{path.name}:{i} has {len(line)} columns' for i, line in enumerate(lines, 1) if len(line) > COLUMNS]


def own_attributes(node: ast.ClassDef) -> set[str]:
    "Fields that a class body declares (a dataclass's), and what its methods assign to on `self`."
    declared = [item for item in node.body if isinstance(item, ast.AnnAssign)]
    fields = set(names(item.target for item in declared if 'ClassVar' not in ast.unparse(item.annotation)))
    for method in node.body:
        if not isinstance(method, (ast.FunctionDef, ast.AsyncFunctionDef)) or not method.args.args: continue
        me = method.args.args[0].arg
        fields |= {found.attr for found in ast.walk(method) if isinstance(found, ast.Attribute)
                   and isinstance(found.ctx, ast.Store) and me in names([found.value])}
    return fields


def crowded(paths: Iterable[Path]) -> list[str]:
    "Classes with more than a dozen attributes; those of base classes in the same modules count."
    own: dict[str, set[str]] = {}
    bases: dict[str, set[str]] = {}
    module: dict[str, str] = {}
    for path in paths:
        for node in classes(ast.parse(path.read_text(encoding='utf-8'))):
            own.setdefault(node.name, set()).update(own_attributes(node))
            bases.setdefault(node.name, set()).update(names(node.bases))
            module[node.name] = path.name

    def held(name: str, below: tuple[str, ...] = ()) -> set[str]:
        if name not in own or name in below: return set()
        return own[name].union(*(held(base, (*below, name)) for base in bases[name]))

    counts = {name: sorted(held(name)) for name in own}
    return [f'{name} in {module[name]} has {len(attributes)} attributes ({", ".join(attributes)})'
            for name, attributes in counts.items() if len(attributes) > ATTRIBUTES]


def numbers(notebooks: Iterable[Path]) -> list[str]:
    "Notebooks without a number of two digits (its tens are the phase of the work), or with one that is taken."
    owner: dict[str, str] = {}
    found = []
    for path in notebooks:
        if path.name == 'index.ipynb': continue
        if not (number := re.match(r'(\d\d)_', path.name)): found.append(f'{path.name} has no number of two digits')
        elif owner.setdefault(number[1], path.name) != path.name:
            found.append(f'{owner[number[1]]} and {path.name} share a number')
    return found


def lost_notebooks(pages: Iterable[Path], notebooks: Iterable[Path]) -> list[str]:
    "Mentions of a notebook, by its numbered name, that is not there."
    known, found = {path.name for path in notebooks}, []
    for page in pages:
        mentioned = set(re.findall(r'\b\d\d_\w+\.ipynb', page.read_text(encoding='utf-8')))
        where = f'{page.parent.name}/{page.name}'
        found += [f'{where} names {name}, which is not there' for name in sorted(mentioned - known)]
    return found
