"""Speed and memory beside stock transformers, and beside the floor: the time that reading all weights once takes.

    python tools/bench.py [--parts decode profile first memory batch] [--contexts 600 4000 32000] [--json FILE]

`stock` is the model as transformers loads it, with a DynamicCache; `attached` the same with `lyra.attach`; `lyra` is what
`lyra.load` gives; `near` and `pinned` are policies with a persona; `fast` has fast products (`fast=True`), and `int8`
8-bit weights. `--llama f32 f16 q8_0` puts llama.cpp beside them, with the same weights in these forms (`pip install
llama-cpp-python gguf`). All take turns, token by token and in random order, so that a busy machine slows all of them
alike; what matters is the ratio of the medians. Behind a median stand its quartiles. In a batch, `products` are stock's
matrix products alone. `profile` times every matrix product of a token where it stands, over the time that reading its
weights takes at the bandwidth that was measured. Peak memory is that of a process of its own each, tokenizer included (on Linux).
Contexts over 8,000 tokens are for bounded policies alone.
"""
import argparse, gc, importlib, importlib.util, json, platform, random, re, subprocess, sys, tempfile, time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import DynamicCache
from transformers.utils.logging import disable_progress_bar

ROOT = Path(__file__).resolve().parent.parent
DEFAULT = 'gemma3-270m'
TOKEN = torch.tensor([[5]])
NOTHING = 'no model' # libraries and tokenizer alone
LONG = 8000 # tokens; over that, policies that keep everything are left out
# side -> the model it runs on, and its policy
SIDES = {'stock': ('stock', ''), 'attached': ('attached', 'full'), 'lyra': ('lyra', 'full'), 'near': ('lyra', 'near'),
         'pinned': ('lyra', 'pinned'), 'fast': ('fast', 'full'), 'fast near': ('fast', 'near'), 'int8': ('int8', 'full'),
         'int8 near': ('int8', 'near'), 'beside': ('beside', 'full')}
FORMS = dict(f32='F32', f16='F16', q8_0='Q8_0') # of llama.cpp's weights -> their name in the package gguf
Times = dict[str, list[float]]
disable_progress_bar()


def package(checkout: Path, *modules: str) -> list[Any]:
    "Modules of one checkout's `lyra`, apart from those of any other."
    for name in [m for m in sys.modules if m == 'lyra' or m.startswith('lyra.')]: del sys.modules[name]
    sys.path.insert(0, str(checkout))
    try: found = [importlib.import_module(f'lyra.{name}') for name in modules]
    finally: sys.path.remove(str(checkout))
    if not str(found[0].__file__).startswith(str(checkout)):
        raise SystemExit(f'bench: {checkout} holds no lyra package: name a checkout of this project.')
    return found


def prompt(n: int, rows: int = 1) -> torch.Tensor:
    return torch.randint(3, 40_000, (rows, n), generator=torch.Generator().manual_seed(0))


class Models:
    "Loads each model once, and records the personas that its policies want."
    def __init__(self, name: str, beside: Path|None):
        self.name = name
        # The other checkout first: a later import of this one's modules has to find this one's.
        self.older = package(beside, 'attention', 'cache') if beside else None
        self.weights, self.decoders, self.cache, self.persona, self.cards = package(
            ROOT, 'weights', 'decoders', 'cache', 'persona', 'cards')

    def sides(self) -> list[str]:
        "Those that there are. To a model of another family `lyra.load` attaches, so `attached` is the same as `lyra`."
        is_gemma = self.weights.resolve(self.name)[1].model_type.startswith('gemma3')
        is_there = dict(beside=self.older is not None and is_gemma, attached=is_gemma)
        return [side for side in SIDES if is_there.get(side, True)]

    @cache
    def model(self, kind: str) -> Any:
        if self.older and kind == 'beside':
            return self.older[0].Lyra.from_pretrained(None if self.name == DEFAULT else self.name)
        if kind in ('lyra', 'fast', 'int8'):
            dtype = 'int8' if kind == 'int8' else 'float32'
            return self.decoders.load_attached(self.name, dtype=dtype, fast=kind == 'fast')
        model = self.weights.load_model(self.name, dtype='float32')
        return self.decoders.attach(model) if kind == 'attached' else model

    def personas(self, kind: str, n: int) -> list[Any]:
        "n different ones."
        files = sorted(ROOT.glob('data/cast/*.json'))[:n]
        return [self.persona.build(self.model(kind), self.tokenizer, self.cards.read_card(f)) for f in files]

    @cached_property
    def tokenizer(self) -> Any: return self.weights.load_tokenizer(self.name)

    def new_cache(self, side: str) -> Callable[[], Any]:
        "What makes a cache for a side's conversations."
        kind, policy = SIDES[side]
        config = self.model(kind).config
        if kind == 'stock': return lambda: DynamicCache(config=config)
        make = self.older[1].LyraCache if self.older and kind == 'beside' else self.cache.LyraCache
        options = {} if policy == 'full' else dict(persona=self.personas(kind, 1)[0])
        return lambda: make(config, policy, **options)


    def gguf(self, folder: Path, forms: Sequence[str]) -> list[Path]:
        "The model's own GGUF file, written again with its matrices in other forms."
        if not forms: return []
        if self.name not in self.weights.MODELS: raise SystemExit(f'bench: --llama is for {", ".join(self.weights.MODELS)}.')
        gguf, source = importlib.import_module('gguf'), self.weights.MODELS[self.name].gguf(folder)
        return [rewritten(gguf, source, folder/f'llama.cpp {form}', FORMS[form]) for form in forms]


