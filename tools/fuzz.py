"""Wrong inputs for every command, option and number of `lyra`, kills, failing disks, and a soak, on a tiny model.

    python tools/fuzz.py                                              the small size, as tools/check.py runs it
    python tools/fuzz.py --inputs 5000 --kills 100 --faults 0 --turns 10000      the large size
    python tools/fuzz.py --only 4711                                  one input again, with what it printed

An input is made from the seed and its number alone. `--log FILE` keeps a line for each finished input; called again
with the same file it goes on where it stopped. The exit status is 1 where a fault was found.
"""
import argparse, builtins, contextlib, errno, io, itertools, json, math, multiprocessing, os, random, resource
import shutil, signal, subprocess, sys, tempfile, time, traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache, partial
from numbers import Real
from pathlib import Path
from unittest.mock import patch

os.environ |= dict(TRANSFORMERS_VERBOSITY='critical', TOKENIZERS_PARALLELISM='false', TQDM_DISABLE='1',
                   HF_HUB_DISABLE_PROGRESS_BARS='1', HF_HUB_OFFLINE='1', OMP_NUM_THREADS='1', MPLBACKEND='agg')
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ['PYTHONPATH'] = str(ROOT)

import numpy as np
import pandas as pd
import torch
from matplotlib.image import imsave
from hypothesis import HealthCheck, given, settings, strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

import lyra.cli, lyra.decoders, lyra.drift, lyra.health, lyra.sweep, lyra.weights
from lyra import ChatSession, Lyra, LyraError, Persona
from lyra.chat import Sampling
from lyra.core import tiny_config
from lyra.policy import ContextPolicy

torch.set_num_threads(1)
disable_progress_bar()
PATIENCE, LONGEST, WAIT = 5., 40., 60. # seconds: a refusal, and any input, may compute; an input may wait


# A world to be wrong in: a model, cards, conversations, a persona, a saved session.

PROBE = dict(id='ship', question='Your ship?', prefix='It is the', expected=' Heron', foils=[' Otter'])


def card(n: int) -> dict:
    return dict(question_id=n, category='sea', turns=[f'You are sailor {n}.'], acknowledgement='Aye.', name='Heron',
                probes=[PROBE])


def talk(n: int = 4) -> list[dict]:
    return [dict(question_id=i, category='talk', turns=[f'Say {i}.'], reference=[f'It is {i}.']) for i in range(n)]


def tokenizer() -> PreTrainedTokenizerFast:
    "One token a character."
    control = ['<pad>', '<eos>', '<bos>', '<unk>', '<start_of_turn>', '<end_of_turn>']
    words = {t: i for i, t in enumerate([*control, *map(chr, range(32, 127)), '\n'])}
    core = Tokenizer(models.WordLevel(words, unk_token='<unk>'))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Split(Regex(r'[\s\S]'), 'isolated'), decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token='<pad>', eos_token='<eos>', bos_token='<bos>',
                                   unk_token='<unk>', additional_special_tokens=control[4:], padding_side='left')


def lines(path: Path, rows: list) -> Path:
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')
    return path


def put(words: list[str], places: dict[str, Path]) -> list[str]:
    "Words with paths for the {places} in them."
    for name, path in places.items(): words = [word.replace('{' + name + '}', str(path)) for word in words]
    return words


def make_world(folder: Path) -> dict[str, Path]:
    "Everything that a right input needs, and files that are wrong."
    torch.manual_seed(0)
    model, words = Lyra(tiny_config()).eval(), tokenizer()
    world = {name: folder/name for name in ('model', 'card.json', 'card2.json', 'talk.jsonl', 'sailor.safetensors',
                                            'session', 'sweep', 'empty', 'deep', 'binary', 'pipe', 'folder', 'escape',
                                            'picture.png')}
    for part in (model, words): part.save_pretrained(world['model'])
    for n, name in enumerate(('card.json', 'card2.json'), 1): lines(world[name], [card(n)])
    lines(world['talk.jsonl'], talk())
    lines(world['escape'], [dict(card(3), turns=['You \x1b[2J are a sailor.'])])
    Persona.build(model, words, 'You are a sailor.', acknowledgement='Aye.').save(world['sailor.safetensors'])
    session = ChatSession(Lyra.from_pretrained(world['model']), words, None, 'full')
    session.save(world['session'])
    session.tell('Say 0.', 'It is 0.')
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        lyra.cli.main(put(DRIFT, world | dict(out=folder)))
    shutil.move(folder/'drift', world['sweep'])
    imsave(world['picture.png'], np.zeros((2, 2, 3)))
    world['empty'].touch()
    world['deep'].write_text('['*100_000)
    world['binary'].write_bytes(bytes(range(256)))
    world['folder'].mkdir()
    os.mkfifo(world['pipe'])
    return world


# Values of the options: right ones, wrong ones, and others of which either may be said.

WHOLE = ['nan', 'inf', '-inf', '1.5', 'x', '', '1e3', '9'*5000, '-9', '1' + '0'*30, '\x1b[2J']
REAL = ['nan', 'inf', '-inf', '-1', 'x', '', '1e400', '-0.5']
METHODS = ['fill', 'none,fill', 'full,full', 'streaming:nan', 'streaming:', 'reprompt:-1', 'lyra:x', ',', 'none,,full',
           'lyra:1e400', 'full:2', 'pinned:0', 'everywhere:1e300', '', ' ', 'split-softmax:1e9']
