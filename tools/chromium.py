"The browser that tools/browser.py drives: found, or installed where that needs no one's leave."
import os, shutil, subprocess, sys
from collections.abc import Callable
from pathlib import Path

COMMANDS = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable')
APPLICATION = Path('/Applications/Google Chrome.app/Contents/MacOS/Google Chrome')
# apt-get's own limits come first, since a package manager stopped half-way leaves locks behind.
APT = ('apt-get', '-qq', '-o', 'DPkg::Lock::Timeout=60', '-o', 'Acquire::http::Timeout=30', '-o', 'Acquire::Retries=1')
INSTALL = ('install', '-y', '--no-install-recommends', 'chromium', 'fonts-dejavu-core')
STEPS = {(*APT, 'update'): 120, (*APT, *INSTALL, '--download-only'): 300, (*APT, *INSTALL): 600}        # seconds


def succeeds(*command, limit: int) -> str:
    "'' if a command ends well within so many seconds, else why not."
    env = os.environ | {'DEBIAN_FRONTEND': 'noninteractive'}
    try:
        done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired: return f'it took more than {limit} s'
    except OSError as error: return str(error)
    lines = done.stderr.strip().splitlines() or [f'exit status {done.returncode}']
    return lines[-1] if done.returncode else ''


def playwrights() -> list[str]:
    "Where `python -m playwright install chromium` would have put one."
    try:
        from playwright.sync_api import sync_playwright
        with sync_playwright() as p: return [p.chromium.executable_path]
    except Exception: return []


def find() -> str | None:
    "A Chromium or Chrome that starts (Ubuntu's chromium-browser may be no more than a note where to get it)."
    for look in (lambda: filter(None, map(shutil.which, COMMANDS)), lambda: [str(APPLICATION)], playwrights):
        for path in look():
            if Path(path).exists() and not succeeds(path, '--version', limit=30): return path
    return None


def get(say: Callable[[str], None] = print) -> tuple[str | None, str]:
    "(path, '') of a browser that is here or could be installed, (None, reason) where there is none."
    if os.environ.get('LYRA_SKIP_BROWSER'): return None, 'LYRA_SKIP_BROWSER is set'
    if (path := find()): return path, ''
    remedy = ('install it (`apt-get install chromium fonts-dejavu-core`, or without root '
              f'`{sys.executable} -m playwright install chromium`) and run `python tools/check.py browser`')
    if not (shutil.which('apt-get') and hasattr(os, 'geteuid') and os.geteuid() == 0):
        return None, f'there is no Chromium or Chrome here: {remedy}'
    say('no Chromium or Chrome here, installing chromium with apt-get; this takes about a minute '
        '(LYRA_SKIP_BROWSER=1 goes without)')
    for command, limit in STEPS.items():
        # A failed update is no reason to stop: the lists that are there may do.
        if (fault := succeeds(*command, limit=limit)) and command[-1] != 'update':
            return None, f'there is no Chromium or Chrome here, and apt-get did not install one ({fault}): {remedy}'
    return (path, '') if (path := find()) else (None, f'the Chromium that apt-get installed does not start: {remedy}')
