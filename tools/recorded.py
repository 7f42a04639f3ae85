"""Whether the cells that no check runs, those flagged `slow`, still name what there is and call it as it is called now."""
import ast, importlib, inspect, json, re
from pathlib import Path
from types import ModuleType
from typing import Any

OURS = ('lyra', 'lyra_bench', 'injection_v1', 'episodic_memory', 'graph_memory')


def _trees(path: Path) -> list[tuple[str, ast.Module]]:
    "The first line of each code cell, and what it says; without magic commands."
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    sources = [''.join(c['source']) for c in cells if c['cell_type'] == 'code']
    return [(s.partition('\n')[0], ast.parse(re.sub(r'^[%!].*', '', s, flags=re.M))) for s in sources]


def _imported(node: ast.ImportFrom) -> tuple[dict[str, Any], list[str]]:
    "What a line imports from our packages, and the names that are not there."
    home = importlib.import_module(node.module or '')
    found = {a.asname or a.name: getattr(home, a.name) for a in node.names if hasattr(home, a.name)}
    return found, [f'{node.module}.{a.name}' for a in node.names if a.name != '*' and not hasattr(home, a.name)]


def _called(node: ast.Call, names: dict[str, Any]) -> Any:
    "The function or class of ours that is called, where that can be told; else None."
    f, found = node.func, None
    if isinstance(f, ast.Name): found = names.get(f.id)
    elif isinstance(f, ast.Attribute) and isinstance(f.value, ast.Name):
        if isinstance(owner := names.get(f.value.id), type | ModuleType): found = inspect.getattr_static(owner, f.attr, None)
    if isinstance(found, staticmethod): found = found.__func__
    is_ours = str(getattr(found, '__module__', '')).startswith(OURS)
    return found if is_ours and (inspect.isfunction(found) or inspect.isclass(found)) else None


def _misfit(node: ast.Call, called: Any) -> str:
    "Why a call cannot be made; '' where it can, or where that cannot be told."
    if any(isinstance(a, ast.Starred) for a in node.args) or any(k.arg is None for k in node.keywords): return ''
    try: inspect.signature(called).bind(*node.args, **{str(k.arg): k.value for k in node.keywords})
    except TypeError as e: return f'{ast.unparse(node.func)}(...): {e}'
    return ''


def faults(path: Path, package: str) -> list[str]:
    "What the slow cells of a notebook, of a package, name or call that is not there like this any more."
    trees, names, out = _trees(path), dict[str, Any](), list[str]()
    exports = next((first.split()[-1] for first, _ in trees if first.startswith('#| default_exp')), '')
    if exports: names |= vars(importlib.import_module(f'{package}.{exports}'))
    for first, tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or '').startswith(OURS):
                found, lost = _imported(node)
                names |= found
                if first.startswith('#| slow'): out += [f'there is no {name}' for name in lost]
        if not first.startswith('#| export'):                                   # what a page defines for itself
            for node in tree.body:
                if isinstance(node, ast.FunctionDef | ast.ClassDef): names.pop(node.name, None)
    for node in (node for first, tree in trees if first.startswith('#| slow') for node in ast.walk(tree)):
        if isinstance(node, ast.Call) and (called := _called(node, names)): out.append(_misfit(node, called))
    return [f'{path.name}: {fault}' for fault in out if fault]
