"The widget notebook in a real JupyterLab and a real browser: run, move, click, chat, save; screenshots in out/browser."
import argparse, io, json, os, re, secrets, shutil, signal, socket, subprocess, sys, tempfile, time, urllib.request
from pathlib import Path

import chromium

ROOT = Path(__file__).resolve().parent.parent
SHOTS = ROOT/'out'/'browser'
FLAGS = ['--headless=new', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-sync',
         '--disable-dev-shm-usage', '--disable-background-networking', '--disable-component-update']
SETTINGS = {'@jupyterlab/apputils-extension:notification': {'fetchNews': 'false', 'checkForUpdates': False},
            '@jupyterlab/docmanager-extension:plugin': {'autosave': False},
            '@jupyterlab/notebook-extension:tracker': {'windowingMode': 'none'}}
DONE = 'everything ran'


def make_notebook(folder: Path) -> Path:
    "The widget notebook without its slow cells, ending with a word to wait for."
    nb = json.loads((ROOT/'nbs'/'90_widgets.ipynb').read_text(encoding='utf-8'))
    fresh = dict(outputs=[], execution_count=None)
    left_out = re.compile(r'^#\|\s*slow|nbdev_export\(|rmtree\(', flags=re.M)
    nb['cells'] = [c if c['cell_type'] != 'code' else c | fresh for c in nb['cells']
                   if c['cell_type'] != 'code' or not left_out.search(''.join(c['source']))]
    done = f"print('{DONE[:10]}' + '{DONE[10:]}')"
    nb['cells'].append(dict(cell_type='code', id='done', metadata={}, source=done, **fresh))
    nb['metadata']['kernelspec'] = dict(display_name='python3', language='python', name='python3')
    path = folder/'nbs'/'widgets.ipynb'
    path.parent.mkdir()
    path.write_text(json.dumps(nb), encoding='utf-8')
    return path


class Server:
    "JupyterLab on loopback with settings of its own."
    def __init__(self, folder: Path):
        with socket.socket() as s:
            s.bind(('127.0.0.1', 0))
            port = s.getsockname()[1]
        self.token, self.url = secrets.token_hex(16), f'http://127.0.0.1:{port}'
        names = ('JUPYTER_CONFIG_DIR', 'JUPYTER_DATA_DIR', 'JUPYTER_RUNTIME_DIR', 'JUPYTERLAB_SETTINGS_DIR',
                 'JUPYTERLAB_WORKSPACES_DIR', 'IPYTHONDIR', 'MPLCONFIGDIR')
        places = {name: str(folder/name.lower()) for name in names}
        overrides = Path(places['JUPYTER_CONFIG_DIR'])/'labconfig'/'default_setting_overrides.json'
        overrides.parent.mkdir(parents=True)
        overrides.write_text(json.dumps(SETTINGS))
        self.log = open(folder/'jupyter.log', 'w')
        command = [sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', '--ServerApp.ip=127.0.0.1',
                   f'--ServerApp.port={port}', '--ServerApp.port_retries=0', f'--ServerApp.root_dir={folder}',
                   f'--IdentityProvider.token={self.token}', '--LabApp.extension_manager=readonly']
        env = os.environ | places | {'PYTHONPATH': str(ROOT), 'HF_HUB_OFFLINE': '1', 'TRANSFORMERS_VERBOSITY': 'error',
                                     'PYTHONFAULTHANDLER': '1'}
        env.pop('LYRA_STATIC', None)
        self.process = subprocess.Popen(command, env=env, stdout=self.log, stderr=self.log, start_new_session=True)
        for _ in range(120):
            if self.process.poll() is not None:
                raise SystemExit(f"JupyterLab ended at once: {(folder/'jupyter.log').read_text()[-800:]}")
            try:
                self.ask('GET', '/api/status')
                return
            except OSError: time.sleep(.5)
        raise SystemExit('JupyterLab did not answer within a minute.')

    def ask(self, method: str, path: str, data=None):
        headers = {'Authorization': f'token {self.token}', 'Content-Type': 'application/json'}
        body = json.dumps(data).encode() if data else None
        request = urllib.request.Request(self.url + path, body, headers, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer: return json.loads(answer.read() or 'null')

    def stop(self) -> None:
        for sign in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, sign)
                self.process.wait(15)
                break
            except (ProcessLookupError, subprocess.TimeoutExpired): continue
        self.log.close()