def rewritten(gguf: Any, source: Path, target: Path, form: str) -> Path:
    "A GGUF file with matrices of another form."
    reader, kind = gguf.GGUFReader(source), getattr(gguf.GGMLQuantizationType, form)
    about = {name: field for name, field in reader.fields.items() if not name.startswith('GGUF.')}
    writer = gguf.GGUFWriter(target, about.pop('general.architecture').contents())
    for name, field in about.items():
        writer.add_key_value(name, field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None)
    for tensor in reader.tensors:
        x, shape = gguf.quants.dequantize(tensor.data, tensor.tensor_type), [*map(int, reversed(tensor.shape))]
        if len(shape) == 1 or form == 'F32': writer.add_tensor(tensor.name, x.reshape(shape))
        else: writer.add_tensor(tensor.name, gguf.quants.quantize(x.reshape(shape), kind), raw_dtype=kind)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close): write()
    return target


class Side:
    "One model with one policy."
    def __init__(self, name: str, models: Models):
        self.name, self.model, self.new = name, models.model(SIDES[name][0]), models.new_cache(name)
        self.is_bounded = SIDES[name][1] in ('near', 'pinned')

    @torch.no_grad()
    def open(self, n: int) -> None:
        "Read n tokens."
        self.held = self.new()
        for chunk in prompt(n).split(500, 1): self.model(chunk, cache=self.held, logits_to_keep=1)

    @torch.no_grad()
    def step(self) -> None: self.model(TOKEN, cache=self.held, logits_to_keep=1)

    def first(self, n: int) -> None:
        "Read n tokens and write one."
        self.model.generate(prompt(n), attention_mask=torch.ones(1, n), cache=self.new(), max_new_tokens=1, do_sample=False)

    @property
    def nbytes(self) -> int:
        "Bytes of the weights that a token reads: all, but for an embedding that is not the head as well."
        rows, head = self.model.get_input_embeddings().weight, self.model.get_output_embeddings().weight
        unread = 0 if rows.data_ptr() == head.data_ptr() else rows.nbytes
        return sum(p.nbytes for p in self.model.parameters()) - unread


class LlamaCpp:
    "llama.cpp, with a GGUF file; what a `Side` can do."
    is_bounded = False

    def __init__(self, file: Path, n: int):
        self.name, self.nbytes = file.name, file.stat().st_size
        self.llama = importlib.import_module('llama_cpp').Llama(str(file), n_ctx=n, n_threads=torch.get_num_threads(), verbose=False)

    def open(self, n: int) -> None:
        self.llama.reset()
        self.llama.eval(prompt(n)[0].tolist())

    def step(self) -> None: self.llama.eval(TOKEN[0].tolist())
    first = open


def in_turns(work: dict[str, Callable[[], Any]], steps: int, warm: int) -> Times:
    "Seconds of each, in random order: whoever follows its like finds warmer caches."
    times, order = Times({name: [] for name in work}), random.Random(0)
    for step in range(steps + warm):
        for name in order.sample([*work], len(work)):
            start = time.perf_counter()
            work[name]()
            if step >= warm: times[name].append(time.perf_counter() - start)
    return times


def decode(sides: list[Any], n: int, steps: int) -> Times:
    "Milliseconds per token after n tokens of context."
    for side in sides: side.open(n)
    return {name: [1e3*t for t in ts] for name, ts in in_turns({s.name: s.step for s in sides}, steps, 3).items()}


@torch.no_grad()
def products(model: Any, rows: int) -> Callable[[], Any]:
    "One token's matrix products for each row, and nothing else: with these weights in float32 no decoder is faster."
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    inputs = [torch.randn(rows, 1, m.in_features) for m in layers]
    def step() -> None:
        with torch.no_grad():
            for m, x in zip(layers, inputs): m(x)
    return step


