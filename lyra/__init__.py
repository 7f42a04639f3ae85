__version__ = "0.1.0"

_home = dict(Lyra='attention', LyraAttention='attention', LyraCache='cache', ContextPolicy='cache', Persona='persona', ChatSession='chat', LyraError='core', load_tokenizer='model',
             Recorder='trace', Trace='trace', explore='widgets', live='widgets')
__all__ = list(_home)


def __getattr__(name):
    "Import on first use, so that `import lyra` and `lyra --help` are quick."
    if name not in _home: raise AttributeError(f"module 'lyra' has no attribute {name!r}")
    from importlib import import_module
    return getattr(import_module(f'lyra.{_home[name]}'), name)