BAD_FILES = ['no/such/file', 'a'*300, '', '{empty}', '{deep}', '{binary}', '{pipe}', '{folder}', '/dev/null/x',
             'a\x1b[2Jb', '/dev/zero', '.', '..', '/']
RIGHT, WRONG, OPEN = 'right', 'wrong', 'open'

VALUES: dict[str, tuple[list[str], list[str], list[str]]] = dict(   # right, wrong, open
    turns=(['1', '2'], [*WHOLE, '0', '-1'], []), orders=(['1', '2'], [*WHOLE, '0', '-1'], []),
    probes=(['1', '7'], [*WHOLE, '0'], []), scored_every=(['1', '8', '1000'], [*WHOLE, '0'], []),
    workers=(['1'], [*WHOLE, '0'], []), max_new_tokens=(['1', '3'], [*WHOLE, '0', '-1'], []),
    window=([], [*WHOLE, '0'], ['1', '16', '1000000']), sinks=([], WHOLE, ['0', '2', '60000']),
    layers=([], WHOLE, ['0', '2', '5', '6', '5 5']),
    seed=(['0', '-1', '18446744073709551615'], [x for x in WHOLE if x != '-9'], []),
    gain=([], [*REAL, '0'], ['1', '2.5', '1e-300', '1e300']), delta=(['.1', '3'], [*REAL, '0'], ['1e300']),
    temperature=([], REAL, ['0', '1', '1e-300', '1e300']), top_p=([], [*REAL, '0', '1.1'], ['1', '.5', '1e-300']),
    repetition_penalty=([], [*REAL, '0', '1e-30', '1e30'], ['1', '1.3', '1000']),
    system=([], ['', '  ', 'Hi <eos>', 'Hi.\n\nUser: no', 'a\udcffb'],
            ['You are Bo.', 'A\x1b[2J', 'x'*5000, 'é', '=1+1']),
    acknowledgement=([], ['', 'Aye <eos>'], ['Aye.', '\x1b[2J']),
    image=([], [*BAD_FILES, '{card.json}', '{sailor.safetensors}'], []),
    licence=(['mit'], [], ['', 'x'*5000, '\x1b[2J', 'a\nb', '\ud800']),
    user=([], ['', ' ', 'Ann'], []),                             # the cards of this world are not of other programs
    device=(['cpu'], ['cuda:99', 'nonsense', '', '-'], []),
    dtype=(['float32'], ['int4', 'float33', ''], ['float16', 'bfloat16', 'auto']),
    device_map=([], ['nonsense', ''], ['cpu', 'auto']), template=(['transcript'], ['chat', 'x', ''], []),
    policy=([], ['lyre', '', 'FULL'], ['full', 'window', 'streaming', 'near', 'lyra', 'pinned-gain']),
    methods=(['full', 'none,full,lyra', 'streaming:2,full'], METHODS, []),
    references=(['full', 'none'], METHODS, []),
    checks=(['0', '1', '0,1'], ['x', '-1', '1.5', '99', '0,,1', '9'*5000, ''], []),
    dask=([], ['', 'nonsense://x'], []),
    model=([], [*BAD_FILES, 'gemma3-270', 'a/b/c', '{card.json}'], []),
    card=([], [*BAD_FILES, '{sailor.safetensors}', '{talk.jsonl}'], ['{card2.json}', '{escape}']),
    file=(['{sailor.safetensors}'], [*BAD_FILES, '{card.json}'], []),
    persona=([], [*BAD_FILES, '{talk.jsonl}'], ['{card.json}', '{sailor.safetensors}', '{escape}']),
    personas=(['{card.json}', '{card2.json}'], [*BAD_FILES, '{sailor.safetensors}', '{card.json} {card.json}'], []),
    input=(['{talk.jsonl}'], [*BAD_FILES, '{sailor.safetensors}'], []),
    output=(['{out}/a.safetensors'],
            ['', '{out}/a.pth', '/dev/full/a.safetensors', '{card.json}/a.safetensors', '{out}'], []),
    out=(['{out}/new'], ['', '{card.json}', '/dev/full', '{pipe}'], []),
    resume=([], [*BAD_FILES, '{card.json}', '{model}'], ['{copy}']))

OUTPUTS = {'persona card': (['{out}/page.md'], ['', '{out}/a.pth', '/dev/full/a.md', '{out}'], []),
           'persona export': ([], ['', '{out}/a.pth', '/dev/full/a.json', '{card.json}', '{out}'], ['{out}/a.json'])}

TALK = ['Hello.\n', '', '/quit\n', '<eos>\n', '\x1b[2J\n', 'x'*6000 + '\n', '\ud800\n',
        'é\x00ü\n\n\nHi\n', '\u202e\n']
TAIL = ['--max-new-tokens', '2']
DRIFT = ['drift', '--model', '{model}', '--out', '{out}/drift', '--turns', '2', '--scored-every', '1', '--methods',
         'none,full', '--input', '{talk.jsonl}', '--personas', '{card.json}', '{card2.json}']