def profile(side: Side, steps: int) -> tuple[Times, dict[str, float]]:
    "Microseconds of one token after 600: all of it, and its products by shape of their weights; and the bytes of each."
    head = side.model.get_output_embeddings()
    products = [m for m in side.model.modules() if 'Linear' in type(m).__name__ or m is head]
    named = lambda m: f"{'head' if m is head else 'products'} {m.weight.shape[0]} x {m.weight.shape[1]}"
    counts, spent, began = Counter(map(named, products)), defaultdict[str, list[float]](list), [0.]
    def begin(*_: Any) -> None: began[0] = time.perf_counter()
    def end(m: Any, *_: Any) -> None: spent[named(m)].append(time.perf_counter() - began[0])
    side.open(600)
    for _ in range(3): side.step()
    hooks = [h for m in products for h in (m.register_forward_pre_hook(begin), m.register_forward_hook(end))]
    for _ in range(steps):
        start = time.perf_counter()
        side.step()
        spent['all'].append(time.perf_counter() - start)
    for hook in hooks: hook.remove()
    nbytes = {f'{n} {name}': float(m.weight.nbytes) for m in products for name, n in counts.items() if named(m) == name}
    order = sorted(counts, key=lambda name: -sum(spent[name]))
    return {f'{counts[k]} {k}' if k in counts else k: [1e6*t for t in spent[k]] for k in ['all', *order]}, nbytes


def batch(models: Models, rows: int, steps: int, n: int = 200) -> Times:
    "Tokens per second of conversations with a persona each, after n tokens; stock reads the personas as text."
    def stepper(side: str) -> Callable[[], Any]:
        kind, policy = SIDES[side]
        model, personas = models.model(kind), models.personas(kind if policy else 'lyra', rows)
        ids, mask, past = prompt(n, rows), torch.ones(rows, n, dtype=torch.long), DynamicCache(config=model.config)
        if policy: past = models.cache.LyraCache(model, policy, persona=personas)
        else:
            P = max(map(len, personas))
            ids = torch.cat((torch.tensor([[0]*(P - len(p)) + [*p.token_ids] for p in personas]), ids), 1)
            mask = torch.tensor([[0]*(P - len(p)) + [1]*(len(p) + n) for p in personas])
        model(ids, attention_mask=mask, cache=past, logits_to_keep=1)
        def step() -> None:
            nonlocal mask
            mask = torch.cat((mask, mask[:, -1:]), 1)
            with torch.no_grad(): model(TOKEN.expand(rows, 1), attention_mask=mask, cache=past, logits_to_keep=1)
        return step
    runs = {side: stepper(side) for side in ('stock', 'near', 'fast near', 'int8 near')}
    runs['products'] = products(models.model('stock'), rows)
    return {name: [rows/t for t in ts] for name, ts in in_turns(runs, steps, 2).items()}


def peak(side: str, args: argparse.Namespace, n: int) -> None:
    "Print the MiB that a prompt through `generate` takes at most: libraries, tokenizer and model included."
    models = Models(args.model, args.beside)
    print(f'{type(models.tokenizer).__name__}, loaded before the model')
    for this in [Side(side, models)] if side != NOTHING else []:
        gc.collect()
        for k in (3, n): this.first(k)
    # Not ru_maxrss: a child inherits that from the process that started it, which may have been larger.
    print(int(re.search(r'VmHWM:\s*(\d+) kB', Path('/proc/self/status').read_text())[1])/1024)


def memory(names: list[str], args: argparse.Namespace, n: int) -> Times:
    "`peak` of each side, in a process of its own."
    command = [sys.executable, __file__, '--model', args.model, *(['--beside', str(args.beside)] if args.beside else [])]
    ask = lambda side: subprocess.run([*command, '--peak', side, str(n)], stdout=subprocess.PIPE, text=True, check=True)
    return {side: [float(ask(side).stdout.split()[-1])] for side in (*names, NOTHING)}


def bandwidth() -> float:
    "Bytes per second that all threads read at most: a sum and a product with a vector, over 1 GiB."
    x, v = torch.ones(2**18, 2**10), torch.ones(2**10)
    return x.nbytes/min(t for ts in in_turns({'sum': x.sum, 'mv': lambda: x @ v}, 5, 1).values() for t in ts)


def processor() -> str:
    file = Path('/proc/cpuinfo')
    found = re.search(r'model name\s*: (.+)', file.read_text()) if file.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


