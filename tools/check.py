"The checks and tests of the repository, in the order of their cost. Exits with 1 at the first check that fails."
import argparse, ast, filecmp, json, os, re, shutil, subprocess, sys, tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
NOTEBOOKS = sorted(p for p in (ROOT/'nbs').glob('*.ipynb') if not p.name.startswith('_'))
ENV = os.environ | {'PATH': f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}", 'TRANSFORMERS_VERBOSITY': 'error', 'HF_HUB_OFFLINE': '1'}


def run(*args, cwd=ROOT) -> subprocess.CompletedProcess:
    return subprocess.run([str(a) for a in args], cwd=cwd, env=ENV, capture_output=True, text=True)


def copy_project(folder: Path) -> Path:
    "The sources alone: settings, notebooks, and the one module that no notebook exports."
    shutil.copytree(ROOT/'nbs', folder/'nbs', ignore=shutil.ignore_patterns('.ipynb_checkpoints'))
    (folder/'lyra').mkdir()
    for name in ('settings.ini', 'pyproject.toml', 'lyra/__init__.py'): shutil.copy(ROOT/name, folder/name)
    return folder


def notebooks_are_clean() -> str:
    with tempfile.TemporaryDirectory() as tmp:
        folder = copy_project(Path(tmp))
        if (done := run(BIN/'nbdev_clean', cwd=folder)).returncode: return f'nbdev_clean failed: {done.stderr[-500:]}'
        dirty = [p.name for p in NOTEBOOKS if p.read_bytes() != (folder/'nbs'/p.name).read_bytes()]
    return dirty and f"not clean: {', '.join(dirty)}; run `nbdev_clean` and commit."


def outputs_are_whole() -> str:
    for path in NOTEBOOKS:
        cells = [c for c in json.loads(path.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code']
        if any(o['output_type'] == 'error' for c in cells for o in c['outputs']): return f'{path.name} holds the output of an error: run it again from the top.'
        if len(cells) > 6 and not any(c['outputs'] for c in cells): return f'{path.name} is committed without outputs: run it from the top.'
    return ''


def package_is_exported() -> str:
    with tempfile.TemporaryDirectory() as tmp:
        folder = copy_project(Path(tmp))
        if (done := run(BIN/'nbdev_export', cwd=folder)).returncode: return f'nbdev_export failed: {done.stderr[-500:]}'
        names = {p.name for base in (folder, ROOT) for p in (base/'lyra').glob('*.py')}
        _, differ, missing = filecmp.cmpfiles(ROOT/'lyra', folder/'lyra', names, shallow=False)
    return (differ or missing) and f"lyra/ is not what the notebooks export ({', '.join(sorted(differ + missing))}): run `nbdev_export` and commit."


def readme_is_current() -> str:
    return run(sys.executable, ROOT/'tools'/'readme.py', '--check').stdout.strip()


def imports_go_down() -> str:
    "No module may import one of a higher-numbered notebook, at any depth."
    trees, number = {}, {}
    for path in (ROOT/'lyra').glob('*.py'):
        source = path.read_text(encoding='utf-8')
        if (found := re.search(r'File to edit: .*?(\d+)_\w+\.ipynb', source)): trees[path.stem], number[path.stem] = ast.parse(source), int(found[1])
    for name, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import): used = [a.name for a in node.names if a.name.startswith('lyra.')]
            elif isinstance(node, ast.ImportFrom): used = [f"{node.module or ''}.{a.name}" for a in node.names] if node.level or (node.module or '').split('.')[0] == 'lyra' else []
            else: continue
            for part in {p for u in used for p in u.split('.')} & set(number):
                if number[part] >= number[name] and part != name: return f'lyra/{name}.py imports lyra.{part}, of a later notebook: move what it needs to an earlier one.'
    return ''


def tests_pass() -> str:
    "Run every notebook, two at a time; nbdev skips cells flagged `slow`."
    done = subprocess.run([str(BIN/'nbdev_test'), '--n_workers', '2', '--do_print'], cwd=ROOT, env=ENV)
    return done.returncode and 'a notebook failed, see above.'


CHECKS = dict(clean=notebooks_are_clean, outputs=outputs_are_whole, export=package_is_exported, readme=readme_is_current, imports=imports_go_down, tests=tests_pass)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('checks', nargs='*', metavar='CHECK', help=f"which to run; all when none is named: {', '.join(CHECKS)}")
    names = parser.parse_args().checks or list(CHECKS)
    if (unknown := set(names) - set(CHECKS)): parser.error(f"no check is called {', '.join(unknown)}: choose from {', '.join(CHECKS)}")
    for name in names:
        problem = CHECKS[name]()
        print(f"{name}: {problem or 'ok'}", flush=True)
        if problem:
            print('0 passed, 1 failed')
            return 1
    print(f"{len(NOTEBOOKS) if 'tests' in names else len(names)} passed, 0 failed")
    return 0


if __name__ == '__main__': sys.exit(main())
