"""Measure the project on one GPU in a few minutes; on a CPU, try the same in small.

    python tools/gpu.py [--model NAME] [--out FILE.json] [--quick] [--minutes N] [--random]

Seven sections: `verify`; logits beside stock; a persona and a chat; decode after short and long contexts; prefill and
its memory; synchronisations of a token; torch.compile and CUDA graphs. What is measured stands in one JSON file, which
is written again after every section, and in one table at the end. Ctrl-C keeps what there is.

Without --model both built-in models are measured, the second one as far as the time allows; on a CPU, a tiny one.
Where the weights of a built-in model cannot be had, random ones of its shape take their place: times and bits mean the
same, replies mean nothing. The exit status is 1 where a section failed; a comparison that does not hold is a finding.
"""
import argparse, copy, gc, json, os, platform, shutil, signal, statistics, subprocess, sys, tempfile
import time, traceback, warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime, timezone
from math import isfinite
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (AutoModelForCausalLM, DynamicCache, Gemma3TextConfig, LlamaConfig, PreTrainedTokenizerFast,
                          StaticCache)

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import lyra
from lyra import ChatSession, LyraCache, LyraError, Persona, attach, detach, load, load_tokenizer, verify
from lyra.chat import Sampling
from lyra.core import tiny_config
from lyra.exact import ALLOWED, gap
from lyra.weights import MODELS, load_model, resolve

transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()

CARD = ROOT/'data'/'personas'/'nell.json'
TURNS = ('Who are you, and where do you work?', 'What could I read on a rainy evening?', 'Thank you. Until tomorrow!')
DTYPES = dict(float32=torch.float32, bfloat16=torch.bfloat16)


class Late(BaseException):
    "The time is up; no library may take it for an error of its own."


@contextmanager
def limit(seconds: float) -> Iterator[None]:
    "Break the block off with `Late` after so many seconds, where the system has alarms."
    def late(*_): raise Late
    if not hasattr(signal, 'setitimer'):
        yield
        return
    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, .001), 2.)     # again, should a callback have swallowed the first
    try: yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Budget:
    "What is left of the time."
    def __init__(self, seconds: float): self.end = time.monotonic() + seconds
    def left(self) -> float: return self.end - time.monotonic()


def where(name: str, line: int) -> str:
    "A place in a source file, without what stands before the package or the checkout."
    for root in (f'site-packages{os.sep}', f'{ROOT}{os.sep}'): name = name.rpartition(root)[2]
    return f'{name}:{line}'


def first_line(e: BaseException) -> str:
    "What an error says first, without the folders of this machine."
    said = next((line.strip() for line in str(e).splitlines() if line.strip()), '')
    for place, short in ((f'{ROOT}{os.sep}', ''), (str(Path.home()), '~')): said = said.replace(place, short)
    return f'{type(e).__name__}: {said}'[:300]


class Clock:
    "All that is asked of the device: time, memory, synchronisations, graphs. On a CPU there is time alone."
    SAID = 'called a synchronizing CUDA operation'

    def __init__(self, device: torch.device): self.is_cuda = device.type == 'cuda'

    def sync(self) -> None:
        if self.is_cuda: torch.cuda.synchronize()

    def seconds(self, work: Callable[[], object]) -> float:
        self.sync()
        start = time.perf_counter()
        work()
        self.sync()
        return time.perf_counter() - start

    def reset(self) -> float | None:
        "Forget the peak; returns the MiB that are held now."
        if not self.is_cuda: return None
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()/2**20

    def peak(self) -> float | None: return torch.cuda.max_memory_allocated()/2**20 if self.is_cuda else None

    def synchronisations(self, work: Callable[[], object]) -> Counter[str]:
        "Where the CPU waits for the device, and how often; nowhere on a CPU."
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter('always')
            if self.is_cuda: torch.cuda.set_sync_debug_mode('warn')
            try: work()
            finally:
                if self.is_cuda: torch.cuda.set_sync_debug_mode('default')
        return Counter(where(w.filename, w.lineno) for w in said if self.SAID in str(w.message))

    def capture(self, work: Callable[[], object]) -> Callable[[], object]:
        "A CUDA graph of some work, ready to be replayed; on a CPU, the work itself."
        if not self.is_cuda: return work
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph): work()
        return graph.replay

    def aside(self, work: Callable[[], object]) -> None:
        "Work in another stream, as a graph wants its warm-up."
        stream = torch.cuda.Stream() if self.is_cuda else None
        if stream is not None: stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream) if stream is not None else nullcontext(): work()
        if stream is not None: torch.cuda.current_stream().wait_stream(stream)


