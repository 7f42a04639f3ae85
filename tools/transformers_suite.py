"""transformers' own tests of its Gemma 3 text model, on stock `Gemma3ForCausalLM` and on `lyra.Lyra` in its place.

The tests build tiny random models, load and save them, compare attention implementations, train and generate.
They are no part of transformers' package, so this tool wants a checkout of its repository, of the installed version:

    pip install -e ".[dev,suite]"
    git clone --depth 1 --branch v5.24.0 https://github.com/huggingface/transformers ../transformers
    python tools/transformers_suite.py ../transformers

It needs no network, no GPU and no weights, and takes a minute or two. Tests that want more are skipped, in both runs.
The exit status is 0 if no test does worse on Lyra than on stock; 1 if one does (it fails where stock does not, or is
skipped where stock passes); 2 if the tests could not be run.
"""
import argparse, importlib, importlib.util, json, os, re, subprocess, sys, tempfile, time, types, unittest
from collections import Counter
from importlib.metadata import version
from pathlib import Path

MODELS = {'stock': 'transformers.Gemma3ForCausalLM', 'Lyra': 'lyra.Lyra'}
OUTCOMES = ('passed', 'skipped', 'failed')                      # from best to worst
NEEDED = ('pytest', 'parameterized', 'torch', 'transformers', 'lyra')
TESTS = Path('tests')/'models'/'gemma3'/'test_modeling_gemma3.py'

# The test module of one run: transformers' own test class on another model class. Some lists of transformers hold the
# names of classes (tests of training give labels only to a listed causal language model): Lyra's is entered there.
MODULE = '''
import {module}
from tests.models.gemma3.test_modeling_gemma3 import Gemma3TextModelTest, Gemma3TextModelTester
from transformers.models.auto import modeling_auto

if {register}: modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES['{name}'] = '{name}'

class Tester(Gemma3TextModelTester): causal_lm_class = {module}.{name}
class TestSwapped(Gemma3TextModelTest): model_tester_class = Tester
del Gemma3TextModelTest
'''
OFFLINE = re.compile('OfflineModeIsEnabled|LocalEntryNotFoundError|ConnectError|outgoing traffic has been disabled|'
                     'offline mode is enabled|find the requested files in the (local|disk) cache|couldn.t connect to')


# --- Inside each run: pytest loads this file as a plugin, and these two variables say where it is.

CHECKOUT, RESULTS = 'LYRA_SUITE_CHECKOUT', 'LYRA_SUITE_RESULTS'


def pytest_configure(config) -> None:
    "Make the checkout's tests importable where the installed version lacks what they name."
    checkout = Path(os.environ[CHECKOUT])
    if (helpers := checkout/'src'/'transformers'/'testing_utils.py').exists(): lend_helpers(helpers)
    if not (checkout/'tests'/'distributed_testing_utils.py').exists(): stand_in('tests.distributed_testing_utils')


def lend_helpers(path: Path) -> None:
    "Give the installed `transformers.testing_utils` the names that only the checkout's has; none is replaced."
    installed = importlib.import_module('transformers.testing_utils')
    spec = importlib.util.spec_from_file_location('transformers.testing_utils_of_checkout', path)
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    for name, value in vars(theirs).items(): installed.__dict__.setdefault(name, value)


def stand_in(name: str) -> None:
    "An importable module whose every function skips its test: a source distribution lacks this one."
    def skip(*args, **kwargs): raise unittest.SkipTest('needs several processes')
    def get(attribute):
        if attribute.startswith('__'): raise AttributeError(attribute)
        return skip
    module = types.ModuleType(name)
    module.__getattr__ = get
    sys.modules[name] = module


def record(kind: str, **fields) -> None:
    line = json.dumps(dict(kind=kind) | fields) + '\n'
    with open(os.environ[RESULTS], 'a', encoding='utf-8') as file: file.write(line)


def pytest_collection_finish(session) -> None: record('collected', tests=len(session.items))


def pytest_runtest_logreport(report) -> None:
    "One line for each phase and subtest of a test that says something about its outcome, and one at its end."
    test = report.nodeid.split('::')[-1]
    if report.failed:
        crash = getattr(report.longrepr, 'reprcrash', None)
        text = str(report.longrepr)
        if OFFLINE.search(text): record('outcome', test=test, outcome='skipped', cause='needs the network', text=text)
        else: record('outcome', test=test, outcome='failed', cause=telling(crash.message if crash else text), text=text)
    elif report.skipped:
        cause = report.longrepr[-1] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        record('outcome', test=test, outcome='skipped', cause=telling(cause.removeprefix('Skipped: ')), text='')
    elif report.when == 'call': record('outcome', test=test, outcome='passed', cause='', text='')
    if report.when == 'teardown': record('done', test=test)