def differing(a: bytes, b: bytes) -> float:
    "The share of pixels in which two screenshots differ by more than 8 levels."
    import numpy as np
    from PIL import Image
    a, b = (np.asarray(Image.open(io.BytesIO(x)).convert('RGB')).astype(int) for x in (a, b))
    h, w = (min(x, y) for x, y in zip(a.shape[:2], b.shape[:2]))
    return float((abs(a[:h, :w] - b[:h, :w]).max(-1) > 8).mean())


def settled(page, view, before: str) -> bytes:
    "The view's picture once it is another than before and decoded."
    image = view.locator('img').first
    is_new = '([i, before]) => i.src !== before && i.complete && i.naturalWidth > 0'
    page.wait_for_function(is_new, arg=[image.element_handle(), before], timeout=20_000)
    return image.screenshot()


def drive(page, folder: Path) -> None:
    "What a reader does."
    shot = lambda name, place=page: place.screenshot(path=SHOTS/f'{name}.png')
    explorer = page.locator('.lyra-cache-map').first
    explorer.scroll_into_view_if_needed()
    shot('1-cache-map', explorer)
    image, slider = explorer.locator('img').first, explorer.get_by_role('slider').first
    before, picture = image.get_attribute('src'), image.screenshot()
    slider.focus()
    for _ in range(3): page.keyboard.press('ArrowLeft')
    explorer.get_by_role('status').filter(has_text='Turn 9').wait_for(timeout=20_000)
    after = settled(page, explorer, before)
    changed = differing(picture, after)
    assert changed > .05, f'the picture hardly changes when the slider moves: {changed:.1%}'
    assert 'Turn 9' in (image.get_attribute('title') or ''), 'the live picture has no name that says what it shows'
    shot('2-cache-map-turn-9', explorer)
    explorer.get_by_role('button', name='save PNG').click()
    explorer.get_by_text('saved').wait_for(timeout=20_000)
    assert (folder/'out'/'cache-map-turn-9.png').read_bytes().startswith(b'\x89PNG')
    for number, name in enumerate(('Attention flow', 'Token view', 'Drift view'), 3):
        kind = name.lower().replace(' ', '-')
        page.get_by_role('tab', name=name).first.click()
        view = page.locator(f'.lyra-{kind}').first
        view.get_by_role('status').filter(has_text='Turn 9').wait_for(timeout=20_000)
        shot(f'{number}-{kind}', view)
        if kind == 'attention-flow':
            view.get_by_role('button', name=re.compile('layer 11 head 2')).click()
            view.get_by_text('most attended (layer 11, head 2)').wait_for(timeout=20_000)
    chat = page.locator('.lyra-live').last
    chat.scroll_into_view_if_needed()
    chat.get_by_role('button', name='new conversation').click()
    chat.get_by_text('A new conversation under').wait_for(timeout=60_000)
    chat.get_by_placeholder('What is your name?').fill('What do you love above everything?')
    page.keyboard.press('Enter')
    chat.get_by_text(re.compile(r'Turn 1: \d+ tokens in')).wait_for(timeout=120_000)
    chat.get_by_placeholder('What is your name?').fill('And who are you?')
    chat.get_by_role('button', name='send').click()
    chat.get_by_text(re.compile(r'Turn 2: \d+ tokens in')).wait_for(timeout=120_000)
    chat.locator('.lyra-cache-map img').first.wait_for(timeout=20_000)
    shot('6-live', chat)