class DryRun(TorchDispatchMode):
    "With a model on the `meta` device in the place of a GPU: counts where data would cross between it and the CPU."
    def __init__(self):
        super().__init__()
        self.found = Counter[str]()

    def note(self, what: str = '') -> None:
        others = (f'{os.sep}torch{os.sep}', f'{os.sep}unittest{os.sep}', __file__)
        frames = [f for f in traceback.extract_stack(limit=40) if not any(o in f.filename for o in others)]
        self.found[what + (where(frames[-1].filename, frames[-1].lineno or 0) if frames else 'elsewhere')] += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        first: Any = args[0] if args else None
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        is_far = any(x.is_meta for x in given)
        is_near = any(x.ndim and not x.is_meta for x in given)                          # numbers may come from anywhere
        if is_far and name in ('_local_scalar_dense', 'equal'):
            self.note()
            return True if name == 'equal' or first.dtype == torch.bool else 0
        if name == '_to_copy' and torch.device(kwargs.get('device') or first.device).type != first.device.type:
            self.note()
            if first.is_meta: return torch.zeros(first.shape, dtype=kwargs.get('dtype') or first.dtype)
        elif is_far and is_near: self.note('' if name == 'copy_' or 'index' in name else 'mixes devices: ')
        return func(*args, **kwargs)

    @contextmanager
    def on(self) -> Iterator[None]:
        "Watch the block; `torch.tensor` passes by a mode, and `meta` is no device that autocast knows."
        make = torch.tensor

        def tensor(*args: Any, **options: Any) -> torch.Tensor:
            if (made := make(*args, **options)).is_meta: self.note()
            return made

        with (mock.patch.object(torch, 'is_autocast_enabled', lambda *_: False),
              mock.patch.object(torch, 'tensor', tensor), self): yield


@dataclass(frozen=True)
class Sizes:
    "How much of everything."
    contexts: tuple[int, ...] = (600, 4000, 32_000)     # tokens before the decode that is timed
    chunk: int = 1000                                   # tokens of context at a time
    steps: int = 40                                     # decode steps that are timed
    parity: int = 700                                   # tokens that are compared; longer than Gemma's window
    decode: int = 32                                    # decode steps that are compared
    prompt: int = 4000                                  # tokens of the prefill
    repeats: int = 5
    reply: int = 64                                     # tokens of a reply, at most
    compiled: int = 50                                  # decode steps through torch.compile
    patience: float = 75.                               # seconds for each try at compiling or capturing
    needs: float = 15.                                  # seconds without which no section begins


SMALL = Sizes((24, 60, 120), 50, 4, 40, 4, 60, 2, 8, 3, 10., 2.)
WARM_UP = 3


def byte_tokenizer() -> PreTrainedTokenizerFast:
    "A tokenizer of single bytes, for weights that come without one."
    words = ['<pad>', '<eos>', '<bos>', *sorted(pre_tokenizers.ByteLevel.alphabet())]
    bytes_ = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    bytes_.pre_tokenizer, bytes_.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    bytes_.post_processor = processors.TemplateProcessing(single='<bos> $A', special_tokens=[('<bos>', 2)])
    return PreTrainedTokenizerFast(tokenizer_object=bytes_, pad_token='<pad>', eos_token='<eos>', bos_token='<bos>')


IDS = dict(pad_token_id=0, eos_token_id=1, bos_token_id=2)
LAYERS = ['sliding_attention']*5 + ['full_attention']
SHAPES: dict[str, Callable[[], Any]] = {
    'tiny': lambda: tiny_config(vocab_size=320, num_hidden_layers=2, layer_types=LAYERS[4:], **IDS),
    'gemma3-270m': lambda: Gemma3TextConfig(
        vocab_size=262_144, hidden_size=640, intermediate_size=2048, num_hidden_layers=18, layer_types=LAYERS*3,
        num_attention_heads=4, num_key_value_heads=1, head_dim=256, query_pre_attn_scalar=256, sliding_window=512,
        max_position_embeddings=32_768, **IDS),
    'smollm2-135m-instruct': lambda: LlamaConfig(
        vocab_size=49_152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=8192, rms_norm_eps=1e-5, tie_word_embeddings=True,
        rope_parameters=dict(rope_type='default', rope_theta=100_000.), **IDS)}


def random_weights(name: str, folder: Path) -> Path:
    "A checkpoint of random weights in the shape of a model."
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(SHAPES[name]()).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def find(name: str, work: Path, is_random: bool) -> tuple[Path | str, str]:
    "A checkpoint, and what kind of weights it holds; raises `LyraError` for one that there is not."
    if name in SHAPES and (is_random or name not in MODELS): return random_weights(name, work/name), 'random weights'
    try: return resolve(name)[0], 'real weights'
    except LyraError as e:
        if name not in SHAPES: raise
        return random_weights(name, work/name), f'random weights, since the real ones cannot be had ({e})'


Side = Callable[[], tuple[Any, Any]]        # gives a model and a new cache for it