def telling(message: str) -> str:
    "The line of an error message that tells: its first, with the next where that ends in a colon."
    lines = [line.strip() for line in message.splitlines() if line.strip()] or ['']
    line = ' '.join(lines[:2]) if lines[0].endswith(':') else lines[0]
    return re.sub(r'(?<!\w)/\S*/', '', line)[:160]


# --- Outside: start both runs, wait, compare.

class Unfit(Exception):
    "Why the tests cannot be run here, and what to do."


class Run:
    "The tests on one model class, in a process of their own."

    def __init__(self, label: str, checkout: Path, root: Path, k: str | None = None, register: bool = True):
        self.label, self.folder = label, root/label
        module, name = MODELS[label].split('.')
        (self.folder/'src').mkdir(parents=True)
        installed = Path(importlib.util.find_spec('transformers').origin).parent
        links = {'tests': checkout/'tests', 'utils': checkout/'utils', 'src/transformers': installed}
        for link, target in links.items():
            if target.exists(): (self.folder/link).symlink_to(target)
        (self.folder/'pytest.ini').write_text('[pytest]\n')
        code = MODULE.format(module=module, name=name, register=register and label != 'stock')
        (self.folder/'test_swapped.py').write_text(code)
        # What stood on PYTHONPATH stays in front. The checkout's `src` is not on it: the installed version is tested.
        paths = [os.environ.get('PYTHONPATH'), self.folder, Path(__file__).parent]
        env = os.environ | {
            CHECKOUT: str(checkout), RESULTS: str(self.results),
            'PYTHONPATH': os.pathsep.join(str(p) for p in paths if p), 'PYTHONDONTWRITEBYTECODE': '1',
            'PYTEST_DISABLE_PLUGIN_AUTOLOAD': '1', 'PYTEST_ADDOPTS': '',
            'HF_HUB_OFFLINE': '1', 'HF_HOME': str(self.folder/'home'), 'TOKENIZERS_PARALLELISM': 'false',
            'TRANSFORMERS_TEST_DEVICE': 'cpu', 'CUDA_VISIBLE_DEVICES': '', 'RUN_SLOW': '0', 'OMP_NUM_THREADS': '1'}
        command = [sys.executable, '-m', 'pytest', '-q', '--tb=short', '--disable-warnings', '-p', 'no:cacheprovider',
                   '-p', Path(__file__).stem, 'test_swapped.py', *(['-k', k] if k else [])]
        with open(self.log, 'w', encoding='utf-8') as log:
            self.process = subprocess.Popen(command, cwd=self.folder, env=env, stdout=log, stderr=subprocess.STDOUT)

    @property
    def log(self) -> Path: return self.folder/'log.txt'

    @property
    def results(self) -> Path: return self.folder/'results.jsonl'

    def lines(self, kind: str) -> list[dict]:
        if not self.results.exists(): return []
        *whole, _ = self.results.read_text(encoding='utf-8').split('\n')       # the last may be half written
        return [line for line in map(json.loads, whole) if line['kind'] == kind]

    def progress(self) -> str:
        collected = self.lines('collected')
        return f"{self.label} {len(self.lines('done'))} of {collected[0]['tests'] if collected else '?'}"

    def tail(self) -> str: return self.log.read_text(encoding='utf-8')[-3000:].strip()

    def outcomes(self) -> dict[str, dict]:
        "{test: {outcome, cause, text}}; a failure counts before a skip, and a skip before a pass. The run has ended."
        if self.process.returncode == 4: raise Unfit('; '.join(re.findall('^ERROR: (.+)', self.tail(), re.M)))
        if not (collected := self.lines('collected')) or self.process.returncode not in (0, 1, 5):
            what = 'broke off' if collected and collected[0]['tests'] else 'could not be loaded'
            remedy = clone_hint() if self.label == 'stock' else f'since they ran on stock, mend {MODELS[self.label]}.'
            raise Unfit(f'{self.tail()}\nThe tests {what} on {self.label}, see above: {remedy}')
        if not self.lines('outcome'): raise Unfit('No test has such a name: mend the expression after -k.')
        found: dict[str, dict] = {}
        for line in self.lines('outcome'):
            test, seen = line['test'], {key: line[key] for key in ('outcome', 'cause', 'text')}
            if test not in found or worse(seen, found[test]): found[test] = seen
        return found


def worse(one: dict, other: dict) -> bool: return OUTCOMES.index(one['outcome']) > OUTCOMES.index(other['outcome'])


def clone_hint() -> str:
    return (f'get the tests of the installed version with `git clone --depth 1 --branch v{version("transformers")} '
            'https://github.com/huggingface/transformers FOLDER`, and name FOLDER.')