BASES = [                                                       # right inputs
    ['models'], ['verify', '{model}'], ['persona', 'show', '{sailor.safetensors}'],
    ['persona', 'card', '{sailor.safetensors}', '-o', '{out}/README.md'],
    ['persona', 'export', '{card.json}', '-o', '{out}/character.json'],
    ['persona', 'export', '{sailor.safetensors}', '--model', '{model}', '--image', '{picture.png}', '-o',
     '{out}/character.png'],
    ['persona', 'build', '{card.json}', '-o', '{out}/a.safetensors', '--model', '{model}'],
    ['chat', '--model', '{model}', '--policy', 'full', *TAIL],
    ['chat', '--model', '{model}', '--persona', '{sailor.safetensors}', '--input', '{talk.jsonl}', '--out', '{out}/s',
     *TAIL],
    ['chat', '--resume', '{copy}', '--input', '{talk.jsonl}', *TAIL],
    ['demo', '--model', '{model}', '--persona', '{card.json}', '--input', '{talk.jsonl}', '--turns', '1', '--out',
     '{out}/d', *TAIL],
    DRIFT, [*map(lambda word: word.replace('{out}/drift', '{swept}'), DRIFT)],
    [*DRIFT, '--free', '--max-new-tokens', '2'], [*DRIFT, '--own-replies', '--max-new-tokens', '2']]
WEIGHTS = [1, 1, 3, 2, 2, 2, 6, 10, 8, 8, 5, 8, 5, 3, 2]


def options(argv: list[str]) -> dict[str, argparse.Action]:
    "The options of a command, by name, as its parser has them."
    found, words = lyra.cli.parser(), list(argv)
    while (sub := [a for a in found._actions if isinstance(a, argparse._SubParsersAction)]):
        found = sub[0].choices[words.pop(0)]
    return {a.dest: a for a in found._actions if a.dest != 'help'}


def set_option(argv: list[str], action: argparse.Action, value: str) -> list[str]:
    "The input with an option set; one that is there is replaced."
    values = value.split(' ') if action.nargs == '+' else [value]
    if not action.option_strings:                               # positional, behind the names of the commands
        at = 2 if argv[0] == 'persona' else 1
        return [*argv[:at], *values, *argv[at + 1:]]
    flag = action.option_strings[-1]
    for name in action.option_strings:
        if name not in argv: continue
        start = argv.index(name)
        end = next((i for i in range(start + 1, len(argv)) if argv[i].startswith('-')), len(argv))
        argv = argv[:start] + argv[end:]
    return [*argv, *([flag] if action.nargs == 0 else [flag, *values])]


def damage(rng: random.Random, path: Path) -> bytes:
    "A file with a part of it changed."
    data = bytearray(path.read_bytes())
    at = rng.randrange(len(data))
    kind = rng.choice(['cut', 'flip', 'drop', 'field', 'twice'])
    if kind == 'cut': return bytes(data[:at])
    if kind == 'drop': return bytes(data[:at] + data[at + rng.randint(1, 40):])
    if kind == 'twice': return bytes(data + data)
    if kind == 'field' and path.suffix.startswith('.json'):
        text = path.read_text()
        rows = [json.loads(x) for x in (text.splitlines() if path.suffix == '.jsonl' else [text])]
        field = rng.choice([*rows[0], 'turns', 'probes'])
        rows[0][field] = rng.choice([None, 7, -1.5, '', ' ', [], {}, [1], [''], ['x', 7], True, '\ud800', '=1+1',
                                     '\x1b[2J', 'a'*3000, [[]], [{}], {'kind': 'x'}, float('nan'), 10**400])
        return ''.join(json.dumps(row) + '\n' for row in rows).encode()
    data[at] ^= 1 << rng.randrange(8)
    return bytes(data)


DAMAGED = '{picture.png}', '{card.json}', '{talk.jsonl}', '{sailor.safetensors}', '{copy}', '{swept}'


def both(a: str, b: str) -> str:
    "What has to come of an input with two changes."
    return WRONG if WRONG in (a, b) else OPEN if OPEN in (a, b) else RIGHT


def change(rng: random.Random, argv: list[str], known: dict[str, argparse.Action]) -> tuple[list[str], str]:
    "An input with an option of `known` set, and what has to come of it."
    name = rng.choice([name for name, action in known.items() if action.nargs != 0])
    action = known.pop(name)                                    # an option is changed once
    right, wrong, either = OUTPUTS.get(' '.join(argv[:2]), VALUES[name]) if name == 'output' else VALUES[name]
    value, verdict = rng.choice([(v, k) for k, vs in ((RIGHT, right), (WRONG, wrong*2), (OPEN, either)) for v in vs])
    free = name == 'max_new_tokens' and argv[0] == 'drift' and '--free' not in argv
    export = name == 'file' and 'export' in argv                # of a card, or of a saved persona, which needs a model
    if export and value == '{card.json}': verdict = RIGHT
    depends = free or export or name in ('turns', 'input', 'resume') or {'--resume', '{swept}'} & {*argv}
    return set_option(argv, action, value), OPEN if depends and verdict == RIGHT else verdict


def make_input(seed: int, number: int) -> tuple[list[str], str, str, str]:
    "Arguments with {places}, what is typed, what has to come of it, and what was damaged."
    rng = random.Random(f'{seed} {number}')
    argv = list(rng.choices(BASES, WEIGHTS)[0])
    known, verdict, damaged, typed, more = options(argv), RIGHT, '', 'Hello.\n', list[str]()
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        kind, found = rng.choices(['option', 'flag', 'damage', 'typed', 'unknown'], [12, 1, 4, 2, 1])[0], OPEN
        places, flags = [a for a in argv if a in DAMAGED], [a for a in known.values() if a.nargs == 0]
        if kind == 'unknown': more, found = [rng.choice(['--nonsense', 'more', '--turn5', '-x'])], WRONG
        if kind == 'typed': typed = rng.choice(TALK)
        if kind == 'damage' and places: damaged = rng.choice(places)
        if kind == 'flag' and flags: argv = set_option(argv, rng.choice(flags), '')
        if kind == 'option' and len(known) > len(flags): argv, found = change(rng, argv, known)
        verdict = both(verdict, found)
    return [*argv, *more], typed, verdict, damaged if damaged in argv else ''