class Bench:
    "A checkpoint on a device, each of its models loaded once."
    def __init__(self, folder: Path | str, device: torch.device, sizes: Sizes, budget: Budget):
        self.folder, self.device, self.sizes, self.budget = folder, device, sizes, budget
        self.clock, self.tokenizer = Clock(device), load_tokenizer(folder)
        self.loaded: dict[Any, Any] = {}

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self.loaded: self.loaded[key] = make()
        return self.loaded[key]

    def options(self, dtype: str) -> dict[str, Any]: return dict(dtype=dtype, device=self.device)

    def stock(self, dtype: str) -> Any:
        return self.once(('stock', dtype), lambda: load_model(self.folder, **self.options(dtype)))

    def ours(self, dtype: str) -> Any:
        "A `Lyra` for a Gemma, else an attached model."
        return self.once(('ours', dtype), lambda: load(self.folder, **self.options(dtype))[0])

    def persona(self, dtype: str) -> Persona:
        return self.once(('persona', dtype), lambda: Persona.build(self.ours(dtype), self.tokenizer, CARD))

    def tokens(self, n: int, seed: int = 0) -> torch.Tensor:
        "[1, n] random ones."
        random, most = torch.Generator().manual_seed(seed), self.stock('bfloat16').config.vocab_size
        return torch.randint(3, most, (1, n), generator=random).to(self.device)

    def sides(self, dtype: str, most: int) -> dict[str, Side]:
        "Whose decode is compared; the first is what the others are held against."
        return sides(self.stock(dtype), self.ours(dtype), self.persona(dtype), most)


def sides(stock: Any, ours: Any, persona: Persona, most: int) -> dict[str, Side]:
    own = lambda policy, **options: lambda: (ours, LyraCache(ours, policy, **options))
    return {'stock, DynamicCache': lambda: (stock, DynamicCache(config=stock.config)),
            'stock, StaticCache': lambda: (stock, StaticCache(config=stock.config, max_cache_len=most)),
            'full': own('full'), 'pinned': own('pinned', persona=persona),
            'pinned-gain': own('pinned-gain', persona=persona)}


@torch.no_grad()
def fill(side: tuple[Any, Any], tokens: torch.Tensor, chunk: int) -> None:
    "Let a cache hear tokens."
    model, cache = side
    for part in tokens.split(chunk, 1): model(part, cache=cache, logits_to_keep=1)


@torch.no_grad()
def step(side: tuple[Any, Any], token: torch.Tensor, **options: torch.Tensor) -> torch.Tensor: # [1, 1, vocabulary]
    "One decode step."
    return side[0](token, cache=side[1], logits_to_keep=1, **options).logits


Rows = Iterator[dict[str, Any]]


def verified(bench: Bench) -> Rows:
    "`lyra.verify.verify`."
    for dtype in DTYPES:
        own, *rows = verify(bench.ours(dtype), bench.tokenizer, progress=False)
        worst = max(rows, key=lambda r: r.gap/r.tolerance if r.tolerance else float(r.gap > 0))
        yield dict(what='cache and persona', dtype=dtype, held=sum(r.holds for r in rows), rows=len(rows),
                   largest_gap=max(r.gap for r in rows), yardstick=own.gap, worst=worst.what, worst_gap=worst.gap,
                   worst_allowed=worst.tolerance, fails=[r.what for r in rows if not r.holds],
                   each=[dict(what=r.what, gap=r.gap, allowed=r.tolerance) for r in (own, *rows)])


def short(x: float | str) -> str:
    "A gap; an infinite one is a text in the JSON."
    return f'{float(x):.1e}'


def say_verified(r: dict) -> str:
    fails = f"; FAILS: {'; '.join(r['fails'])}" if r['fails'] else ''
    return (f"{r['held']} of {r['rows']} rows hold, largest gap {short(r['largest_gap'])}, of stock with itself "
            f"{short(r['yardstick'])}; nearest to its limit: {r['worst']} ({short(r['worst_gap'])} of "
            f"{short(r['worst_allowed'])}){fails}")


@torch.no_grad()
def logits_of(model: Any, cache: Any, tokens: torch.Tensor, decode: int) -> tuple[torch.Tensor, torch.Tensor]:
    "The last 64 logits of a prefill, and those of the decode steps behind it."
    n = tokens.shape[1] - decode
    prefill = model(tokens[:, :n], cache=cache, logits_to_keep=min(n, 64)).logits[0]
    return prefill, torch.cat([step((model, cache), token)[0] for token in tokens[:, n:].split(1, 1)])


@contextmanager
def attached(model: Any) -> Iterator[Any]:
    attach(model)
    try: yield model
    finally: detach(model)


def parity(bench: Bench) -> Rows:
    "Logits of ours beside stock, with the same tokens."
    sizes, dynamic = bench.sizes, lambda model: DynamicCache(config=model.config)
    tokens, full = bench.tokens(sizes.parity + sizes.decode), lambda model: LyraCache(model, 'full')
    for dtype in DTYPES:
        stock, ours = bench.stock(dtype), bench.ours(dtype)
        pairs = [('Lyra', ours)] if hasattr(ours, 'text_class') else []
        for attn in ('sdpa', 'eager'):
            for model in [stock, *(m for _, m in pairs)]: model.set_attn_implementation(attn)
            expected = logits_of(stock, dynamic(stock), tokens, sizes.decode)
            for name, own in [*pairs, ('attached', None)]:
                with attached(stock) if own is None else nullcontext(own) as model:
                    for cache, new in (('DynamicCache', dynamic), ('full', full)):
                        got = logits_of(model, new(model), tokens, sizes.decode)
                        yield dict(what=f'{name}, {cache}, {attn}', dtype=dtype, tokens=sizes.parity,
                                   decode=sizes.decode, **compared(got, expected))
        for model in [stock, *(m for _, m in pairs)]: model.set_attn_implementation('sdpa')