def run(folder: Path, browser_path: str) -> None:
    from playwright.sync_api import sync_playwright
    notebook, server, faults = make_notebook(folder), Server(folder), []
    try:
        kernel = dict(path=f'nbs/{notebook.name}', name=notebook.name, type='notebook', kernel=dict(name='python3'))
        session = server.ask('POST', '/api/sessions', kernel)
        with sync_playwright() as p:
            view = dict(width=1400, height=1000)
            context = p.chromium.launch_persistent_context(folder/'profile', executable_path=browser_path, args=FLAGS,
                                                           headless=True, viewport=view)
            page = context.pages[0]
            is_outside = lambda url: url.startswith(('http', 'ws')) and '//127.0.0.1' not in url
            page.on('pageerror', lambda e: faults.append(f'page error: {e}'))
            page.on('console', lambda m: m.type == 'error' and faults.append(f'console: {m.text}'))
            page.on('request', lambda r: is_outside(r.url) and faults.append(f'request to {r.url}'))
            page.goto(f'{server.url}/lab/tree/nbs/{notebook.name}?token={server.token}&reset')
            page.locator('#jp-main-statusbar, #jp-bottom-panel').get_by_text('| Idle').first.wait_for(timeout=60_000)
            page.get_by_role('menuitem', name='Run', exact=True).click()
            page.get_by_role('menuitem', name='Run All Cells', exact=True).click()
            outputs = page.locator('.jp-OutputArea-output')
            trace = outputs.filter(has_text='Traceback (most recent call last)')
            fault = trace.or_(page.locator('.jp-Dialog'))                          # a dialog says that the kernel died
            try:
                outputs.get_by_text(DONE, exact=True).or_(fault).first.wait_for(timeout=600_000)
                assert not fault.count(), fault.first.inner_text()[-1500:]
                drive(page, folder)
            except Exception:
                page.screenshot(path=SHOTS/'failure.png')
                raise
            live = '.jp-OutputArea-child:has(.lyra-cache-map)'
            for behind in (' + .jp-OutputArea-child', ' + .jp-OutputArea-child + .jp-OutputArea-child'):
                twin = page.locator(live + behind).first
                assert not twin.is_visible(), 'the static picture, or its words, stands beside the live view'
            words = page.locator('.jp-OutputArea-child:not(:has(.widget-box)) details:visible')
            words.first.locator('summary').click()
            assert len(words.first.inner_text()) > 30, 'the words of a figure do not open'
            page.get_by_role('menuitem', name='File', exact=True).click()
            page.get_by_role('menuitem', name=re.compile('^Save Notebook')).first.click()
            time.sleep(3)
            context.close()
            server.ask('DELETE', f"/api/sessions/{session['id']}")
            convert = [sys.executable, '-m', 'nbconvert', '--to', 'html', notebook.name]
            subprocess.run(convert, cwd=notebook.parent, check=True, capture_output=True)
            browser = p.chromium.launch(executable_path=browser_path, args=FLAGS)
            page = browser.new_page(viewport=view, offline=True)
            page.goto(f"file://{notebook.with_suffix('.html')}")
            is_whole = 'i => i.complete && i.naturalWidth > 300'
            pictures = [i for i in page.locator('img').all() if i.evaluate(is_whole) and i.is_visible()]
            assert len(pictures) >= 6, f'only {len(pictures)} pictures stand in the saved page'
            bare = [i for i in pictures if len(i.get_attribute('alt') or '') < 20]
            assert not bare, f'{len(bare)} pictures of the saved page have no alternative text'
            browser.close()
    finally: server.stop()
    assert not faults, '; '.join(faults[:5])


def problem() -> str | None:
    "What is wrong, '' if nothing, None if there is no browser to run in."
    path, why = chromium.get()
    if path is None:
        print(f'browser: not run, since {why}')
        return None
    SHOTS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        try: run(Path(folder), path)
        except Exception as e:
            if (log := Path(folder)/'jupyter.log').exists(): shutil.copy(log, SHOTS)
            return f'{type(e).__name__}: {e}'
    return ''


def main() -> int:
    argparse.ArgumentParser(description=__doc__).parse_args()
    fault = problem()
    if fault is not None: print(f"browser: {fault or f'ok, screenshots in {SHOTS.relative_to(ROOT)}'}")
    return int(bool(fault))


if __name__ == '__main__': sys.exit(main())
