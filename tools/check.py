"""The checks and tests of the repository; exits with 1 at the first check that fails.

The last line counts notebooks if they were run, else checks. A check that cannot run on this machine is named in the
line before it, with the reason.
"""
import argparse, ast, filecmp, json, os, re, shutil, subprocess, sys, tempfile
from collections.abc import Callable
from configparser import ConfigParser
from pathlib import Path

import chromium, claims, recorded, reference, sources

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
NOTEBOOKS = sorted(p for p in (ROOT/'nbs').glob('*.ipynb') if not p.name.startswith('_'))
ARCHIVE = sorted(p.parent for p in (ROOT/'archive').glob('*/settings.ini'))
ARCHIVED = [p for folder in ARCHIVE for p in sorted((folder/'nbs').glob('*.ipynb'))]
COMPARISON = 'archive/comparison.ipynb'
WORKERS = 2
# Workers that each start a thread per core wait for one another; an even share of the cores is many times as fast.
THREADS = str(max(1, (os.cpu_count() or 1)//WORKERS))
ENV = os.environ | {'OMP_NUM_THREADS': THREADS, 'PATH': f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}",
                    'TRANSFORMERS_VERBOSITY': 'error', 'HF_HUB_OFFLINE': '1'}
# The archived packages need no installation.
ENV['PYTHONPATH'] = os.pathsep.join([*map(str, ARCHIVE), ENV.get('PYTHONPATH', '')]).strip(os.pathsep)


class NotRun(Exception):
    "Why a check cannot run on this machine."


def run(*args, cwd=ROOT) -> subprocess.CompletedProcess:
    return subprocess.run([str(a) for a in args], cwd=cwd, env=ENV, capture_output=True, text=True)


def library(project: Path) -> str:
    config = ConfigParser(delimiters=['='], interpolation=None)
    config.read(project/'settings.ini', encoding='utf-8')
    return config['DEFAULT']['lib_path']


def modules(project: Path) -> list[Path]:
    "What its notebooks export; nbdev's own index of it is not theirs."
    return [p for p in sorted((project/library(project)).glob('*.py')) if p.name != '_modidx.py']


def copy_project(project: Path, folder: Path) -> Path:
    "The sources alone: settings, notebooks, and the one module that no notebook exports."
    shutil.copytree(project/'nbs', folder/'nbs', ignore=shutil.ignore_patterns('.ipynb_checkpoints'))
    (folder/library(project)).mkdir()
    for name in ('settings.ini', 'pyproject.toml', f'{library(project)}/__init__.py'):
        shutil.copy(project/name, folder/name)
    return folder


def listed(faults: list[str], remedy: str) -> str:
    "Up to five faults and what to do about them; '' where there are none."
    rest = f' and {len(faults) - 5} more' if len(faults) > 5 else ''
    return f"{'; '.join(faults[:5])}{rest}: {remedy}" if faults else ''


def notebooks_are_clean() -> str:
    "Clean a copy of each project, the archived ones too, under its own settings."
    dirty = []
    for project in [ROOT, *ARCHIVE]:
        with tempfile.TemporaryDirectory() as tmp:
            shutil.copy(project/'settings.ini', tmp)
            copy = Path(tmp)/'nbs'
            shutil.copytree(project/'nbs', copy, ignore=shutil.ignore_patterns('.ipynb_checkpoints'))
            done = run(BIN/'nbdev_clean', '--fname', 'nbs', cwd=tmp)
            # An unreadable notebook only makes nbdev_clean warn.
            if done.returncode or 'Failed to clean' in done.stderr:
                warning = ' '.join(re.findall('Warning: (.+)', done.stderr)[-1:])
                return f'a notebook of {project.name}/nbs cannot be read, restore it: {warning}'
            dirty += [str(p.relative_to(ROOT)) for p in sorted((project/'nbs').glob('*.ipynb'))
                      if p.read_bytes() != (copy/p.name).read_bytes()]
    return f"not clean: {', '.join(dirty)}; run `nbdev_clean` in that project's folder and commit." if dirty else ''


def outputs_are_whole() -> str:
    for path in [*NOTEBOOKS, *ARCHIVED, ROOT/COMPARISON]:
        cells = [c for c in json.loads(path.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code']
        if any(o['output_type'] == 'error' for c in cells for o in c['outputs']):
            return f'{path.name} holds the output of an error: run it again from the top.'
        shown = [c for c in cells if not re.match(r'#\|\s*(hide|default_exp)', ''.join(c['source']))]
        if len(shown) > 4 and not any(c['outputs'] for c in shown):
            return f'{path.name} is committed without outputs: run it from the top.'
    return ''


def package_is_exported() -> str:
    for project in [ROOT, *ARCHIVE]:
        lib = library(project)
        with tempfile.TemporaryDirectory() as tmp:
            folder = copy_project(project, Path(tmp))
            if (done := run(BIN/'nbdev_export', cwd=folder)).returncode:
                return f'nbdev_export failed for {lib}: {done.stderr[-500:]}'
            names = {p.name for base in (folder, project) for p in (base/lib).glob('*.py')}
            _, differ, missing = filecmp.cmpfiles(project/lib, folder/lib, names, shallow=False)
        if differ or missing:
            return (f"{lib}/ is not what the notebooks export ({', '.join(sorted(differ + missing))}): "
                    "run `nbdev_export` in its project's folder and commit.")
    return ''


def readme_is_current() -> str:
    done = run(sys.executable, ROOT/'tools'/'readme.py', '--check')
    if not done.returncode: return ''
    if (said := done.stdout.strip()): return said
    return f'nbs/index.ipynb cannot be rendered, restore it: {done.stderr.strip().splitlines()[-1]}'


def numbers_are_proven() -> str:
    return listed(claims.faults(), 'mend the number, its row in REPRODUCE.md, or what the row quotes.')


def imports_go_down() -> str:
    "No module may import one of a higher-numbered notebook, at any depth."
    trees, number = {}, {}
    for path in modules(ROOT):
        source = path.read_text(encoding='utf-8')
        if (found := re.search(r'File to edit: .*?(\d+)_\w+\.ipynb', source)):
            trees[path.stem], number[path.stem] = ast.parse(source), int(found[1])
    for name, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import): paths = [a.name for a in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = '.'.join(filter(None, ['lyra' if node.level else '', node.module]))
                # A name of the package's own front is an import of whatever module it comes from.
                if base == 'lyra' and (names := [a.name for a in node.names if a.name not in number]):
                    return f'lyra/{name}.py imports {names[0]} from lyra: name the module it stands in.'
                paths = [f'{base}.{a.name}' for a in node.names]
            else: continue
            for part in {p.split('.')[1] for p in paths if p.startswith('lyra.')} & set(number):
                if number[part] >= number[name] and part != name:
                    return (f'lyra/{name}.py imports lyra.{part}, of a later notebook: '
                            'move what it needs to an earlier one.')
    return ''


def modules_are_distinct() -> str:
    "nbdev lets a later notebook overwrite the module of an earlier one without a word."
    owner: dict[str, str] = {}
    for path in NOTEBOOKS:
        for name in re.findall(r'#\|\s*default_exp\s+(\S+?)(?=\\n|"|$)', path.read_text(encoding='utf-8')):
            if owner.setdefault(name, path.name) != path.name:
                return f'{owner[name]} and {path.name} both export to lyra/{name}.py: give each a module of its own.'
    return ''


def numbers_are_distinct() -> str:
    faults = [f'{project.name}/nbs: {fault}' for project in [ROOT, *ARCHIVE]
              for fault in sources.numbers(sorted((project/'nbs').glob('[!_]*.ipynb')))]
    return listed(faults, 'rename one; the tens digit is the phase, the other the order in it.')


def names_are_known() -> str:
    "Notebooks move; what is written about them has to follow. LOG.md tells what was, so it may name what is gone."
    pages = [ROOT/'README.md', *(p for folder in ('nbs', 'lyra', 'tools', 'archive', 'data')
                                 for p in sorted((ROOT/folder).rglob('*.*')) if p.suffix in ('.ipynb', '.py', '.md'))]
    return listed(sources.lost_notebooks(pages, [*NOTEBOOKS, *ARCHIVED]), 'write the name that the notebook has now.')


def classes_are_written_once() -> str:
    faults = [fault for project in [ROOT, *ARCHIVE] for path in modules(project) for fault in sources.reopened(path)]
    return listed(faults, 'write it once, or give the later one a name of its own.')


def lines_fit() -> str:
    faults = [fault for path in modules(ROOT) for fault in sources.long_lines(path)]
    return listed(faults, f'break the line in its notebook; {sources.COLUMNS} columns are the most.')


def classes_are_small() -> str:
    faults = sources.crowded(modules(ROOT))
    return listed(faults, f'at most {sources.ATTRIBUTES}; split the class, or compute one attribute from another.')


def parameters_are_told() -> str:
    "Every public function and class has a docstring, and says what each parameter is."
    gaps = [gap for module in reference.modules(ROOT/'lyra') for gap in reference.gaps(module)]
    return listed(gaps, 'say it beside the parameter; `python tools/docs.py --gaps` lists all.')


def recorded_cells_fit() -> str:
    "Cells flagged `slow` are run by nobody but their author, so what they call may have changed since."
    sys.path[:0] = map(str, [ROOT, *ARCHIVE])
    pages = [(path, library(ROOT)) for path in (*NOTEBOOKS, ROOT/COMPARISON)]
    pages += [(path, library(path.parent.parent)) for path in ARCHIVED]
    faults = [fault for page in pages for fault in recorded.faults(*page)]
    return listed(faults, 'mend the cell, and run it again with `nbdev_test --flags slow`.')


def types_agree() -> str:
    "mypy over lyra/, as pyproject.toml says."
    done = run(sys.executable, '-m', 'mypy')
    if not done.returncode: return ''
    faults = [line for line in done.stdout.splitlines() if ': error: ' in line] or [(done.stdout + done.stderr)[-500:]]
    return listed(faults, 'annotate what is meant; `python -m mypy` shows all.')


def browser_sees_the_widgets() -> str:
    path, why = chromium.get(say=lambda text: print('browser:', text, flush=True))
    if path is None: raise NotRun(why)
    done = run(sys.executable, ROOT/'tools'/'browser.py')
    for line in done.stdout.splitlines():
        if 'was not run' in line: print(line)
    return (done.stdout + done.stderr[-500:]).strip().removeprefix('browser: ') if done.returncode else ''


def gpu_measurements_run() -> str:
    "tools/gpu.py in small: all of it that this machine can run."
    with tempfile.TemporaryDirectory() as tmp:
        done = run(sys.executable, ROOT/'tools'/'gpu.py', '--model', 'tiny', '--quick', '--minutes', 2,
                   '--out', f'{tmp}/gpu.json')
    said = (done.stderr.strip().splitlines() or [''])[-1].removeprefix('gpu: ')
    return f'{said}; `python tools/gpu.py --model tiny --quick` shows more.' if done.returncode else ''


def wrong_inputs_are_refused() -> str:
    "tools/fuzz.py in small: wrong inputs, kills, and a soak."
    done = run(sys.executable, ROOT/'tools'/'fuzz.py')
    said = ' '.join((done.stdout.strip() or done.stderr.strip()[-500:]).split())
    return f'{said[:600]}; `python tools/fuzz.py` shows more.' if done.returncode else ''


def failed_notebooks(project: Path, *only: str) -> list[str]:
    "Run every notebook of a project, `WORKERS` at a time, or one by its path; nbdev skips cells flagged `slow`."
    command = [str(BIN/'nbdev_test'), '--n_workers', str(WORKERS), '--do_print', *(('--path', *only) if only else ())]
    lines = []
    with subprocess.Popen(command, cwd=project, env=ENV, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr or ():
            sys.stderr.write(line)
            lines.append(line)
    if not process.returncode: return []
    named = re.findall(r'^\t(\S+\.ipynb)$', ''.join(lines), flags=re.M)
    return named or [*only] or [p.name for p in sorted((project/'nbs').glob('*.ipynb'))]


# The quickest first.
CHECKS: dict[str, Callable[[], str]] = dict(
    numbers=numbers_are_distinct, modules=modules_are_distinct, names=names_are_known, classes=classes_are_written_once,
    columns=lines_fit, attributes=classes_are_small, told=parameters_are_told, imports=imports_go_down,
    outputs=outputs_are_whole, recorded=recorded_cells_fit,
    readme=readme_is_current, claims=numbers_are_proven, clean=notebooks_are_clean, export=package_is_exported, types=types_agree,
    gpu=gpu_measurements_run, fuzz=wrong_inputs_are_refused, browser=browser_sees_the_widgets)
STATIC = [name for name in CHECKS if name not in ('gpu', 'fuzz', 'browser')]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = [*CHECKS, 'tests']
    parser.add_argument('checks', nargs='*', metavar='CHECK',
                        help=f"which to run; all when none is named: {', '.join(every)}")
    parser.add_argument('--skip-tests', action='store_true', help='run no notebook, in no browser, and no model')
    parser.add_argument('--examples', type=int, metavar='N', help='random files that each property is tried on; 60')
    args = parser.parse_args()
    if args.examples: ENV['LYRA_EXAMPLES'] = str(args.examples)
    names = args.checks or every
    if (unknown := set(names) - set(every)):
        parser.error(f"no check is called {', '.join(unknown)}: choose from {', '.join(every)}")
    passed, not_run = 0, dict[str, str]()

    def end(passed: int, failed: int) -> int:
        for name, why in not_run.items(): print(f'not run: {name}, since {why}')
        print(f'{passed} passed, {failed} failed')
        return int(bool(failed))

    for name in STATIC if args.skip_tests else CHECKS:
        if name not in names: continue
        try: problem = CHECKS[name]()
        except NotRun as why:
            not_run[name] = str(why)
            print(f'{name}: not run, see below', flush=True)
            continue
        print(f"{name}: {problem or 'ok'}", flush=True)
        if problem: return end(passed, 1)
        passed += 1
    if 'tests' not in names or args.skip_tests: return end(passed, 0)
    failed = [name for project in [ROOT, *ARCHIVE] for name in failed_notebooks(project)]
    failed += failed_notebooks(ROOT, COMPARISON)
    trouble = f"{', '.join(failed)} failed, see the traceback above: mend the notebook, run it from the top, export."
    print('tests:', trouble if failed else 'ok')
    return end(len(NOTEBOOKS) + len(ARCHIVED) + 1 - len(failed), len(failed))


if __name__ == '__main__': sys.exit(main())
