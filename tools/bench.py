"""Decode and prefill beside stock transformers, and beside another checkout of this project if one is named.

    python tools/bench.py [--beside CHECKOUT]

One process loads the default weights once for each, and they take turns, token by token, so that a busy machine slows
all of them alike; medians count, and what matters is the ratio. Peak memory is measured in a process of its own each
(on Linux).
"""
import argparse, gc, importlib, re, subprocess, sys, time
from pathlib import Path

import torch
from transformers import DynamicCache, Gemma3ForCausalLM
from transformers.utils.logging import disable_progress_bar

ROOT = Path(__file__).resolve().parent.parent
disable_progress_bar()


class Side:
    "One implementation: how it loads the model, and how it makes a cache for it."
    def __init__(self, name: str, checkout: Path | None):
        self.name = name
        if checkout is None: self.model, self.new = Gemma3ForCausalLM.from_pretrained(weights()).eval(), self.stock
        else:
            lyra = package(checkout)
            self.model, self.kind = lyra['attention'].Lyra.from_pretrained(), lyra['cache'].LyraCache
            self.new = lambda: self.kind(self.model.config)

    def stock(self): return DynamicCache(config=self.model.config)


def package(checkout: Path) -> dict:
    "The modules of one checkout's `lyra`, apart from those of any other."
    for name in [m for m in sys.modules if m == 'lyra' or m.startswith('lyra.')]: del sys.modules[name]
    sys.path.insert(0, str(checkout))
    try: found = {name: importlib.import_module(f'lyra.{name}') for name in ('attention', 'cache')}
    finally: sys.path.remove(str(checkout))
    if not str(found['cache'].__file__).startswith(str(checkout)):
        raise SystemExit(f'bench: {checkout} holds no lyra package: name a checkout of this project.')
    return found


def weights() -> Path:
    sys.path.insert(0, str(ROOT))
    try: return importlib.import_module('lyra.weights').default_checkpoint()
    finally: sys.path.remove(str(ROOT))


def prompt(n: int) -> torch.Tensor:
    return torch.randint(3, 200_000, (1, n), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def decode(sides: list[Side], n: int, steps: int) -> dict[str, float]:
    "Median milliseconds per token after n tokens of context."
    caches = {}
    for side in sides:
        caches[side.name] = side.new()
        for chunk in prompt(n).split(500, 1): side.model(chunk, cache=caches[side.name], logits_to_keep=1)
    times = {side.name: [] for side in sides}
    for step in range(steps + 3):
        for side in sides:
            start = time.perf_counter()
            side.model(torch.tensor([[5]]), cache=caches[side.name], logits_to_keep=1)
            if step > 2: times[side.name].append(1e3*(time.perf_counter() - start))
    return {name: torch.tensor(t).median().item() for name, t in times.items()}


@torch.no_grad()
def prefill(sides: list[Side], n: int, steps: int) -> dict[str, float]:
    "Median seconds of a prompt through `generate`."
    times = {side.name: [] for side in sides}
    for _ in range(steps):
        for side in sides:
            start = time.perf_counter()
            side.model.generate(prompt(n), attention_mask=torch.ones(1, n), cache=side.new(), max_new_tokens=1, do_sample=False)
            times[side.name].append(time.perf_counter() - start)
    return {name: torch.tensor(t).median().item() for name, t in times.items()}


def peak(name: str, checkout: str, n: int) -> None:
    "Print the MiB that a prompt through `generate` takes at most, the model included."
    side = Side(name, Path(checkout) if checkout else None)
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
    parser.add_argument('--peak', nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak: peak(args.peak[0], args.peak[1], int(args.peak[2])); return 0
    if args.beside and not (args.beside/'lyra').is_dir(): parser.error(f'{args.beside} is no checkout of this project')
    places = {'stock': None, 'lyra': ROOT} | ({'beside': args.beside.resolve()} if args.beside else {})
    sides = [Side(name, place) for name, place in places.items()]
    for n in (600, 4000): print(line(f'decode after {n} tokens', decode(sides, n, args.steps), 'ms', 1), flush=True)
    print(line('generate, prompt of 1,000 tokens', prefill(sides, 1000, 5), 's', 2), flush=True)
    memory = {}
    for name, place in places.items():
        command = [sys.executable, __file__, '--peak', name, str(place or ''), '1000']
        memory[name] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
    print(line('the same, peak memory', memory, 'MiB', 0))
    return 0


if __name__ == '__main__': sys.exit(main())
