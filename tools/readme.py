"Write README.md from nbs/index.ipynb; `--check` only tells whether it is current."
import argparse, re, sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent


def render() -> str:
    "The index notebook as Markdown, without hidden cells and directives; of a cell with `echo: false`, only what it prints."
    notebook = nbformat.read(ROOT/'nbs'/'index.ipynb', as_version=4)
    notebook.cells = [c for c in notebook.cells if not re.match(r'#\|\s*(hide|default_exp)', c.source)]
    for cell in notebook.cells:
        if re.match(r'#\|\s*echo:\s*false', cell.source): cell.source = ''
        cell.source = re.sub(r'^#\|.*\n', '', cell.source, flags=re.M)
    notebook.metadata['language_info'] = {'name': 'python'}
    body, _ = MarkdownExporter().from_notebook_node(notebook)
    body = re.sub(r'```python\n\s*```\n+', '', body)
    return '<!-- Generated from nbs/index.ipynb by tools/readme.py: edit the notebook. -->\n\n' + body.strip() + '\n'


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--check', action='store_true', help='write nothing; exit with 1 if README.md is not current')
    readme, text = ROOT/'README.md', render()
    if not parser.parse_args().check:
        readme.write_text(text, encoding='utf-8')
        return 0
    if readme.exists() and readme.read_text(encoding='utf-8') == text: return 0
    print('README.md is not what nbs/index.ipynb says: run `python tools/readme.py` and commit it.')
    return 1


if __name__ == '__main__': sys.exit(main())