def compared(got: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for part, a, b in zip(('prefill', 'decode'), got, expected):
        found |= {f'{part}_bits': torch.equal(a, b), f'{part}_gap': gap(a, b)}
    return found


def say_parity(r: dict) -> str:
    def said(part: str) -> str: return 'same bits' if r[f'{part}_bits'] else f"gap {short(r[f'{part}_gap'])}"
    return f"prefill of {r['tokens']} tokens: {said('prefill')}; {r['decode']} decode steps: {said('decode')}"


def chat(bench: Bench) -> Rows:
    "A persona built, and turns of a conversation with it."
    dtype, sizes, clock = 'bfloat16', bench.sizes, bench.clock
    model, persona = bench.ours(dtype), bench.persona(dtype)
    build = lambda: Persona.build(model, bench.tokenizer, CARD)
    times = [clock.seconds(build) for _ in range(sizes.repeats)]
    yield dict(what='building a persona', dtype=dtype, tokens=len(persona), seconds=statistics.median(times))
    for policy in ('full', 'lyra', 'pinned', 'pinned-gain'):
        session, said, tokens, seconds = ChatSession(model, bench.tokenizer, persona, policy), [], 0, 0.
        for text in TURNS:
            heard = len(session.edge.pending) + len(session.ids(session.prompt(text)))
            seconds += clock.seconds(lambda: session.say(text, max_new_tokens=sizes.reply))
            tokens += len(session.turns[-1]['ids']) - heard
            said.append(dict(user=text, reply=session.turns[-1]['reply']))
        yield dict(what=f'{len(TURNS)} turns, {policy}', dtype=dtype, tokens=tokens, seconds=seconds,
                   per_second=tokens/seconds, turns=said)
    yield stock_reply(bench, dtype, [*persona.token_ids, *session.ids(session.prompt(TURNS[0]))])


def stock_reply(bench: Bench, dtype: str, ids: list[int]) -> dict[str, Any]:
    "What `generate` of the stock model takes for a reply."
    model, n = bench.stock(dtype), bench.sizes.reply
    given = torch.tensor([ids], device=bench.device)
    reply = lambda: model.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=n, min_new_tokens=n,
                                   do_sample=False)
    seconds = statistics.median(bench.clock.seconds(reply) for _ in range(bench.sizes.repeats))
    return dict(what='stock, generate', dtype=dtype, tokens=n, seconds=seconds, per_second=n/seconds)


def say_chat(r: dict) -> str:
    if 'per_second' not in r: return f"{r['seconds']:.3f} s for {r['tokens']} tokens"
    last = f''', it ends: "{' '.join(r['turns'][-1]['reply'].split())[-60:]}"''' if 'turns' in r else ''
    return f"{r['per_second']:.1f} tokens/s ({r['tokens']} tokens in {r['seconds']:.2f} s){last}"


def spread(seconds: list[float]) -> dict[str, float]:
    "Median and quartiles, in milliseconds."
    low, middle, high = (1e3*x for x in statistics.quantiles(seconds, n=4, method='inclusive'))
    return dict(ms=middle, low=low, high=high)


def decode(bench: Bench) -> Rows:
    "Milliseconds a token after a context; all take turns, token by token."
    sizes, clock = bench.sizes, bench.clock
    short = sizes.contexts[0]
    for n, dtype in [(short, 'float32'), *((n, 'bfloat16') for n in sizes.contexts)]:
        ready = {name: new() for name, new in bench.sides(dtype, n + sizes.steps + WARM_UP).items()}
        for side in ready.values(): fill(side, bench.tokens(n), sizes.chunk)
        times: dict[str, list[float]] = {name: [] for name in ready}
        for token in bench.tokens(sizes.steps + WARM_UP, 1).split(1, 1):
            for name, side in ready.items(): times[name].append(clock.seconds(lambda: step(side, token)))
        found = {name: spread(t[WARM_UP:]) for name, t in times.items()}
        stock = next(iter(found.values()))['ms']
        for name, x in found.items():
            yield dict(what=f'after {n:,} tokens, {name}', dtype=dtype, context=n, ratio=x['ms']/stock, **x)


def say_decode(r: dict) -> str:
    return f"{r['ratio']:.2f} of stock; {r['ms']:.2f} ms ({r['low']:.2f} to {r['high']:.2f})"


