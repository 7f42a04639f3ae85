"The widget notebook in a real JupyterLab and a real browser: run, move, click, chat, save; screenshots in out/browser."
import argparse, base64, io, itertools, json, os, re, secrets, shutil, signal, socket, subprocess, sys, tarfile, tempfile
import time, urllib.request
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
                   f'--IdentityProvider.token={self.token}', '--LabApp.extension_manager=readonly',
                   '--LabApp.expose_app_in_browser=True']
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


STEPS = """([root, n]) => new Promise(async done => {
  const canvas = root.querySelector('canvas'), waited = [], drawn = [];
  for (let i = 0; i < n; i++) {
    const key = Math.floor(i/4)%2 ? 'ArrowRight' : 'ArrowLeft', before = root.dataset.turn, began = performance.now();
    const seen = new Promise(ok => {
      const watch = new MutationObserver(() => root.dataset.turn !== before && (watch.disconnect(), ok()));
      watch.observe(root, { attributes: true }); });
    canvas.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true }));
    await seen; waited.push(performance.now() - began); drawn.push(+root.dataset.ms);
  }
  done([waited, drawn]);
})"""
CONTRAST = """root => {
  const lum = c => c.match(/[\\d.]+/g).slice(0, 3).map(v => (v /= 255) <= .04045 ? v/12.92 : ((v + .055)/1.055)**2.4)
    .reduce((sum, v, i) => sum + v*[.2126, .7152, .0722][i], 0);
  const look = getComputedStyle(root), [a, b] = [lum(look.color), lum(look.backgroundColor)].sort((x, y) => y - x);
  return (a + .05)/(b + .05); }"""


def point_and_press(page, view) -> str:
    "Pointer, pin, keys and table of a cache map: the same in a notebook and in a saved page."
    canvas, pin, row = view.locator('canvas').first, view.locator('.pin'), 4 + 5*14 + 7
    here = dict(x=canvas.bounding_box()['width']*.6, y=row)
    canvas.hover(position=here)
    view.locator('.tip.on').wait_for()
    said = view.locator('.tip').inner_text()
    assert re.match(r'layer 5 global, tokens? \d.* “.+”: [a-z ]+$', said), f'a cell says only {said!r}'
    canvas.click(position=here)
    pin.filter(has_text=said).wait_for(timeout=10_000)
    canvas.click(position=here)
    pin.filter(has_text='Nothing is pinned').wait_for(timeout=10_000)
    turn = int(view.get_attribute('data-turn'))
    for _ in range(3): page.keyboard.press('ArrowLeft')
    view.get_by_role('status').filter(has_text=f'Turn {turn - 3} of').wait_for(timeout=20_000)
    page.keyboard.press('ArrowDown')
    view.get_by_role('status').filter(has_text='layer 6, token').wait_for(timeout=10_000)
    page.keyboard.press('Enter')
    pin.filter(has_text='Pinned: layer 6,').wait_for(timeout=10_000)
    for key in ('Escape', 'ArrowUp', 't'): page.keyboard.press(key)
    pin.filter(has_text='Nothing is pinned').wait_for(timeout=10_000)
    assert view.locator('.sheet').get_by_role('row').count() > 50, 'the table is missing'
    page.keyboard.press('t')
    assert not view.locator('.sheet').is_visible(), 'the table stays'
    return said


def hear_plain_keys(page, view) -> None:
    "Keys that are commands of JupyterLab for cells must not reach it."
    cells = page.locator('.jp-Notebook .jp-Cell').count()
    view.locator('canvas').first.focus()
    for key in ('d', 'd', 'x', 'a', 'b', 'm'):
        page.keyboard.press(key)
        time.sleep(.1)
        assert page.locator('.jp-Notebook .jp-Cell').count() == cells and view.is_visible(), f'{key} got out'


def look_again(page, view) -> None:
    "In the dark theme, and at 200 %."
    change = "theme => window.jupyterapp.commands.execute('apputils:change-theme', { theme })"
    light = view.screenshot()
    page.evaluate(change, 'JupyterLab Dark')
    page.locator('body[data-jp-theme-name="JupyterLab Dark"]').wait_for(state='attached')
    time.sleep(1)
    dark, contrast = view.screenshot(path=SHOTS/'2-dark.png'), view.evaluate(CONTRAST)
    assert differing(light, dark) > .05 and contrast > 4.5, f'the dark theme has a contrast of {contrast:.1f}'
    page.evaluate(change, 'JupyterLab Light')
    page.locator('body[data-jp-theme-name="JupyterLab Light"]').wait_for(state='attached')
    screen = page.context.new_cdp_session(page)
    screen.send('Emulation.setDeviceMetricsOverride', dict(width=700, height=500, deviceScaleFactor=2, mobile=False))
    time.sleep(1)
    outside = '''root => Math.max(...[root, ...root.querySelectorAll('button, select, .panel')].map(n =>
      n.getBoundingClientRect().right)) - root.closest('.jp-OutputArea').getBoundingClientRect().right'''
    assert view.evaluate(outside) < 2, 'at 200 % a part of the view stands outside of its cell'
    picture = screen.send('Page.captureScreenshot')['data']             # Playwright's own would undo the zoom
    (SHOTS/'2-zoomed.png').write_bytes(base64.b64decode(picture))
    screen.send('Emulation.clearDeviceMetricsOverride')
    screen.detach()


