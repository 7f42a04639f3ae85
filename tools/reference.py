"The reference of the package as Markdown for Sphinx, read from its source alone: nothing is imported."
import ast, io, json, re, tokenize
from collections.abc import Iterator
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef
FUNCTION, WIDTH = (ast.FunctionDef, ast.AsyncFunctionDef), 100        # characters of a constant that are shown


def comments(source: str) -> dict[int, str]:
    "The comment of each line, without what only the type checker reads."
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    found = {t.start[0]: re.sub(r'# *type: *ignore\S*', '', t.string) for t in tokens if t.type == tokenize.COMMENT}
    return {n: said for n, text in found.items() if (said := text.lstrip('#').strip())}


class Module:
    "A module as its file says it: public names, definitions, comments, and the notebook's cell of each."

    def __init__(self, path: Path):
        source = path.read_text(encoding='utf-8')
        self.name, self.tree, found = f'lyra.{path.stem}', ast.parse(source), comments(source)
        edited = re.search(r'File to edit: \.\./(\S+)\.\n', source)
        self.notebook = edited[1] if edited else ''
        self.cells = {n: text.rpartition('#')[2] for n, text in found.items() if text.startswith('%% ../')}
        self.comments = {n: text for n, text in found.items() if n not in self.cells}
        self.summary = ast.get_docstring(self.tree) or ''
        public = next(ast.literal_eval(node.value) for node in self.tree.body if '__all__' in defines(node))
        self.public = {name: node for node in self.tree.body for name in defines(node) if name in public}

    def cell(self, node: ast.stmt) -> str:
        "The anchor of the notebook's cell in which a thing is defined."
        return anchor(self.notebook, self.cells[max(n for n in self.cells if n <= node.lineno)])


def anchor(notebook: str, cell: str) -> str:
    return f'cell-{Path(notebook).stem}-{cell}'.replace('_', '-').lower()


def modules(folder: Path) -> list[Module]:
    "Those that notebooks export, in the notebooks' order."
    found = [Module(path) for path in folder.glob('[!_]*.py')]
    return sorted(found, key=lambda m: m.notebook)


def defines(node: ast.stmt) -> list[str]:
    "The names that a statement of a module defines."
    if isinstance(node, (*FUNCTION, ast.ClassDef)): return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [leaf.id for target in targets for leaf in ast.walk(target) if isinstance(leaf, ast.Name)]


def decorated(node: Function | ast.ClassDef, word: str) -> bool:
    return any(word in ast.unparse(d) for d in node.decorator_list)


def is_property(node: Function) -> bool: return decorated(node, 'property')


def methods(node: ast.ClassDef) -> list[Function]:
    return [item for item in node.body if isinstance(item, FUNCTION) and not item.name.startswith('_')]


def fields(node: ast.ClassDef) -> dict[str, ast.AnnAssign]:
    "What a class body declares for each of its objects."
    declared = [item for item in node.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)]
    return {item.target.id: item for item in declared if not item.target.id.startswith('_')
            and 'ClassVar' not in ast.unparse(item.annotation)}


def parameters(node: Function, bound: bool = False) -> dict[str, ast.arg]:
    "By the name that is shown, without the first of a method."
    args = node.args
    named = [*args.posonlyargs, *args.args][bound and not decorated(node, 'staticmethod'):]
    pairs = [('', a) for a in named] + [('*', args.vararg)] + [('', a) for a in args.kwonlyargs] + [('**', args.kwarg)]
    return {stars + a.arg: a for stars, a in pairs if a}


def said(module: Module, nodes: dict[str, ast.AST]) -> dict[str, str]:
    "What comments say of parameters, in nbdev's way: a line's comment is of the last parameter that stands on it."
    last = {node.lineno: name for name, node in nodes.items()}
    return {name: module.comments[n] for n, name in last.items() if n in module.comments}


def described(module: Module, node: Function, bound: bool = False) -> dict[str, str]:
    "The comments of a function's parameters, and of what it returns as `return`."
    return said(module, parameters(node, bound) | ({'return': node.returns} if node.returns else {}))


def gaps(module: Module) -> Iterator[str]:
    "Public functions, classes and methods without a docstring, or with parameters of which nothing is said."
    for name, node in module.public.items():
        if isinstance(node, FUNCTION): yield from unsaid(module, f'{module.name}.{name}', node)
        if not isinstance(node, ast.ClassDef): continue
        if not ast.get_docstring(node): yield f'{module.name}.{name} has no docstring'
        for item in methods(node): yield from unsaid(module, f'{module.name}.{name}.{item.name}', item, bound=True)


def unsaid(module: Module, label: str, node: Function, bound: bool = False) -> Iterator[str]:
    "What a function leaves undocumented."
    if not ast.get_docstring(node): yield f'{label} has no docstring'
    missing = [name for name in parameters(node, bound) if name not in described(module, node, bound)]
    if missing: yield f"{label} says nothing of {', '.join(missing)}"


def plain(text: str) -> str:
    "Text in which Markdown has no meaning but in `code`."
    parts = re.split(r'(`[^`]+`)', text)
    return ''.join(part if i % 2 else re.sub(r'([\\*_<>\[\]$|{}])', r'\\\1', part) for i, part in enumerate(parts))