def prefill(bench: Bench) -> Rows:
    "A prompt through `generate`: seconds, and peak memory over what lay there before."
    sizes, clock, dtype = bench.sizes, bench.clock, 'bfloat16'
    tokens, named = bench.tokens(sizes.prompt), ('stock, DynamicCache', 'full', 'pinned', 'pinned-gain')
    news = {name: new for name, new in bench.sides(dtype, sizes.prompt).items() if name in named}
    times: dict[str, list[float]] = {name: [] for name in news}
    peaks: dict[str, float | None] = {}
    for _ in range(sizes.repeats + 1):
        for name, new in news.items():
            (model, cache), held = new(), clock.reset()
            times[name].append(clock.seconds(lambda: model.generate(
                tokens, attention_mask=torch.ones_like(tokens), cache=cache, max_new_tokens=1, do_sample=False)))
            peak = clock.peak()
            peaks[name] = None if held is None or peak is None else peak - held
    stock, least = statistics.median(times[named[0]][1:]), peaks[named[0]]
    for name, t in times.items():
        seconds, peak = statistics.median(t[1:]), peaks[name]
        yield dict(what=f'prompt of {sizes.prompt:,} tokens, {name}', dtype=dtype, seconds=seconds, ratio=seconds/stock,
                   peak_mib=peak, peak_ratio=peak/least if peak and least else None)


def say_prefill(r: dict) -> str:
    memory = 'peak memory not measured: no GPU' if r['peak_mib'] is None else \
        f"peak {r['peak_ratio']:.2f} of stock, {r['peak_mib']:.0f} MiB over what was held"
    return f"{r['ratio']:.2f} of stock, {r['seconds']:.3f} s; {memory}"


Work = Callable[[], object]


def decoding(side: tuple[Any, Any], tokens: torch.Tensor, sizes: Sizes) -> Work:
    "Decode steps after a context that is heard at once."
    fill(side, tokens, sizes.chunk)
    for _ in range(WARM_UP): step(side, tokens[:, :1])
    return lambda: [step(side, tokens[:, i:i + 1]) for i in range(sizes.steps)]


def chatting(session: ChatSession, steps: int) -> Work:
    "As `say` does it: a token is chosen, shown to nobody, and read."
    logits = [session.feed(session.ids(session.prompt(TURNS[1])), keep=1)]
    said = torch.zeros(1, 0, dtype=torch.long, device=session.model.device)
    def work() -> None:
        for _ in range(steps): logits.append(session.feed(Sampling().choose(logits.pop()[-1:], said).tolist(), keep=1))
    work()
    return work


def generating(side: tuple[Any, Any], tokens: torch.Tensor, steps: int) -> Work:
    return lambda: side[0].generate(tokens, attention_mask=torch.ones_like(tokens), cache=side[1], do_sample=False,
                                    max_new_tokens=steps, min_new_tokens=steps)


def works(bench: Bench, stock: Any, ours: Any, tokens: torch.Tensor) -> dict[str, Callable[[], Work]]:
    "What is watched: makes itself ready, and gives the work."
    sizes, persona = bench.sizes, bench.persona('bfloat16')
    news = sides(stock, ours, persona, len(tokens[0]) + sizes.steps + WARM_UP)
    found: dict[str, Callable[[], Work]] = {
        f'a decode step, {name}': lambda new=new: decoding(new(), tokens, sizes) for name, new in news.items()}
    session = lambda: ChatSession(ours, bench.tokenizer, persona, 'pinned', anew=False)
    return found | {'a token of ChatSession, pinned': lambda: chatting(session(), sizes.steps)} | {
        f'a token of generate, {name}': lambda new=new: generating(new(), tokens, sizes.steps)
        for name, new in news.items() if 'Static' not in name}


def on_meta(model: Any) -> Any:
    "A twin of a model without its weights."
    return copy.deepcopy(model).to('meta')


def foreseen(work: Callable[[], Work]) -> Counter[str]:
    "What a dry run finds."
    with (run := DryRun()).on():
        ready = work()
        run.found.clear()
        ready()
    return run.found


def synchronisations(bench: Bench) -> Rows:
    "How often the CPU waits for the GPU in a token, and where."
    dtype, sizes = 'bfloat16', bench.sizes
    stock, ours, tokens = bench.stock(dtype), bench.ours(dtype), bench.tokens(sizes.contexts[0])
    found = {name: bench.clock.synchronisations(ready()) for name, ready in works(bench, stock, ours, tokens).items()}
    dry = {} if bench.clock.is_cuda else works(bench, on_meta(stock), on_meta(ours), tokens.to('meta'))
    for name, places in found.items():
        row: dict[str, Any] = dict(what=name, dtype=dtype, steps=sizes.steps)
        if not bench.clock.is_cuda: row['not_measured'] = 'no GPU'
        elif 'generate' in name: row['with_prefill'] = True
        # The data that `generate` decides by is not there in a dry run.
        if not bench.clock.is_cuda: places = Counter() if 'generate' in name else foreseen(dry[name])
        if bench.clock.is_cuda or 'generate' not in name:
            row |= dict(per_token=sum(places.values())/sizes.steps,
                        where={place: n/sizes.steps for place, n in places.most_common()})
        yield row