# One input is run, and what came of it is judged.

class Late(BaseException):
    "An input has taken too long."


def place(argv: list[str], world: dict[str, Path], out: Path, damaged: str, rng: random.Random) -> list[str]:
    "The arguments with real paths; a saved session is copied, and so is a file that is to be damaged."
    known = world | dict(out=out)
    for name, source in (('copy', 'session'), ('swept', 'sweep')):
        if '{' + name + '}' not in argv: continue
        known[name] = out/name
        shutil.copytree(world[source], out/name)
    if damaged:
        file = known[damaged.strip('{}')]
        if file.is_dir(): file = rng.choice(sorted(p for p in file.rglob('*.json*')))
        else: known[damaged.strip('{}')] = out/file.name
        (file if file.is_relative_to(out) else out/file.name).write_bytes(damage(rng, file))
    return put(argv, known)


# On a busy machine the clock says little, so what an input computes has a limit of its own.
LIMITS = (signal.SIGPROF, signal.ITIMER_PROF, LONGEST), (signal.SIGALRM, signal.ITIMER_REAL, WAIT)


def inside(argv: list[str], typed: str) -> tuple[int, str, str]:
    "Exit status, output and errors of `lyra.cli.main` in this process."
    def late(*_): raise Late
    out, err, before = io.StringIO(), io.StringIO(), sys.stdin
    for number, timer, seconds in LIMITS:
        signal.signal(number, late)
        signal.setitimer(timer, seconds)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        sys.stdin = io.StringIO(typed)
        try: code = lyra.cli.main(argv)
        except SystemExit as e: code = e.code
        except Late: code = -1
        except BaseException:
            traceback.print_exc()
            code = 1
        finally:
            for _, timer, _ in LIMITS: signal.setitimer(timer, 0)
            sys.stdin = before
    return code or 0, out.getvalue(), err.getvalue()


STREAMS = ('pipe', 'closed', 'full', 'broken', 'ascii')


def outside(argv: list[str], typed: str, stream: str, stdin: str) -> tuple[int, str, str]:
    "The same of a process of its own, whose standard streams may be odd."
    env = os.environ | (dict(PYTHONIOENCODING='ascii') if stream == 'ascii' else {}) | dict(LYRA_CACHE='')
    out: object = open('/dev/full', 'wb') if stream == 'full' else subprocess.PIPE
    def prepare():
        if stream == 'closed': os.close(1)
        if stdin == 'closed': os.close(0)
    argv = [a.encode('utf-8', 'surrogateescape') if '\udc80' <= max(a, default='') else a for a in argv]
    process = subprocess.Popen([sys.executable, '-m', 'lyra.cli', *argv], stdin=subprocess.PIPE, stdout=out,
                               stderr=subprocess.PIPE, env=env, preexec_fn=prepare, cwd=tempfile.gettempdir())
    if stream == 'broken': process.stdout.close()
    try: said, err = process.communicate(typed.encode('utf-8', 'surrogatepass'), timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        said, err = process.communicate()
        process.returncode = -1
    except (ValueError, BrokenPipeError):                       # its output was closed here
        err = process.stderr.read()
        said = b''
        process.wait()
    return process.returncode, (said or b'').decode('utf-8', 'replace'), err.decode('utf-8', 'replace')


def judge(code: int, out: str, err: str, verdict: str, command: str, odd: bool, spent: float = 0) -> str:
    "What is wrong with what came of an input, which took so many seconds to compute; '' where nothing is."
    said = [line for line in err.splitlines() if line.startswith('lyra')]
    if code == -1: return 'hang'
    if 'Traceback' in err: return 'traceback'
    if '\x1b' in out + err: return 'escape'
    if code == 0: return 'wrong acceptance' if verdict == WRONG else ''
    if odd and code == 141: return ''
    if command == 'verify' and code == 1 and not said: return ''
    if code != 2 or len(said) != 1: return f'exit status {code} with {len(said)} sentences'
    if verdict == RIGHT and not odd: return 'wrong refusal'
    return 'slow refusal' if spent > PATIENCE else ''


def try_input(seed: int, number: int, world: dict[str, Path], every: int) -> dict:
    "Run one input."
    rng = random.Random(f'{seed} {number} places')
    argv, typed, verdict, damaged = make_input(seed, number)
    with tempfile.TemporaryDirectory(prefix='lyra-fuzz-') as out:
        real = place(argv, world, Path(out), damaged, rng)
        start, computed, odd = time.perf_counter(), time.process_time(), False
        if every and number % every == 0 and not any('\0' in a or '\ud800' in a for a in real):
            stream, stdin = rng.choice(STREAMS), rng.choice(('pipe', 'closed'))
            odd = stream in ('closed', 'full', 'broken')
            code, said, err = outside(real, typed, stream, stdin)
            argv = [*argv, f'[in a process, output {stream}, input {stdin}]']
        else: code, said, err = inside(real, typed)
        seconds, computed = time.perf_counter() - start, time.process_time() - computed
        file = Path(out)/'swept'/'results.csv'
        same = argv in BASES and damaged != '{card.json}'       # another card is another persona
        mixed = code == 0 and same and file.exists() and not same_table(file, world['sweep']/'results.csv')
    fault = judge(code, said, err, verdict, argv[0], odd, computed) if not mixed else 'a damaged cell believed'
    return dict(number=number, fault=fault, code=code, seconds=round(seconds, 2), verdict=verdict,
                argv=[a[:80] for a in argv], typed=typed[:20], damaged=damaged, err=err[-1500:] if fault else '',
                out=said[-500:] if fault else '')


# The same numbers in Python: whatever is given, it is refused in one sentence, or it is a number that can be used.

def try_numbers(n: int) -> list[str]:
    "Give odd values to everything in Python that takes a number, n times in all; what was wrong."
    takes: list[tuple[Callable[..., object], str]] = [
        *((Sampling, name) for name in ('max_new_tokens', 'temperature', 'top_p', 'repetition_penalty', 'generator')),
        *((ContextPolicy, name) for name in ('window', 'sinks', 'gain_from')),
        (partial(ContextPolicy, window=8, persona=True), 'gain'),
        *((lyra.sweep.Plan, name) for name in ('turns', 'orders', 'probes', 'scored_every', 'seed'))]
    odd = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.complex_numbers(),
                    st.lists(st.integers(), max_size=2), st.sampled_from((0, 1, 2**40, 2**63, -2**64, 1e-320, 1e300)))
    faults: list[str] = []
    @settings(max_examples=n, deadline=None, database=None, derandomize=True, suppress_health_check=[*HealthCheck])
    @given(st.sampled_from(takes), odd)
    def give(take, value):
        make, name = take
        try: made = getattr(make(**{name: value}), name)
        except LyraError as e: fault = '' if len(str(e).splitlines()) == 1 else 'several lines'
        except Exception as e: fault = f'{type(e).__name__}: {e}'
        else: fault = '' if made is None or isinstance(made, Real) and math.isfinite(made) else 'accepted'
        if fault: faults.append(f'{name}={value!r}: {fault}')
    give()
    return faults