def check(checkout: Path, any_version: bool) -> str:
    "The checkout's version, '' where it does not say; raises `Unfit` where the tests cannot be run."
    if (missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]):
        raise Unfit(f'No {" and no ".join(missing)} here: run `{sys.executable} -m pip install -e ".[dev,suite]"`.')
    if not (checkout/TESTS).exists(): raise Unfit(f'{checkout} holds no {TESTS}: {clone_hint()}')
    front = checkout/'src'/'transformers'/'__init__.py'
    found = re.search(r'^__version__ = "(.+?)"', front.read_text(encoding='utf-8'), re.M) if front.exists() else None
    theirs, ours = found[1] if found else '', version('transformers')
    if theirs and theirs.split('.')[:2] != ours.split('.')[:2] and not any_version:
        raise Unfit(f'{checkout} is of transformers {theirs}, but {ours} is installed: {clone_hint()} '
                    '(--any-version tries this one.)')
    return theirs


def watch(runs: list[Run], every: float = 10) -> None:
    "Say how far the runs are, until they have ended."
    said = time.monotonic()
    while any(run.process.poll() is None for run in runs):
        time.sleep(.5)
        if time.monotonic() - said > every:
            print(', '.join(run.progress() for run in runs), 'tests done', file=sys.stderr, flush=True)
            said = time.monotonic()


def run_all(checkout: Path, jobs: int, **options) -> dict[str, dict[str, dict]]:
    "The outcomes of every test on every model class, `jobs` runs at a time."
    found, labels = {}, list(MODELS)
    with tempfile.TemporaryDirectory(prefix='lyra-suite-', ignore_cleanup_errors=True) as root:
        for first in range(0, len(labels), jobs):
            runs = [Run(label, checkout, Path(root), **options) for label in labels[first:first + jobs]]
            try:
                watch(runs)
                found |= {run.label: run.outcomes() for run in runs}
            finally:
                for run in runs: run.process.kill(); run.process.wait()
    return found


def differences(stock: dict[str, dict], ours: dict[str, dict]) -> list[list[tuple[str, str]]]:
    """The tests that do worse on ours than on stock, as (test, what happened), in groups of one cause.

    A test that did not run counts as failed. Causes that differ in their numbers only are one.
    """
    absent = dict(outcome='failed', cause='the test did not run', text='')
    groups: dict[str, list[tuple[str, str]]] = {}
    for test in sorted(stock | ours):
        one, other = ours.get(test, absent), stock.get(test, absent)
        what = f"{one['outcome']}, {one['cause']}"
        if worse(one, other): groups.setdefault(re.sub(r'\d[\d.e+-]*', '#', what), []).append((test, what))
    return list(groups.values())


def report(found: dict[str, dict[str, dict]]) -> int:
    "Print the table of counts and what differs; returns how many tests do worse on Lyra."
    stock, ours = found['stock'], found['Lyra']
    columns = ('passed', 'failed', 'skipped')
    print(f'{"":8}' + ''.join(f'{outcome:>9}' for outcome in columns))
    for label, tests in found.items():
        counts = Counter(test['outcome'] for test in tests.values())
        print(f'{label:8}' + ''.join(f'{counts[outcome]:9}' for outcome in columns))
    for title, groups in {'Worse on Lyra than on stock': differences(stock, ours),
                          'Better on Lyra than on stock': differences(ours, stock)}.items():
        print(f'\n{title}: {sum(map(len, groups))}')
        for group in groups: print(f'  {group[0][1]} ({len(group)})', *(test for test, _ in group), sep='\n    ')
    if (failing := [test for test, seen in stock.items() if seen['outcome'] == 'failed']):
        print('\nFailed on stock, so this checkout or this machine is at fault:', *failing, sep='\n  ')
    return sum(map(len, differences(stock, ours)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkout', metavar='CHECKOUT', type=Path, help='folder of a clone of huggingface/transformers')
    parser.add_argument('-k', metavar='EXPRESSION',
                        help='only tests with such names, as in pytest: -k "generate and not beam"')
    parser.add_argument('--json', metavar='FILE', type=Path, help='write every outcome here, with tracebacks')
    parser.add_argument('--jobs', type=int, choices=(1, 2), default=2, help='runs at a time; 2: both, one core each')
    parser.add_argument('--register', action=argparse.BooleanOptionalAction, default=True,
                        help="enter Lyra's name in transformers' list of causal language models")
    parser.add_argument('--any-version', action='store_true', help='run the tests of a checkout of another version too')
    args = parser.parse_args()
    try:
        theirs = check(checkout := args.checkout.resolve(), args.any_version)
        print(f"The tests of transformers {theirs or 'of unknown version'} on the installed {version('transformers')}")
        found = run_all(checkout, args.jobs, k=args.k, register=args.register)
    except Unfit as error:
        print(error, file=sys.stderr)
        return 2
    if args.json: args.json.write_text(json.dumps(found, indent=1), encoding='utf-8')
    return int(bool(report(found)))


if __name__ == '__main__': sys.exit(main())
