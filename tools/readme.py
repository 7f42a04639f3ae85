"Write README.md, and its figures, from nbs/index.ipynb; `--check` only tells whether they are current."
import argparse, re, sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent
FIGURES = 'nbs/figures'


def alternative(notebook: nbformat.NotebookNode) -> dict[str, str]:
    "What each figure shows, by the name that the exporter gives it."
    return {f'output_{i}_{j}.png': output.metadata['image/png']['alt'] for i, cell in enumerate(notebook.cells)
            for j, output in enumerate(cell.get('outputs', ())) if 'image/png' in output.get('data', {})}


def render() -> dict[Path, bytes]:
    "The files: the index notebook as Markdown, without hidden cells, directives and the source of `echo: false`."
    notebook = nbformat.read(ROOT/'nbs'/'index.ipynb', as_version=4)
    notebook.cells = [c for c in notebook.cells if not re.match(r'#\|\s*(hide|default_exp)', c.source)]
    for cell in notebook.cells:
        if re.match(r'#\|\s*echo:\s*false', cell.source): cell.source = ''
        cell.source = re.sub(r'^#\|.*\n', '', cell.source, flags=re.M)
    notebook.metadata['language_info'] = {'name': 'python'}
    body, resources = MarkdownExporter().from_notebook_node(notebook)
    files = {}
    for n, (name, alt) in enumerate(alternative(notebook).items(), 1):
        path = f'{FIGURES}/readme_{n}.png'
        files[ROOT/path] = resources['outputs'][name]
        body = body.replace(f'![png]({name})', f'![{alt}]({path})')
    body = re.sub(r'```python\n\s*```\n+', '', body)
    note = '<!-- Generated from nbs/index.ipynb by tools/readme.py: edit the notebook. -->\n\n'
    return {ROOT/'README.md': f'{note}{body.strip()}\n'.encode()} | files


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--check', action='store_true', help='write nothing; exit with 1 if a file is not current')
    files = render()
    if not parser.parse_args().check:
        for path, data in files.items():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
        return 0
    if all(path.exists() and path.read_bytes() == data for path, data in files.items()): return 0
    print('README.md is not what nbs/index.ipynb says: run `python tools/readme.py` and commit it.')
    return 1


if __name__ == '__main__': sys.exit(main())