# Many inputs, in forked processes: a fork has everything imported already.

def settle() -> None:
    "What a fork changes for itself: an allocation that is far too large fails, and a model is loaded once."
    resource.setrlimit(resource.RLIMIT_AS, (16*2**30, 16*2**30))
    lyra.decoders.load = cached = lru_cache(maxsize=4)(lyra.decoders.load)
    lyra.sweep.load = cached


def batch(numbers: list[int], seed: int, world: dict[str, Path], every: int, log: str) -> None:
    "Run inputs, one after the other; each is a line of the log."
    settle()
    with open(log, 'a', encoding='utf-8') as file:
        for number in numbers:
            file.write(json.dumps(try_input(seed, number, world, every)) + '\n')
            file.flush()


def read_log(log: str) -> dict[int, dict]:
    "The finished inputs."
    if not os.path.exists(log): return {}
    rows = [json.loads(line) for line in open(log, encoding='utf-8') if line.endswith('}\n')]
    return {row['number']: row for row in rows}


def fuzz(n: int, seed: int, world: dict[str, Path], log: str, every: int, size: int = 25) -> list[dict]:
    "Run inputs 1 to n, except those in the log; rows of all."
    fork = multiprocessing.get_context('fork')
    left = [i for i in range(1, n + 1) if i not in read_log(log)]
    while left:
        process = fork.Process(target=batch, args=(left[:size], seed, world, every, log))
        process.start()
        process.join(size*(WAIT + 65))
        if process.is_alive(): process.kill()
        process.join()
        done = read_log(log)
        if process.exitcode:                                    # the first that is not finished has ended the process
            dead = next(i for i in left if i not in done)
            row = dict(number=dead, fault=f'process ended with {process.exitcode}', err='',
                       argv=make_input(seed, dead)[0])
            with open(log, 'a', encoding='utf-8') as file: file.write(json.dumps(row) + '\n')
            done[dead] = row
        left = [i for i in left if i not in done]
        if sys.stderr.isatty(): print(f'\r{n - len(left)} of {n} inputs', end='', file=sys.stderr, flush=True)
    return [row for number, row in read_log(log).items() if number <= n]


# Kills at random moments: what is finished is kept, and nothing that is half-written is believed.

def forked(work, *args) -> multiprocessing.Process:
    "Start a function in a fork, silently."
    def quiet():
        null = os.open(os.devnull, os.O_RDWR)
        for n in (0, 1, 2): os.dup2(null, n)
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, 'w'), open(2, 'w')
        work(*args)
    process = multiprocessing.get_context('fork').Process(target=quiet)
    process.start()
    return process


def convert(folder: Path, model: Path) -> None:
    "Convert a built-in model whose source is the tiny one."
    def copy(source, target):
        for file in sorted(model.iterdir()):
            shutil.copy(file, target)
            time.sleep(.02)
    lyra.weights._package = lambda name: None
    lyra.weights._convert = copy
    lyra.weights.MODELS['tiny'] = lyra.weights.BuiltIn('tiny', '', '', 'tiny', 0, 0, lambda work: work)
    lyra.weights.checkpoint('tiny', folder)


def users(session: Path) -> list[str]:
    "What a session has heard."
    written = (session/'session.jsonl').read_text().splitlines(keepends=True)
    rows = [json.loads(line) for line in written if line.endswith('\n')]
    return [row['user'] for row in rows if 'user' in row]


