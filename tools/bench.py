"""Decode and prefill beside stock transformers, and beside another checkout of this project if one is named.

    python tools/bench.py [--beside CHECKOUT] [--model NAME]

`stock` is the model as transformers loads it, with a DynamicCache; `attached` is the same with `lyra.attach` and a
LyraCache; `lyra`, for Gemma 3, is the replica. One process loads the weights once for each, and they take turns, token
by token and in random order, so that a busy machine slows all of them alike; medians count, and what matters is the
ratio. Peak memory is measured in a process of its own each (on Linux).
"""
import argparse, gc, importlib, random, re, subprocess, sys, time
from pathlib import Path

import torch
from transformers import DynamicCache
from transformers.utils.logging import disable_progress_bar

ROOT = Path(__file__).resolve().parent.parent
DEFAULT = 'gemma3-270m'
disable_progress_bar()


class Side:
    "One implementation: how it loads the model, and how it makes a cache for it."
    def __init__(self, name: str, model: str, checkout: Path = ROOT):
        self.name, self.new = name, self.stock
        if name in ('stock', 'attached'):
            ours = package(ROOT, 'weights', 'decoders', 'cache')
            self.model = ours['weights'].load_model(model, dtype='float32')
            if name == 'attached': ours['decoders'].attach(self.model)
        else:
            ours = package(checkout, 'attention', 'cache')
            self.model = ours['attention'].Lyra.from_pretrained(None if model == DEFAULT else model)
        if name != 'stock': self.new = lambda: ours['cache'].LyraCache(self.model.config)

    def stock(self): return DynamicCache(config=self.model.config)


def package(checkout: Path, *modules: str) -> dict:
    "Modules of one checkout's `lyra`, apart from those of any other."
    for name in [m for m in sys.modules if m == 'lyra' or m.startswith('lyra.')]: del sys.modules[name]
    sys.path.insert(0, str(checkout))
    try: found = {name: importlib.import_module(f'lyra.{name}') for name in modules}
    finally: sys.path.remove(str(checkout))
    if not str(found[modules[0]].__file__).startswith(str(checkout)):
        raise SystemExit(f'bench: {checkout} holds no lyra package: name a checkout of this project.')
    return found


def prompt(n: int) -> torch.Tensor:
    return torch.randint(3, 40_000, (1, n), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def decode(sides: list[Side], n: int, steps: int) -> dict[str, float]:
    "Median milliseconds per token after n tokens of context."
    caches = {}
    for side in sides:
        caches[side.name] = side.new()
        for chunk in prompt(n).split(500, 1): side.model(chunk, cache=caches[side.name], logits_to_keep=1)
    times = {side.name: [] for side in sides}
    order = random.Random(0)                                        # whoever follows its like finds warmer caches
    for step in range(steps + 3):
        for side in order.sample(sides, len(sides)):
            start = time.perf_counter()
            side.model(torch.tensor([[5]]), cache=caches[side.name], logits_to_keep=1)
            if step > 2: times[side.name].append(1e3*(time.perf_counter() - start))
    return {name: torch.tensor(t).median().item() for name, t in times.items()}


@torch.no_grad()
def prefill(sides: list[Side], n: int, steps: int) -> dict[str, float]:
    "Median seconds of a prompt through `generate`."
    times, order = {side.name: [] for side in sides}, random.Random(0)
    for _ in range(steps):
        for side in order.sample(sides, len(sides)):
            start = time.perf_counter()
            side.model.generate(prompt(n), attention_mask=torch.ones(1, n), cache=side.new(), max_new_tokens=1, do_sample=False)
            times[side.name].append(time.perf_counter() - start)
    return {name: torch.tensor(t).median().item() for name, t in times.items()}


def peak(name: str, model: str, checkout: str, n: int) -> None:
    "Print the MiB that a prompt through `generate` takes at most, the model included."
    side = Side(name, model, Path(checkout))
    gc.collect()
    prefill([side], 3, 1)
    prefill([side], n, 1)
    # Not ru_maxrss: a child inherits that from the process that started it, which may have been larger.
    print(int(re.search(r'VmHWM:\s*(\d+) kB', Path('/proc/self/status').read_text())[1])/1024)


def line(what: str, found: dict[str, float], unit: str, digits: int) -> str:
    ratios = ', '.join(f"{name} {x/found['stock']:.2f}" for name, x in found.items() if name != 'stock')
    return f"{what:34}" + '  '.join(f'{name} {x:.{digits}f} {unit}' for name, x in found.items()) + f'   over stock: {ratios}'


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--beside', type=Path, metavar='CHECKOUT', help='another checkout, such as an older version')
    parser.add_argument('--steps', type=int, default=40, help='tokens that are timed (40)')
    parser.add_argument('--model', default=DEFAULT, metavar='NAME', help=f'built-in model, folder or hub id ({DEFAULT})')
    parser.add_argument('--peak', nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak: peak(args.peak[0], args.model, args.peak[1], int(args.peak[2])); return 0
    if args.beside and not (args.beside/'lyra').is_dir(): parser.error(f'{args.beside} is no checkout of this project')
    is_gemma = package(ROOT, 'weights')['weights'].resolve(args.model)[1].model_type.startswith('gemma3')
    if args.beside and not is_gemma: parser.error('--beside compares the replica, which is of Gemma 3: leave out --model')
    places = {'stock': ROOT, 'attached': ROOT} | ({'lyra': ROOT} if is_gemma else {})
    if args.beside: places['beside'] = args.beside.resolve()
    sides = [Side(name, args.model, place) for name, place in places.items()]
    for n in (600, 4000): print(line(f'decode after {n} tokens', decode(sides, n, args.steps), 'ms', 1), flush=True)
    print(line('generate, prompt of 1,000 tokens', prefill(sides, 1000, 5), 's', 2), flush=True)
    memory = {}
    for name, place in places.items():
        command = [sys.executable, __file__, '--model', args.model, '--peak', name, str(place), '1000']
        memory[name] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
    print(line('the same, peak memory', memory, 'MiB', 0))
    return 0


if __name__ == '__main__': sys.exit(main())
