"A persistent persona for any decoder, at inference time, with frozen weights; see README.md."
import sys
from importlib import import_module

__version__ = "0.2.0"

_home = dict(
    ChatSession='chat', ContextPolicy='policy', Lyra='attention', LyraAttention='attention', LyraCache='cache',
    LyraError='core', Persona='persona', Recorder='trace', Trace='trace', attach='decoders', detach='decoders',
    explore='widgets', live='livechat', load='decoders', load_tokenizer='weights', verify='exact')
__all__ = list(_home)


def run():
    "The command `lyra`; returns its exit code. An interruption while torch is loaded is one, too."
    try: from lyra.cli import main
    except KeyboardInterrupt:
        print('lyra: interrupted.', file=sys.stderr)
        return 130
    return main()


def __getattr__(name):
    "Import on first use, so that `import lyra` and `lyra --help` are quick."
    if name not in _home: raise AttributeError(f"module 'lyra' has no attribute {name!r}")
    return getattr(import_module(f'lyra.{_home[name]}'), name)


def __dir__(): return [*globals(), *_home]