class Killed:
    "Four commands that are killed, and what has to hold afterwards."
    def __init__(self, world: dict[str, Path], folder: Path):
        self.world, self.folder = world, folder
        self.talk = lines(folder/'many.jsonl', talk(12))
        self.long: dict[str, float] = {}                        # seconds that each takes undisturbed

    def argv(self, command: str, out: Path) -> list[str]:
        w = self.world
        chat = ['chat', '--model', w['model'], *TAIL, '--input', self.talk]
        found = dict(chat=[*chat, '--persona', w['sailor.safetensors'], '--out', out], resume=[*chat, '--resume', out],
                     build=['persona', 'build', w['card.json'], '--model', w['model'], '-o', out/'a.safetensors'],
                     sweep=put(DRIFT, w | dict(out=out)))
        return [str(a) for a in found[command]]

    def work(self, command: str, out: Path):
        if command == 'convert': return convert, out, self.world['model']
        return lyra.cli.main, self.argv(command, out)

    def kill(self, command: str, out: Path, rng: random.Random) -> None:
        "Start a command and kill it at a random moment."
        process = forked(*self.work(command, out))
        process.join(rng.uniform(0, self.long[command]*1.05))
        process.kill()
        process.join()

    def measure(self, command: str) -> None:
        "How long a command takes undisturbed."
        start = time.perf_counter()
        process = forked(*self.work(command, self.folder/f'whole-{command}'))
        process.join()
        self.long[command] = time.perf_counter() - start
        assert not process.exitcode, f'{command} does not run undisturbed'

    def after(self, command: str, out: Path) -> str:
        "What is wrong after a kill; '' where nothing is."
        whole = self.folder/f'whole-{command}'
        def again(command: str) -> int:
            process = forked(*self.work(command, out))
            process.join()
            return process.exitcode or 0
        if command == 'chat':
            if not (out/'session.jsonl').exists(): return ''
            said = users(out)
            if said != users(whole)[:len(said)]: return f'the journal holds {said}'
            forked(*self.work('resume', out)).join()
            return '' if users(out) == users(whole) else f'resumed, the journal holds {users(out)}'
        if command == 'build':
            file = out/'a.safetensors'
            if file.exists(): Persona.load(file)
            return ''
        if command == 'convert':
            if (out/'tiny').exists() and not same_files(out/'tiny', self.world['model']): return 'half a checkpoint'
            again('convert')
            return '' if same_files(out/'tiny', self.world['model']) else 'no whole checkpoint afterwards'
        again('sweep')
        same = same_table(*(f/'drift'/'results.csv' for f in (out, whole)))
        return '' if same else 'the table differs from that of a sweep without a kill'


def same_table(a: Path, b: Path) -> bool:
    "Whether two tables of results agree in all but the times."
    tables = [pd.read_csv(file) for file in (a, b)]
    one, other = (t[~t.measure.isin(('seconds', 'first token'))].reset_index(drop=True) for t in tables)
    return one.equals(other)


def same_files(a: Path, b: Path) -> bool:
    names = [sorted(f.name for f in folder.iterdir()) for folder in (a, b)]
    return names[0] == names[1] and all((a/n).read_bytes() == (b/n).read_bytes() for n in names[0])


def kill_often(n: int, seed: int, world: dict[str, Path]) -> list[str]:
    "Kill chat, sweep, build and convert in turn, n times in all; what was wrong afterwards."
    faults, rng = [], random.Random(seed)
    with tempfile.TemporaryDirectory(prefix='lyra-kill-') as folder:
        killed = Killed(world, Path(folder))
        commands = ('chat', 'sweep', 'build', 'convert')[:n]
        for command in commands: killed.measure(command)
        for i, command in zip(range(n), itertools.cycle(commands)):
            out = Path(folder)/f'{i}'
            out.mkdir()
            killed.kill(command, out, rng)
            try: fault = killed.after(command, out)
            except (LyraError, OSError, ValueError) as e: fault = f'{type(e).__name__}: {e}'
            if fault: faults.append(f'{command}, kill {i}: {fault}')
            shutil.rmtree(out)
    return faults


# A failing disk: each call that reads or writes a session or a sweep fails in turn, or is interrupted. What is there
# afterwards is what was there before, or what should be there after.

SITES = [(builtins, 'open'), (io, 'open'), (os, 'open'), (os, 'fsync'), (os, 'replace'), (os, 'unlink'), (os, 'mkdir'),
         (lyra.persona, 'safe_open'), (lyra.state, 'safe_open')]
ROOM = 'open', 'write', 'flush', 'fsync', 'mkdir'               # what a full disk refuses
HOW = FAILS, FULL, STOPPED = 'fails', 'and all after it fail', 'is interrupted'


class Opened:
    "A file whose calls are counted."
    def __init__(self, file, disk: 'Disk'): self.file, self.disk = file, disk
    def __enter__(self): return self
    def __exit__(self, *_): self.file.close()
    def __iter__(self): return iter(self.file)

    def __getattr__(self, name: str):
        found = getattr(self.file, name)
        if name not in ('read', 'write', 'flush', 'truncate'): return found
        def call(*args):
            self.disk.count(name)
            return found(*args)
        return call


