"A persistent persona for any decoder, at inference time, with frozen weights; see README.md."
import os, sys
from importlib import import_module

__version__ = "0.2.0"

_home = dict(
    ChatSession='chat', ContextPolicy='policy', Lyra='attention', LyraAttention='attention', LyraCache='cache',
    LyraError='core', Persona='persona', Recorder='trace', Trace='trace', attach='decoders', detach='decoders',
    explore='widgets', live='livechat', load='decoders', load_tokenizer='weights', verify='exact')
__all__ = list(_home)


LIBRARIES = 'HF_', 'HUGGINGFACE', 'TRANSFORMERS', 'TOKENIZERS', 'TORCH', 'PYTORCH', 'TQDM', 'OMP' # begin the names


def misread(
    e, # that was raised
): # a sentence
    "What is wrong with the environment variable whose value a library could not read, if an error quotes one; else ''."
    said = str(e) if isinstance(e, ValueError) else ''
    quoted = lambda name, value: repr(value) in said or name == 'TORCH_LOGS' and value in said
    theirs = sorted(os.environ.items(), key=lambda pair: not pair[0].startswith(LIBRARIES))         # two may be alike
    name = next((name for name, value in theirs if value and quoted(name, value)), '')
    why = ' '.join(said.split())[:80]
    return f'a library cannot read the environment variable {name} ({why}): unset it.' if name else ''


def _as_utf8():
    "Begin again where Python would not take arguments and file names for UTF-8; the streams stay as they are."
    if sys.getfilesystemencoding() == 'utf-8' or 'utf8' in sys._xoptions or not sys.executable: return
    if sys.stdout: os.environ.setdefault('PYTHONIOENCODING', sys.stdout.encoding)
    os.execv(sys.executable, [sys.executable, '-X', 'utf8', *sys.orig_argv[1:]])


def run():
    "The command `lyra`; returns its exit code. An interruption while torch is loaded is one, too."
    _as_utf8()
    try: os.getcwd()
    except OSError:
        print('lyra: the working folder is gone: change to another one.', file=sys.stderr)
        return 2
    if sys.flags.optimize > 1:
        print('lyra: Python leaves out docstrings, which transformers builds on: do without -OO and PYTHONOPTIMIZE=2.',
              file=sys.stderr)
        return 2
    try: from lyra.cli import main
    except KeyboardInterrupt:
        print('lyra: interrupted.', file=sys.stderr)
        return 130
    except ValueError as e:
        if not (said := misread(e)): raise
        print(f'lyra: {said}', file=sys.stderr)
        return 2
    return main()


def __getattr__(name):
    "Import on first use, so that `import lyra` and `lyra --help` are quick."
    if name not in _home: raise AttributeError(f"module 'lyra' has no attribute {name!r}")
    return getattr(import_module(f'lyra.{_home[name]}'), name)


def __dir__(): return [*globals(), *_home]