def axe(folder: Path) -> str:
    "The text of axe-core, fetched with npm; '' where that cannot be, which is said."
    try:
        subprocess.run(['npm', 'pack', '--silent', 'axe-core@4'], cwd=folder, check=True, capture_output=True, timeout=60)
        with tarfile.open(next(folder.glob('axe-core-*.tgz'))) as package:
            return package.extractfile('package/axe.min.js').read().decode()
    except Exception as e:
        print(f'browser: axe-core was not run, since it could not be fetched ({type(e).__name__})')
        return ''


def check_access(page, script: str, where: str) -> None:
    if not script: return
    page.evaluate(script)
    found = page.evaluate("where => axe.run(where).then(r => r.violations.map(v => `${v.id}: ${v.nodes[0].html}`))", where)
    assert not found, f'axe finds {found}'


def drive(page, folder: Path) -> None:
    "What a reader does."
    shot = lambda name, place=page: place.screenshot(path=SHOTS/f'{name}.png')
    script = axe(folder)
    view = page.locator('.lyra-cache-map .lyra-view, .lyra-cache-map.lyra-view').first
    view.scroll_into_view_if_needed()
    print('browser: a cell says', point_and_press(page, view))
    shot('1-cache-map', view)
    hear_plain_keys(page, view)
    waited, drawn = (sorted(x) for x in page.evaluate(STEPS, [view.element_handle(), 40]))
    print(f'browser: 40 steps, median {waited[20]:.0f} ms, 95th percentile {waited[37]:.0f} ms, '
          f'of these {drawn[20]:.1f} ms drawing')
    assert waited[20] < 400, f'a step takes {waited[20]:.0f} ms'
    view.get_by_role('spinbutton', name='turn').fill('9')
    page.keyboard.press('Tab')
    view.get_by_role('status').filter(has_text='Turn 9 of').wait_for(timeout=20_000)
    look_again(page, view)
    check_access(page, script, '.lyra-view')
    for kind in ('png', 'html'):
        view.get_by_role('button', name=f'save {kind.upper()}').click()
        view.get_by_role('status').filter(has_text=f'turn-9.{kind}').wait_for(timeout=20_000)
    assert (folder/'out'/'cache-map-turn-9.png').read_bytes().startswith(b'\x89PNG')
    for number, name in enumerate(('Attention flow', 'Token view', 'Drift view'), 3):
        page.get_by_role('tab', name=name).first.click()
        kind = name.lower().replace(' ', '-')
        view = page.locator(f'.lyra-{kind} .lyra-view, .lyra-{kind}.lyra-view').first
        view.get_by_role('status').filter(has_text='Turn 9').wait_for(timeout=20_000)
        use_other(page, view, kind)
        shot(f'{number}-{kind}', view)
        check_access(page, script, f'.lyra-{kind}')
        view.get_by_role('button', name='save HTML').click()
        view.get_by_role('status').filter(has_text='.html').wait_for(timeout=20_000)


def use_other(page, view, kind: str) -> None:
    "Point at a cell of a view that is no cache map."
    if kind == 'token-view':
        view.locator('.words span').nth(5).click()
        view.locator('.pin').filter(has_text='Pinned: token 5 (position').wait_for(timeout=10_000)
        view.get_by_role('combobox', name='shade').select_option('surprisal')
        view.locator('.legend').filter(has_text='10.00 nats').wait_for(timeout=10_000)
        return
    canvas = view.locator('canvas').first
    box = canvas.bounding_box()
    if kind == 'attention-flow':
        canvas.click(position=dict(x=box['width'] - 24, y=4 + 11*14 + 7))
        view.locator('.pin').filter(has_text='Pinned: layer 11 global, head 3: persona').wait_for(timeout=10_000)
        view.locator('.notes').get_by_text('Attended to most: layer 11, head 3').wait_for(timeout=20_000)
        page.keyboard.press('H')
        view.locator('.notes').get_by_text('Attended to most: layer 11, head 2').wait_for(timeout=20_000)
        page.keyboard.press('Escape')
        return
    for y in range(6, 168, 8):                              # some line is there
        canvas.hover(position=dict(x=box['width']*.6, y=y))
        if view.locator('.tip.on').count(): break
    assert re.match(r'.+, turn \d+: score -?[\d.]+ nats', view.locator('.tip').inner_text())


def check_pages(browser, folder: Path) -> None:
    "The saved pages, with the network off, in either colour scheme."
    script = axe(folder)
    pages = sorted((folder/'out').glob('*.html'))
    assert len(pages) == 4, f'{len(pages)} pages were saved'
    for path, scheme in itertools.product(pages, ('light', 'dark')):
        context, faults = browser.new_context(offline=True, color_scheme=scheme, device_scale_factor=2), []
        page = context.new_page()
        page.on('pageerror', lambda e: faults.append(str(e)))
        page.on('console', lambda m: m.type == 'error' and faults.append(m.text))
        page.on('request', lambda r: r.url != path.as_uri() and faults.append(r.url))
        page.goto(path.as_uri())
        view = page.locator('.lyra-view[data-turn]')
        view.wait_for(timeout=20_000)
        if path.name.startswith('cache'): point_and_press(page, view)
        assert view.evaluate(CONTRAST) > 4.5
        page.screenshot(path=SHOTS/f'page-{path.stem}-{scheme}.png', full_page=True)
        if scheme == 'light':
            check_access(page, script, 'html')
        context.close()
        assert not faults, f'{path.name}: {faults[:3]}'


def drive_chat(page) -> None:
    "A conversation."
    shot = lambda name, place=page: place.screenshot(path=SHOTS/f'{name}.png')
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
    chat.locator('.lyra-view[data-turn="2"]').first.wait_for(timeout=20_000)
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
                drive_chat(page)
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
            check_pages(browser, folder)
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