def say_synchronisations(r: dict) -> str:
    told = '' if 'not_measured' not in r else f"not measured: {r['not_measured']}"
    if 'per_token' not in r: return told
    listed = ', '.join(f'{place} {n:.3g}' for place, n in r['where'].items())
    prefill = ', its part of the prefill included' if r.get('with_prefill') else ''
    return (f"{told}{'; a dry run on the meta device foresees ' if told else ''}{r['per_token']:.3g} a token{prefill}"
            f"{': ' + listed if listed else ''}")


@dataclass(frozen=True)
class Try:
    "Something that may not work, tried in a process of its own."
    side: str
    how: Callable[[Bench, 'Try', dict[str, Any]], None]     # fills in a row
    options: tuple[tuple[str, Any], ...] = ()               # for torch.compile


def compile_it(bench: Bench, this: Try, row: dict[str, Any]) -> None:
    "Decode steps through torch.compile, beside the same without."
    from torch._dynamo import utils
    utils.set_compilation_metrics_limit(10_000)
    utils.clear_compilation_metrics()
    torch.compiler.reset()
    sizes, (new, n), clock = bench.sizes, start_of(bench, this, bench.sizes.compiled), bench.clock
    side, twin = new(), new()
    for each in (side, twin): fill(each, bench.tokens(n), sizes.chunk)
    options = dict(this.options) | (dict(mode='reduce-overhead') if clock.is_cuda else dict(backend='eager'))
    model, times, plain = torch.compile(side[0], **options), [], []
    row |= dict(options=options, of=sizes.compiled, steps=0, gap=0.)
    for token in bench.tokens(sizes.compiled, 1).split(1, 1):
        torch.compiler.cudagraph_mark_step_begin()
        held: dict[str, torch.Tensor] = {}
        times.append(clock.seconds(lambda: held.update(got=step((model, side[1]), token))))
        plain.append(clock.seconds(lambda: held.update(expected=step(twin, token))))
        seen = utils.get_compilation_metrics()
        row |= dict(steps=len(times), gap=max(row['gap'], gap(held['got'].float(), held['expected'].float())),
                    compiled=len(seen), recompiled=sum(bool(m.recompile_reason) for m in seen),
                    given_up=sum('RecompileLimit' in str(m.fail_type) for m in seen),
                    breaks=sum(utils.counters['graph_break'].values()), first_seconds=times[0])
        row['reasons'] = [where_of(m.recompile_reason) for m in seen if m.recompile_reason][:8]
    late = len(times)//2
    row |= dict(ms=spread(times[late:])['ms'], plain_ms=spread(plain[late:])['ms'])


def where_of(reason: str) -> str: return ' '.join(reason.split('#')[0].split())[:120]


def start_of(bench: Bench, this: Try, steps: int) -> tuple[Side, int]:
    "Who decodes, with room for so many steps, and after how many tokens."
    n = bench.sizes.contexts[0]
    return bench.sides('bfloat16', n + steps)[this.side], n


def capture_it(bench: Bench, this: Try, row: dict[str, Any]) -> None:
    "A CUDA graph of one decode step, replayed beside decode steps without."
    steps, times = 4, 5
    (new, n), clock = start_of(bench, this, WARM_UP + steps + times + 1), bench.clock       # capturing may count as one
    side, twin, tokens = new(), new(), bench.tokens(WARM_UP + steps, 1).split(1, 1)
    for each in (side, twin): fill(each, bench.tokens(n), bench.sizes.chunk)
    token, place, held = tokens[0].clone(), torch.full((1, 1), n, device=bench.device), dict[str, torch.Tensor]()
    own = hasattr(side[1], 'begin_forward')                                  # else the positions are given, as tensors
    work = lambda: held.update(got=step(side, token, **({} if own else dict(position_ids=place))))

    def set_to(i: int) -> None:
        token.copy_(tokens[i])
        place.fill_(n + i)

    def warm_up() -> None:
        for i in range(WARM_UP):
            set_to(i)
            work()

    clock.aside(warm_up)
    for i in range(WARM_UP): step(twin, tokens[i])
    replay, row['gaps'] = clock.capture(work), []
    if not clock.is_cuda: row['not_measured'] = 'no GPU'
    for i in range(WARM_UP, WARM_UP + steps):
        set_to(i)
        replay()
        clock.sync()
        row['gaps'].append(gap(held['got'].float(), step(twin, tokens[i]).float()))
    row['ms'] = 1e3*statistics.median(clock.seconds(replay) for _ in range(times))


TRIES = {
    # transformers itself compiles with dynamic=None: some of a StaticCache's lengths are Python numbers.
    'torch.compile, dynamic=None, stock with StaticCache': Try('stock, StaticCache', compile_it, (('dynamic', None),)),
    'torch.compile, dynamic=False, pinned': Try('pinned', compile_it, (('dynamic', False),)),
    'CUDA graph, stock with StaticCache': Try('stock, StaticCache', capture_it),
    'CUDA graph, pinned': Try('pinned', capture_it)}


