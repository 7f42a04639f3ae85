"The checks and tests of the repository; exits with 1 at the first check that fails. The last line counts notebooks if they were run, else checks."
import argparse, ast, filecmp, json, os, re, shutil, subprocess, sys, tempfile
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
NOTEBOOKS = sorted(p for p in (ROOT/'nbs').glob('*.ipynb') if not p.name.startswith('_'))
ARCHIVE = sorted(p.parent for p in (ROOT/'archive').glob('*/settings.ini'))
ARCHIVED = [p for folder in ARCHIVE for p in sorted((folder/'nbs').glob('*.ipynb'))]
COMPARISON = 'archive/comparison.ipynb'
WORKERS = 2
# Workers that each start a thread per core wait for one another; an even share of the cores is many times as fast.
THREADS = str(max(1, (os.cpu_count() or 1)//WORKERS))
ENV = os.environ | {'OMP_NUM_THREADS': THREADS, 'PATH': f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}", 'TRANSFORMERS_VERBOSITY': 'error', 'HF_HUB_OFFLINE': '1'}
ENV['PYTHONPATH'] = os.pathsep.join([*map(str, ARCHIVE), ENV.get('PYTHONPATH', '')]).strip(os.pathsep)      # the archived packages need no installation


def run(*args, cwd=ROOT) -> subprocess.CompletedProcess:
    return subprocess.run([str(a) for a in args], cwd=cwd, env=ENV, capture_output=True, text=True)


def library(project: Path) -> str:
    config = ConfigParser(delimiters=['='], interpolation=None)
    config.read(project/'settings.ini', encoding='utf-8')
    return config['DEFAULT']['lib_path']


def copy_project(project: Path, folder: Path) -> Path:
    "The sources alone: settings, notebooks, and the one module that no notebook exports."
    shutil.copytree(project/'nbs', folder/'nbs', ignore=shutil.ignore_patterns('.ipynb_checkpoints'))
    (folder/library(project)).mkdir()
    for name in ('settings.ini', 'pyproject.toml', f'{library(project)}/__init__.py'): shutil.copy(project/name, folder/name)
    return folder


def notebooks_are_clean() -> str:
    "Clean a copy of each project, the archived ones too, under its own settings."
    dirty = []
    for project in [ROOT, *ARCHIVE]:
        with tempfile.TemporaryDirectory() as tmp:
            shutil.copy(project/'settings.ini', tmp)
            copy = shutil.copytree(project/'nbs', Path(tmp)/'nbs', ignore=shutil.ignore_patterns('.ipynb_checkpoints'))
            done = run(BIN/'nbdev_clean', '--fname', 'nbs', cwd=tmp)
            # An unreadable notebook only makes nbdev_clean warn.
            if done.returncode or 'Failed to clean' in done.stderr: return f"a notebook of {project.name}/nbs cannot be read, restore it: {' '.join(re.findall('Warning: (.+)', done.stderr)[-1:])}"
            dirty += [str(p.relative_to(ROOT)) for p in sorted((project/'nbs').glob('*.ipynb')) if p.read_bytes() != (copy/p.name).read_bytes()]
    return dirty and f"not clean: {', '.join(dirty)}; run `nbdev_clean` in that project's folder and commit."


def outputs_are_whole() -> str:
    for path in [*NOTEBOOKS, *ARCHIVED, ROOT/COMPARISON]:
        cells = [c for c in json.loads(path.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code']
        if any(o['output_type'] == 'error' for c in cells for o in c['outputs']): return f'{path.name} holds the output of an error: run it again from the top.'
        shown = [c for c in cells if not re.match(r'#\|\s*(hide|default_exp)', ''.join(c['source']))]
        if len(shown) > 4 and not any(c['outputs'] for c in shown): return f'{path.name} is committed without outputs: run it from the top.'
    return ''


def package_is_exported() -> str:
    for project in [ROOT, *ARCHIVE]:
        lib = library(project)
        with tempfile.TemporaryDirectory() as tmp:
            folder = copy_project(project, Path(tmp))
            if (done := run(BIN/'nbdev_export', cwd=folder)).returncode: return f'nbdev_export failed for {lib}: {done.stderr[-500:]}'
            names = {p.name for base in (folder, project) for p in (base/lib).glob('*.py')}
            _, differ, missing = filecmp.cmpfiles(project/lib, folder/lib, names, shallow=False)
        if differ or missing: return f"{lib}/ is not what the notebooks export ({', '.join(sorted(differ + missing))}): run `nbdev_export` in its project's folder and commit."
    return ''


def readme_is_current() -> str:
    done = run(sys.executable, ROOT/'tools'/'readme.py', '--check')
    return done.returncode and (done.stdout.strip() or f'nbs/index.ipynb cannot be rendered, restore it: {done.stderr.strip().splitlines()[-1]}')


def imports_go_down() -> str:
    "No module may import one of a higher-numbered notebook, at any depth."
    trees, number = {}, {}
    for path in (ROOT/'lyra').glob('*.py'):
        source = path.read_text(encoding='utf-8')
        if (found := re.search(r'File to edit: .*?(\d+)_\w+\.ipynb', source)): trees[path.stem], number[path.stem] = ast.parse(source), int(found[1])
    for name, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import): paths = [a.name for a in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = '.'.join(filter(None, ['lyra' if node.level else '', node.module]))
                # A name of the package's own front is an import of whatever module it comes from.
                if base == 'lyra' and (names := [a.name for a in node.names if a.name not in number]): return f'lyra/{name}.py imports {names[0]} from lyra: name the module it stands in.'
                paths = [f'{base}.{a.name}' for a in node.names]
            else: continue
            for part in {p.split('.')[1] for p in paths if p.startswith('lyra.')} & set(number):
                if number[part] >= number[name] and part != name: return f'lyra/{name}.py imports lyra.{part}, of a later notebook: move what it needs to an earlier one.'
    return ''


def modules_are_distinct() -> str:
    "nbdev lets a later notebook overwrite the module of an earlier one without a word."
    owner = {}
    for path in NOTEBOOKS:
        for name in re.findall(r'#\|\s*default_exp\s+(\S+?)(?=\\n|"|$)', path.read_text(encoding='utf-8')):
            if owner.setdefault(name, path.name) != path.name: return f'{owner[name]} and {path.name} both export to lyra/{name}.py: give each a module of its own.'
    return ''


def failed_notebooks(project: Path, *only: str) -> list[str]:
    "Run every notebook of a project, `WORKERS` at a time, or one by its path; nbdev skips cells flagged `slow`."
    lines = []
    with subprocess.Popen([str(BIN/'nbdev_test'), '--n_workers', str(WORKERS), '--do_print', *(('--path', *only) if only else ())], cwd=project, env=ENV, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            sys.stderr.write(line)
            lines.append(line)
    if not process.returncode: return []
    return re.findall(r'^\t(\S+\.ipynb)$', ''.join(lines), flags=re.M) or [*only] or [p.name for p in sorted((project/'nbs').glob('*.ipynb'))]


def browser_sees_the_widgets() -> str:
    done = run(sys.executable, ROOT/'tools'/'browser.py')
    return done.returncode and (done.stdout + done.stderr[-500:]).strip().removeprefix('browser: ')


CHECKS = dict(clean=notebooks_are_clean, outputs=outputs_are_whole, export=package_is_exported, readme=readme_is_current, imports=imports_go_down, modules=modules_are_distinct, browser=browser_sees_the_widgets)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('checks', nargs='*', metavar='CHECK', help=f"which to run; all when none is named: {', '.join([*CHECKS, 'tests'])}")
    parser.add_argument('--skip-tests', action='store_true', help='run no notebook, in no browser')
    args = parser.parse_args()
    names = args.checks or [*CHECKS, 'tests']
    if (unknown := set(names) - {*CHECKS, 'tests'}): parser.error(f"no check is called {', '.join(unknown)}: choose from {', '.join([*CHECKS, 'tests'])}")
    static = [name for name in CHECKS if name in names and not (args.skip_tests and name == 'browser')]
    for done, name in enumerate(static):
        problem = CHECKS[name]()
        print(f"{name}: {problem or 'ok'}", flush=True)
        if problem:
            print(f'{done} passed, 1 failed')
            return 1
    if 'tests' not in names or args.skip_tests:
        print(f'{len(static)} passed, 0 failed')
        return 0
    failed = [name for project in [ROOT, *ARCHIVE] for name in failed_notebooks(project)] + failed_notebooks(ROOT, COMPARISON)
    print('tests:', f"{', '.join(failed)} failed, see the traceback above: mend the notebook, run it from the top, export." if failed else 'ok')
    print(f'{len(NOTEBOOKS) + len(ARCHIVED) + 1 - len(failed)} passed, {len(failed)} failed')
    return int(bool(failed))


if __name__ == '__main__': sys.exit(main())