def unquoted(node: ast.AST) -> ast.AST:
    "Annotations that are written as strings, without the quotes."
    for leaf in ast.walk(node):
        if isinstance(leaf, (ast.arg, ast.AnnAssign)) and isinstance(leaf.annotation, ast.Constant):
            leaf.annotation = ast.Name(str(leaf.annotation.value))
    return node


def shown(node: ast.expr | None) -> str:
    return '' if node is None else str(node.value) if isinstance(node, ast.Constant) else ast.unparse(node)


def signature(node: Function, bound: bool = False) -> str:
    "The parameters as Python, and what is returned."
    args = unquoted(ast.parse(f'def f({ast.unparse(node.args)}): 0')).body[0].args
    if bound and not decorated(node, 'staticmethod'): del (args.posonlyargs or args.args)[0]
    return f'({ast.unparse(args)})' + (f' -> {shown(node.returns)}' if node.returns else '')


def constructor(node: ast.ClassDef) -> str:
    "A class's parameters: those of `__init__`, or its fields where they are the parameters."
    for item in node.body:
        if isinstance(item, FUNCTION) and item.name == '__init__': return signature(item, bound=True).split(' -> ')[0]
    if not (decorated(node, 'dataclass') or any('Schema' in ast.unparse(b) for b in node.bases)): return ''
    return f"({', '.join(ast.unparse(unquoted(item)) for item in fields(node).values())})"


def directive(kind: str, argument: str, body: str, **options: str) -> str:
    "A MyST directive, whose fence is longer than any in its body."
    fence = ':'*(1 + max([2, *map(len, re.findall('^:{3,}', body, flags=re.M))]))
    lines = [f'{fence}{{py:{kind}}} {argument}', *(f':{k}: {v}'.rstrip() for k, v in options.items()), '', body, fence]
    return '\n'.join(lines)


def listed(notes: dict[str, str], kind: str = 'param') -> str:
    return '\n'.join(f":returns: {plain(text)}" if name == 'return' else f':{kind} {plain(name)}: {plain(text)}'
                     for name, text in notes.items())


def text(*parts: str) -> str: return '\n\n'.join(part for part in parts if part)


def docstring(node: Function | ast.ClassDef) -> str: return plain(ast.get_docstring(node) or '')


def function(module: Module, node: Function, owner: str = '', source: str = '') -> str:
    "A function; with `owner`, a method or a property of that class."
    body = text(docstring(node), listed(described(module, node, bool(owner))), source)
    name = f'{owner}.{node.name}' if owner else node.name
    if owner and is_property(node):
        return directive('property', name, body, **({'type': shown(node.returns)} if node.returns else {}))
    flags = {word: '' for word in ('classmethod', 'staticmethod') if decorated(node, word)}
    if isinstance(node, ast.AsyncFunctionDef): flags['async'] = ''
    return directive('method' if owner else 'function', name + signature(node, bool(owner)), body, **flags)


def class_(module: Module, node: ast.ClassDef, source: str) -> str:
    "A class with its fields and public methods."
    arguments = constructor(node)
    bases = f"Derives from {', '.join(f'`{ast.unparse(b)}`' for b in node.bases)}." if node.bases else ''
    made = next((item for item in node.body if isinstance(item, FUNCTION) and item.name == '__init__'), None)
    notes = listed(described(module, made, bound=True)) if made else ''
    declared = listed(said(module, fields(node)), 'param' if arguments and not made else 'ivar')
    members = [function(module, item, node.name) for item in methods(node)]
    return directive('class', node.name + arguments, text(docstring(node), bases, notes, declared, source, *members))


def constant(module: Module, name: str, node: ast.Assign | ast.AnnAssign, source: str) -> str:
    "A name with its value, where that is short, and its comment."
    value = ast.unparse(node.value) if node.value and defines(node) == [name] else ''
    written = json.dumps(value, ensure_ascii=False)       # in quotes, since a value may begin with one
    return directive('data', name, text(plain(module.comments.get(node.lineno, '')), source),
                     **({'value': written} if value and len(value) <= WIDTH else {}))


def entry(module: Module, name: str, node: ast.stmt) -> str:
    "What the reference says of one public name."
    source = f'Defined in [{Path(module.notebook).stem}](#{module.cell(node)}).'
    if isinstance(node, ast.ClassDef): return class_(module, node, source)
    return function(module, node, source=source) if isinstance(node, FUNCTION) else constant(module, name, node, source)


def front_names(path: Path) -> str:
    "The names that the package itself gives, each with the module it comes from."
    tree = ast.parse(path.read_text(encoding='utf-8'))
    home = next(node.value for node in tree.body if defines(node) == ['_home'])
    return ', '.join(f'{{py:obj}}`{k.arg} <lyra.{ast.literal_eval(k.value)}.{k.arg}>`' for k in home.keywords)


def page(module: Module) -> str:
    "The reference of a module."
    kinds = {'Classes': ast.ClassDef, 'Functions': FUNCTION, 'Constants': (ast.Assign, ast.AnnAssign)}
    parts = [f'# {module.name}', plain(module.summary), f'Notebook: `{module.notebook}`',
             directive('module', module.name, '')]
    for heading, kind in kinds.items():
        entries = [entry(module, name, node) for name, node in module.public.items() if isinstance(node, kind)]
        if entries: parts += [f'## {heading}', *entries]
    return text(*parts) + '\n'