class Disk(contextlib.ExitStack):
    "Stops the n-th call in a folder, and where it is full every later one that needs room; 0: none."
    def __init__(self, folder: Path, n: int = 0, how: str = FAILS):
        super().__init__()
        self.folder, self.n, self.how, self.calls = str(folder), n, how, list[str]()

    def count(self, name: str) -> None:
        self.calls.append(name)
        late = self.how == FULL and self.n and len(self.calls) > self.n and name in ROOM
        if len(self.calls) == self.n or late:
            if self.how == STOPPED: raise KeyboardInterrupt
            number = errno.ENOSPC if self.how == FULL else errno.EIO
            raise OSError(number, os.strerror(number))

    def watched(self, name: str, call: Callable) -> Callable:
        def counted(path, *args, **kwargs):
            place = os.readlink(f'/proc/self/fd/{path}') if name == 'fsync' else path
            if not isinstance(place, (str, os.PathLike)) or not str(place).startswith(self.folder):
                return call(path, *args, **kwargs)
            self.count(name)
            found = call(path, *args, **kwargs)
            return Opened(found, self) if isinstance(found, io.IOBase) else found
        return counted

    def __enter__(self) -> 'Disk':
        for place, name in SITES:
            self.enter_context(patch.object(place, name, self.watched(name, getattr(place, name))))
        return self


class Failing:
    "The steps of a session's life, and what has to hold after each on a failing disk."
    STEPS = ('save', 'again', 'tell', 'say', 'exchange', 'load')

    def __init__(self, world: dict[str, Path], folder: Path):
        self.model, self.words = lyra.decoders.load(world['model'])
        self.sailor, self.folder = Persona.load(world['sailor.safetensors']), folder
        self.cook = Persona.build(self.model, self.words, 'You are a cook.', acknowledgement='Yes.')

    def begin(self, step: str) -> ChatSession:
        "A session before a step."
        shutil.rmtree(self.folder, ignore_errors=True)
        session = ChatSession(self.model, self.words, self.sailor, 'near', window_size=16)
        if step != 'save': session.save(self.folder)
        for n in range(lyra.chat.EVERY - 1): session.tell(f'Say {n}.', f'It is {n}.', scored=False)
        return session

    def take(self, step: str, session: ChatSession) -> None:
        if step in ('save', 'again'): session.save(self.folder)
        if step == 'tell': session.tell('Where are you?', 'Here.', scored=False)
        if step == 'say': session.say('Where are you?', max_new_tokens=2)
        if step == 'exchange': session.set_persona(self.cook)
        if step == 'load': self.load()

    def load(self) -> ChatSession: return ChatSession.load(self.folder, self.model, self.words)

    def same(self, a: ChatSession, b: ChatSession) -> bool:
        "Whether two sessions have heard the same, and expect the same."
        one, other = (s.ask('Who?').logits for s in (a, b))
        return a.turns == b.turns and bool(torch.allclose(one, other, atol=1e-3))

    def fault(self, step: str, n: int, how: str) -> str:
        "What is wrong after the n-th call of a step was stopped; '' where nothing is."
        session = self.begin(step)
        before = list(session.turns)
        with Disk(self.folder, n, how):
            try: self.take(step, session)
            except LyraError: failed = True
            except KeyboardInterrupt: failed = session.turns == before          # else it came when the turn was held
            else: failed = False
        if failed and session.turns != before: return 'the turn is there'
        if failed and step == 'save' and not (self.folder/'session.jsonl').exists(): return ''
        if not self.same(self.load(), session): return 'the folder holds something else'
        if failed: self.take(step, session)
        return '' if self.same(self.load(), session) else 'done again, the folder holds something else'


def fail_sweep(world: dict[str, Path], folder: Path, n: int, how: str) -> str:
    "What is wrong after the n-th call of a sweep was stopped; '' where nothing is."
    shutil.rmtree(folder, ignore_errors=True)
    argv = put(DRIFT, world | dict(out=folder))
    with Disk(folder, n, how): code, said, err = inside(argv, '')
    if how == STOPPED: fault = '' if code in (0, 130) and 'Traceback' not in err else f'exit status {code}'
    else: fault = judge(code, said, err, OPEN, 'drift', False)
    if fault: return f'{fault}: {err[-300:]}'
    code, _, err = inside(argv, '')
    if code: return f'not to be continued: {err[-300:]}'
    return '' if same_table(folder/'drift'/'results.csv', world['sweep']/'results.csv') else 'another table'


def fail_disk(most: int, seed: int, world: dict[str, Path]) -> tuple[int, list[str]]:
    "Stop each call of each step, or `most` of them where that is not 0; how many were, and what was wrong."
    with tempfile.TemporaryDirectory(prefix='lyra-disk-') as place:
        folder, todo, faults = Path(place)/'it', list[tuple[str, int, str]](), []
        failing = Failing(world, folder)
        for step in (*failing.STEPS, 'sweep'):
            session = failing.begin(step) if step != 'sweep' else None
            with Disk(folder) as disk:
                if session is not None: failing.take(step, session)
                else: inside(put(DRIFT, world | dict(out=folder)), '')
            todo += [(step, n, how) for n in range(1, len(disk.calls) + 1) for how in HOW]
        if most: todo = random.Random(seed).sample(todo, min(most, len(todo)))
        for step, n, how in todo:
            try: fault = fail_sweep(world, folder, n, how) if step == 'sweep' else failing.fault(step, n, how)
            except Exception as e: fault = f'{type(e).__name__}: {e}'
            if fault: faults.append(f'{step}, call {n} {how}: {fault}')
    return len(todo), faults