class Report:
    "Prints each measurement, ratios first, and keeps it in a file, if there is one."
    def __init__(self, file: Path|None, **about: Any): self.file, self.found = file, dict[str, Any](about, rows=[])

    def add(self, what: str, found: Times, unit: str, digits: int, earlier: Times|None = None,
            over: str = 'the first context') -> Times:
        "The ratios are over stock; without stock, over each side's own in `earlier`."
        over = 'stock' if 'stock' in found else over if earlier else 'nothing'
        print(f'\n{what}, over {over}')
        for name, ts in found.items():
            low, median, high = torch.tensor(ts).quantile(torch.tensor([.25, .5, .75])).tolist()
            base = found.get('stock') or (earlier or {}).get(name)
            ratio = median/torch.tensor(base).quantile(.5).item() if base else float('nan')
            print(f'{ratio:6.2f}'.replace('nan', '  -') + f'  {name:24}{median:9.{digits}f} {unit}  ({low:.{digits}f} to {high:.{digits}f})', flush=True)
            self.found['rows'].append(dict(what=what, side=name, unit=unit, n=len(ts), median=median, low=low, high=high,
                                           over=over, ratio=ratio if base else None))
        if self.file: self.file.write_text(json.dumps(self.found, indent=1) + '\n')
        return found


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = 'decode', 'profile', 'first', 'memory', 'batch'
    parser.add_argument('--model', default=DEFAULT, metavar='NAME', help=f'built-in model, folder or hub id ({DEFAULT})')
    parser.add_argument('--parts', nargs='+', choices=parts, default=parts, help='what is measured (all)')
    parser.add_argument('--sides', nargs='+', choices=[*SIDES], default=[*SIDES], help='who is measured (all there are)')
    parser.add_argument('--contexts', nargs='+', type=int, default=(600, 4000, 32_000), metavar='N', help='tokens')
    parser.add_argument('--rows', nargs='+', type=int, default=(1, 4, 16), metavar='N', help='conversations in a batch')
    parser.add_argument('--steps', type=int, default=40, help='tokens that are timed (40)')
    parser.add_argument('--beside', type=Path, metavar='CHECKOUT', help='another checkout, such as an older version')
    parser.add_argument('--llama', nargs='+', choices=[*FORMS], default=(), help='also llama.cpp, with weights in these forms')
    parser.add_argument('--json', type=Path, metavar='FILE', help='keep the numbers there, too')
    parser.add_argument('--peak', nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.beside and not (args.beside/'lyra').is_dir(): parser.error(f'{args.beside} is no checkout of this project')
    if args.beside: args.beside = args.beside.resolve()
    if args.llama and not all(map(importlib.util.find_spec, ('llama_cpp', 'gguf'))):
        parser.error('--llama needs llama.cpp: pip install llama-cpp-python gguf')
    return args


def main() -> int:
    args = options()
    if args.peak: peak(args.peak[0], args, int(args.peak[1])); return 0
    report = Report(args.json, processor=processor(), threads=torch.get_num_threads(), torch=torch.__version__,
                    transformers=transformers.__version__, model=args.model, bytes_per_second=bandwidth())
    print(', '.join(f'{key} {value}' for key, value in report.found.items() if key != 'rows'))
    models = Models(args.model, args.beside)
    names = [side for side in models.sides() if side in args.sides]
    sides: list[Any] = [Side(side, models) for side in names]
    with tempfile.TemporaryDirectory(dir=Path.home()/'.cache') as folder:
        sides += [LlamaCpp(file, max(args.contexts) + args.steps + 10) for file in models.gguf(Path(folder), args.llama)]
    floor = {side.name: [1e3*side.nbytes/report.found['bytes_per_second']] for side in sides}
    report.add('floor, all weights read once', floor, 'ms', 1)
    earlier: Times|None = None
    for n in args.contexts if 'decode' in args.parts else ():
        here = [side for side in sides if side.is_bounded or n <= LONG]
        times = report.add(f'decode after {n} tokens', decode(here, n, args.steps), 'ms', 1, earlier)
        earlier = earlier or times
    for side in (s for s in sides if s.name in ('stock', 'lyra', 'fast', 'int8') and 'profile' in args.parts):
        times, nbytes = profile(side, args.steps)
        reading = {name: [1e6*b/report.found['bytes_per_second']] for name, b in nbytes.items()}
        report.add(f'where the time of a token goes, {side.name}', times, 'us', 0, reading, 'reading the weights')
    if 'first' in args.parts:
        work = {side.name: lambda side=side: side.first(1000) for side in sides}
        report.add('first token, prompt of 1,000 tokens', in_turns(work, 5, 1), 's', 2)
    if 'memory' in args.parts: report.add('peak memory of the same', memory(names, args, 1000), 'MiB', 0)
    for rows in args.rows if 'batch' in args.parts else ():
        report.add(f'batch of {rows}, a persona each', batch(models, rows, args.steps//2), 'tokens/s', 1)
    return 0


if __name__ == '__main__': sys.exit(main())