def try_here(bench: Bench, name: str) -> dict[str, Any]:
    "The row of a try, whatever comes of it."
    row: dict[str, Any] = dict(what=name, dtype='bfloat16')
    try:
        with limit(bench.sizes.patience): TRIES[name].how(bench, TRIES[name], row)
    except Late: row['error'] = f'broken off after {bench.sizes.patience:.0f} s'
    except Exception as e: row['error'] = first_line(e)
    return row


def tries(bench: Bench) -> Rows:
    "torch.compile and CUDA graphs, in processes of their own, which may break or hang."
    groups = [[*TRIES]] if bench.sizes is SMALL else [[name] for name in TRIES]
    for group in groups:
        seconds = min(30 + len(group)*bench.sizes.patience, bench.budget.left() - 3)
        options = ['--model', str(bench.folder), *(['--quick'] if bench.sizes is SMALL else [])]
        command = [sys.executable, __file__, *options, *(word for name in group for word in ('--try', name))]
        done: Any
        try: done, why = subprocess.run(command, capture_output=True, timeout=seconds), ''
        except subprocess.TimeoutExpired as e: done, why = e, f'broken off after {seconds:.0f} s'
        found = [json.loads(line) for line in (done.stdout or b'').decode().splitlines() if line.startswith('{"what"')]
        yield from found
        ends = [line for line in (done.stderr or b'').decode(errors='replace').splitlines() if line.strip()][-1:]
        for name in group[len(found):]:
            yield dict(what=name, dtype='bfloat16', error=why or f"its process ended: {''.join(ends)}"[:300])


def say_tries(r: dict) -> str:
    told = [f"does not work: {r['error']}"] if 'error' in r else []
    if 'not_measured' in r: told.append(f"not measured: {r['not_measured']}")
    most = ALLOWED[torch.bfloat16]
    if 'of' in r:
        if not told: told.append('works' if float(r['gap']) <= most else f"runs, but with a gap of {short(r['gap'])}")
        told.append(f"{r['steps']} of {r['of']} steps" + ('' if 'mode' in r['options'] else ', backend eager'))
    if 'compiled' in r:
        told.append(f"compiled {r['compiled']} times, {r['recompiled']} of them again, {r['given_up']} given up, "
                    f"{r['breaks']} graph breaks, first step {r['first_seconds']:.1f} s")
    if r.get('gaps') and not told:
        bad = next((i for i, x in enumerate(r['gaps'], 1) if not float(x) <= most), None)
        told.append(f'captured, but replay {bad} gives other logits' if bad else 'works')
    without = f", {r['plain_ms']:.2f} without" if 'plain_ms' in r else ''
    if 'ms' in r and 'not_measured' not in r: told.append(f"{r['ms']:.2f} ms a token{without}")
    return '; '.join(told + [f'compiled again for {reason}' for reason in r.get('reasons', [])[:1]])


SECTIONS: dict[str, tuple[Callable[[Bench], Rows], Callable[[dict], str]]] = dict(
    verify=(verified, say_verified), parity=(parity, say_parity), chat=(chat, say_chat), decode=(decode, say_decode),
    prefill=(prefill, say_prefill), synchronisations=(synchronisations, say_synchronisations), tries=(tries, say_tries))


def plain(x: Any) -> Any:
    "As JSON can hold it: an infinite number is a text."
    if isinstance(x, dict): return {k: plain(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)): return [plain(v) for v in x]
    return str(x) if isinstance(x, float) and not isfinite(x) else x


class Report:
    "All that was found, on disk at all times."
    def __init__(self, path: Path, about: dict[str, Any]):
        self.path, self.found = path, about | dict(sections=[])
        path.parent.mkdir(parents=True, exist_ok=True)
        self.lay_ready().unlink()

    def lay_ready(self) -> Path:
        "The report in a file beside the one that it is to replace."
        fresh = self.path.with_name(f'.{self.path.name}-{os.getpid()}')
        fresh.write_text(json.dumps(plain(self.found), indent=1, ensure_ascii=False) + '\n', encoding='utf-8')
        return fresh

    def write(self) -> None: os.replace(self.lay_ready(), self.path)

    @contextmanager
    def section(self, name: str, model: str) -> Iterator[dict[str, Any]]:
        "An entry for a section, written in the end, however that comes."
        entry: dict[str, Any] = dict(section=name, model=model, status='broken off', why='', seconds=0., rows=[])
        self.found['sections'].append(entry)
        start = time.monotonic()
        try: yield entry
        except Late: entry['why'] = 'its time was up'
        except KeyboardInterrupt:
            entry['why'] = 'stopped by hand'
            raise
        except Exception as e:
            entry |= dict(status='failed', why=first_line(e))
            traceback.print_exc()
        finally:
            entry['seconds'] = round(time.monotonic() - start, 2)
            self.write()
        done = f"{entry['status']}, {len(entry['rows'])} rows, {entry['seconds']:.1f} s"
        print(f'{model}, {name}: {done}', file=sys.stderr, flush=True)

    @property
    def failed(self) -> list[str]:
        return [f"{s['section']} ({s['why']})" for s in self.found['sections'] if s['status'] == 'failed']