# A soak: under a bounded policy neither memory nor time grows with the conversation.

def memory() -> int:
    "Bytes of this process in memory."
    return int(Path('/proc/self/statm').read_text().split()[1])*os.sysconf('SC_PAGE_SIZE')


class Told:
    "A conversation on the tiny model, told turn after turn."
    def __init__(self, world: dict[str, Path], policy: str):
        model, words = lyra.decoders.load(world['model'])
        self.session = ChatSession(model, words, Persona.load(world['sailor.safetensors']), policy, window_size=32)

    def tell(self, n: int) -> float:
        "Seconds of turn n."
        start = time.perf_counter()
        self.session.tell(f'Say {n % 10}.', f'It is {n % 10}.', scored=False)
        self.session.turns.clear()                              # the rows of a conversation do grow; they are text
        return time.perf_counter() - start


FRESH: list[Told] = [] # of a process that was started for it


def begin_fresh(world: dict[str, Path], policy: str, turns: int) -> None:
    torch.set_num_threads(1)
    FRESH.append(Told(world, policy))
    for n in range(turns): FRESH[0].tell(n)


def tell_fresh(n: int) -> float: return FRESH[0].tell(n)


def later(times: np.ndarray, first: np.ndarray) -> tuple[float, float]:
    "`times` over `first`: the lower quartile's ratio, which other work hardly moves, and the 99th percentile's."
    low, high = np.quantile(times, (.25, .99))/np.quantile(first, (.25, .99))
    return float(low), float(high)


def soak(turns: int, world: dict[str, Path], policy: str = 'near') -> dict[str, float]:
    """A long conversation: growth of memory, and its last tenth over its first.

    A machine is not equally fast all the time, so a young conversation in a process of its own takes turns with the old
    one at the end: what makes both slower is not the conversation's age, nor the process's.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    old, tenth = Told(world, policy), max(1, turns//10)
    for n in range(tenth): old.tell(n)                          # warms the process up
    times, held = np.zeros(turns), np.zeros(turns)
    for n in range(turns): times[n], held[n] = old.tell(n), memory()
    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn'), begin_fresh, (world, policy, tenth)) as young:
        who = old.tell, lambda n: young.submit(tell_fresh, n).result()
        who[1](0)
        spent, order = np.zeros((2, tenth)), random.Random(0)
        for n in range(tenth):
            for i in order.sample((0, 1), 2): spent[i, n] = who[i](n)
    torch.set_num_threads(threads)
    (ratio, slow), (beside, slow_beside) = later(times[-tenth:], times[:tenth]), later(*spent)
    return dict(turns=turns, ratio=ratio, slow=slow, beside=beside, slow_beside=slow_beside,
                growth=float(held[-1] - held[tenth])/2**20)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--inputs', type=int, default=120, help='wrong inputs to try')
    parser.add_argument('--kills', type=int, default=8, help='processes to kill')
    parser.add_argument('--faults', type=int, default=40, help='calls of the operating system to let fail; 0: all')
    parser.add_argument('--turns', type=int, default=300, help='turns of the soak')
    parser.add_argument('--process', type=int, default=40, metavar='N',
                        help='every n-th input runs in a process of its own')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--log', metavar='FILE', help='keep the finished inputs there, and go on with them')
    parser.add_argument('--only', type=int, metavar='N', help='run one input, and print all of it')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix='lyra-world-') as folder:
        world = make_world(Path(folder))
        if args.only is not None:
            settle()
            print(json.dumps(try_input(args.seed, args.only, world, args.process), indent=1, ensure_ascii=False))
            return 0
        start = time.perf_counter()
        rows = fuzz(args.inputs, args.seed, world, args.log or f'{folder}/log', args.process)
        bad = [row for row in rows if row['fault']]
        kinds = ', '.join(f'{n} {kind}' for kind, n in Counter(row['fault'] for row in bad).most_common()) or 'no fault'
        slowest = max((row.get('seconds', 0) for row in rows), default=0)
        print(f'{len(rows)} inputs in {time.perf_counter() - start:.0f} s, the slowest {slowest:.1f} s: {kinds}')
        for row in bad:
            said = (row['err'].strip().splitlines() or [''])[-1][:160]
            print(f"  {row['number']}: {row['fault']}: {row['argv']} {said}")
        wrong = try_numbers(args.inputs)
        print(f'{args.inputs} numbers in Python: {len(wrong)} faults', *wrong[:5], sep='\n  ')
        faults = kill_often(args.kills, args.seed, world)
        print(f'{args.kills} kills: {len(faults)} faults', *faults, sep='\n  ')
        failed, broken = fail_disk(args.faults, args.seed, world)
        print(f'{failed} failing calls: {len(broken)} faults', *broken, sep='\n  ')
        found = [soak(args.turns, world)]
        if found[0]['beside'] > 1.1: found.append(soak(args.turns, world))     # a busy machine is no fault
        best = min(found, key=lambda x: x['beside'])
        print('soak: {turns} turns, one of the last tenth takes {ratio:.2f} times one of the first (99th percentile '
              "{slow:.2f} times), and {beside:.2f} times one of a young process's, told in turns with it "
              '({slow_beside:.2f} times), memory grows by {growth:.1f} MiB'.format(**best))
        return int(bool(bad or wrong or faults or broken or best['beside'] > 1.1 or best['growth'] > 20))


if __name__ == '__main__': sys.exit(main())