def table(found: dict[str, Any]) -> str:
    "The report as markdown."
    versions = f"torch {found['torch']}, transformers {found['transformers']}, CUDA {found['cuda']}"
    lines = [f"{found['device']}; {versions}; {found['date']}; {found['sizes']}", '',
             *(f'{name}: {kind}' for name, kind in found['models'].items()), '',
             '| model | section | what | result |', '| --- | --- | --- | --- |']
    for entry in found['sections']:
        cells = [(f"{r['what']}, {r['dtype']}", SECTIONS[entry['section']][1](r)) for r in entry['rows']]
        if entry['status'] != 'done': cells.append(('', f"{entry['status']}: {entry['why']}"))
        lines += [f"| {entry['model']} | {entry['section']} | {what} | {' '.join(said.split()).replace('|', '/')} |"
                  for what, said in cells]
    return '\n'.join(lines)


SHARE = .4          # of what is left that one section may take


def measure(bench: Bench, report: Report, name: str) -> None:
    "Every section that still fits."
    for section, (run, _) in SECTIONS.items():
        with report.section(section, name) as entry:
            if (left := bench.budget.left()) < bench.sizes.needs:
                entry |= dict(status='not run', why=f'{max(left, 0):.0f} s were left')
                continue
            with limit(left if section == [*SECTIONS][-1] else SHARE*left):
                for row in run(bench): entry['rows'].append(row)
            entry['status'] = 'done'


def card(device: torch.device) -> dict[str, Any]:
    name = f'no GPU, a CPU ({platform.machine()})'
    if device.type == 'cpu': return dict(device=name, threads=torch.get_num_threads())
    found = torch.cuda.get_device_properties(device)
    return dict(device=found.name, memory_mib=found.total_memory//2**20, capability=f'{found.major}.{found.minor}')


def about(device: torch.device, is_small: bool, minutes: float) -> dict[str, Any]:
    "Where and with what it is measured."
    sizes = 'small sizes: a smoke test, its times mean little' if is_small else 'full sizes'
    return card(device) | dict(
        cuda=torch.version.cuda or 'none', torch=torch.__version__, transformers=transformers.__version__,
        python=platform.python_version(), lyra=lyra.__version__, matmul=torch.get_float32_matmul_precision(),
        date=datetime.now(timezone.utc).strftime('%Y-%m-%d %H:%M UTC'), minutes=minutes, sizes=sizes, models={})


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any: raise SystemExit(f'gpu: {message}.')


def arguments() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', metavar='NAME',
                        help=f"{', '.join(SHAPES)}, a checkpoint folder or a hub id")
    parser.add_argument('--out', type=Path, default=ROOT/'out'/'gpu.json', metavar='FILE.json',
                        help='where to write (out/gpu.json)')
    parser.add_argument('--quick', action='store_true', help='small sizes, as on a CPU')
    parser.add_argument('--minutes', type=float, default=8., help='time for all of it, once there are weights (8)')
    parser.add_argument('--random', action='store_true', help='random weights in the shape of a built-in model')
    parser.add_argument('--try', action='append', dest='tries', choices=TRIES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not 0 < args.minutes < 1000: parser.error(f'--minutes is a number above 0, not {args.minutes:g}')
    if args.out.suffix != '.json': parser.error(f'--out names a .json file, not {args.out}')
    if args.random and args.model not in (None, *SHAPES): parser.error(f"--random needs one of {', '.join(SHAPES)}")
    return args


def main() -> int:
    args = arguments()
    device = torch.device('cuda', 0) if torch.cuda.is_available() else torch.device('cpu')
    is_small = args.quick or device.type == 'cpu'
    sizes = SMALL if is_small else Sizes()
    if args.tries:
        bench = Bench(args.model, device, sizes, Budget(1e6))
        for name in args.tries: print(json.dumps(plain(try_here(bench, name)), default=str), flush=True)
        return 0
    try: report = Report(args.out, about(device, is_small, args.minutes))
    except OSError as e:
        raise SystemExit(f'gpu: {args.out} cannot be written ({e.strerror}): name another file.') from e
    work, status, budget = Path(tempfile.mkdtemp(prefix='lyra-gpu-')), 0, None
    kinds = report.found['models']
    try:
        for model in [args.model] if args.model else ['tiny'] if device.type == 'cpu' else [*MODELS]:
            if budget and budget.left() < sizes.needs: kinds[model] = 'not measured, since no time was left'
            else:
                folder, kinds[name := Path(model).name] = find(model, work, args.random)
                budget = budget or Budget(60*args.minutes)
                measure(Bench(folder, device, sizes, budget), report, name)
            gc.collect()
    except LyraError as e: raise SystemExit(f'gpu: {e}') from e
    except KeyboardInterrupt: status = 130
    finally: shutil.rmtree(work, ignore_errors=True)
    if not args.out.is_file(): return status
    print(table(json.loads(args.out.read_text(encoding='utf-8'))))
    if report.failed: print(f"gpu: failed: {'; '.join(report.failed)}", file=sys.stderr)
    return status or int(bool(report.failed))


if __name__ == '__main__': sys.exit(main())
