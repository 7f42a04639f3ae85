"The widgets and the live chat in a real JupyterLab and a real browser; screenshots in out/browser."
import argparse, ast, base64, io, itertools, json, os, re, secrets, shutil, signal, socket, subprocess, sys, tarfile
import tempfile, time, urllib.request
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
PARTS = ['widgets', 'chat']
KINDS = 'cache-map', 'attention-flow', 'token-view'
# Views of the notebook's trace of 1,000 turns, which ask for nothing ahead and for four steps.
TIMED = '''timed = [View(kind(long)) for n in (0, 4) for kind in (CacheMap, AttentionFlow, TokenView)]
for i, view in enumerate(timed):
    view.ahead = (0, 4)[i//3]
    view.add_class(f'timed-{view.ahead}')
display(W.VBox(timed))'''
CHAT = ['''import lyra
from lyra.core import data_path
model, tokenizer = lyra.load('smollm2-135m-instruct')''',
        '''box = lyra.live(model, tokenizer, data_path('personas', 'marlow.json'), folder='../out/live', max_new_tokens=100)
box''',
        "import time; time.sleep(6)",
        "print([[line['text'], line['reply']] for line in box.chat.lines])"]


def make_notebook(folder: Path) -> Path:
    "The widget notebook without its slow cells, ending with a word to wait for."
    nb = json.loads((ROOT/'nbs'/'90_widgets.ipynb').read_text(encoding='utf-8'))
    fresh = dict(outputs=[], execution_count=None)
    left_out = re.compile(r'^#\|\s*slow|nbdev_export\(|rmtree\(', flags=re.M)
    nb['cells'] = [c if c['cell_type'] != 'code' else c | fresh for c in nb['cells']
                   if c['cell_type'] != 'code' or not left_out.search(''.join(c['source']))]
    done = f"print('{DONE[:10]}' + '{DONE[10:]}')"
    nb['cells'] += [dict(cell_type='code', id=name, metadata={}, source=source, **fresh)
                    for name, source in (('timed', TIMED), ('done', done))]
    nb['metadata']['kernelspec'] = dict(display_name='python3', language='python', name='python3')
    path = folder/'nbs'/'widgets.ipynb'
    path.parent.mkdir()
    path.write_text(json.dumps(nb), encoding='utf-8')
    return path


def chat_notebook(folder: Path) -> Path:
    "A notebook with a live chat, a cell that keeps the kernel busy, and one that says what the kernel has heard."
    cell = lambda i, source: dict(cell_type='code', id=f'c{i}', metadata={}, source=source, outputs=[],
                                  execution_count=None)
    kernel = dict(display_name='python3', language='python', name='python3')
    nb = dict(cells=[cell(i, source) for i, source in enumerate(CHAT)], metadata=dict(kernelspec=kernel),
              nbformat=4, nbformat_minor=5)
    path = folder/'nbs'/'chat.ipynb'
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


# Milliseconds from a key to the new turn being drawn, to the frame after that, and of the drawing alone.
STEPS = """([root, n, pause]) => new Promise(async done => {
  const place = root.querySelector('.panel [tabindex]'), out = [], wait = ms => new Promise(ok => setTimeout(ok, ms));
  const is_far = root.dataset.turn > n;                     // always on: no turn is seen twice
  place.focus();
  await wait(500);
  for (let i = 0; i < n; i++) {
    const key = is_far || Math.floor(i/4)%2 ? 'ArrowLeft' : 'ArrowRight';
    const before = root.dataset.turn, began = performance.now();
    const seen = new Promise(ok => {
      const watch = new MutationObserver(() => root.dataset.turn !== before && (watch.disconnect(), ok()));
      watch.observe(root, { attributes: true }); });
    place.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true }));
    await seen;
    const drawn = performance.now() - began;
    await new Promise(requestAnimationFrame);
    out.push([drawn, performance.now() - began, +root.dataset.ms]);
    await wait(pause);
  }
  done(out);
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
    opener = view.get_by_role('button', name='table')
    assert opener.get_attribute('aria-expanded') == 'true', 'the button does not say that the table is open'
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
        command = ['npm', 'pack', '--silent', 'axe-core@4']
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=60)
        with tarfile.open(next(folder.glob('axe-core-*.tgz'))) as package:
            return package.extractfile('package/axe.min.js').read().decode()
    except Exception as e:
        print(f'browser: axe-core was not run, since it could not be fetched ({type(e).__name__})')
        return ''


def check_access(page, script: str, where: str) -> None:
    if not script: return
    page.evaluate(script)
    run = 'where => axe.run(where).then(r => r.violations.map(v => `${v.impact} ${v.id}: ${v.nodes[0].html}`))'
    found = page.evaluate(run, where)
    assert not found, f'axe finds {found}'


def time_steps(page) -> None:
    "How long a key takes to show another of 1,000 turns, with nothing and with something sent ahead."
    for ahead, kind in itertools.product((0, 4), KINDS):
        view = page.locator(f'.timed-{ahead}.lyra-{kind}').first
        view.scroll_into_view_if_needed()
        root = view.locator('.lyra-view').or_(view.and_(page.locator('.lyra-view'))).first
        steps = page.evaluate(STEPS, [root.element_handle(), 40, 150])
        drawn, shown, alone = (sorted(x) for x in zip(*steps))
        print(f'browser: {kind}, 1,000 turns, {ahead} steps ahead: key to picture median {drawn[20]:.0f} ms, 95th '
              f'percentile {drawn[37]:.0f} ms; with the frame {shown[20]:.0f} ms; drawing alone {alone[20]:.1f} ms')
        assert drawn[20] < (50 if ahead else 400), f'a step takes {drawn[20]:.0f} ms'
        if ahead: hold_key(page, root)


def hold_key(page, root) -> None:
    "A held key ends where it should, in the browser and in the kernel, and nothing jumps back afterwards."
    turn = int(root.get_attribute('data-turn')) - 60
    root.locator('.panel [tabindex]').first.focus()
    for _ in range(60):
        page.keyboard.press('ArrowLeft')
        page.wait_for_timeout(25)
    page.wait_for_timeout(2000)
    assert int(root.get_attribute('data-turn')) == turn, f"a held key ends at turn {root.get_attribute('data-turn')}"
    root.get_by_role('button', name='save CSV').click()
    root.get_by_role('status').filter(has_text=f'-turn-{turn}.csv').wait_for(timeout=30_000)     # the kernel's word


def drive(page, folder: Path) -> None:
    "What a reader does."
    shot = lambda name, place=page: place.screenshot(path=SHOTS/f'{name}.png')
    script = axe(folder)
    view = page.locator('.lyra-cache-map .lyra-view, .lyra-cache-map.lyra-view').first
    view.scroll_into_view_if_needed()
    print('browser: a cell says', point_and_press(page, view))
    shot('1-cache-map', view)
    hear_plain_keys(page, view)
    time_steps(page)
    view.scroll_into_view_if_needed()
    view.locator('canvas').first.focus()
    view.get_by_role('spinbutton', name='turn').fill('9')
    page.keyboard.press('Tab')
    view.get_by_role('status').filter(has_text='Turn 9 of').wait_for(timeout=20_000)
    look_again(page, view)
    check_access(page, script, '.lyra-view')
    for kind in ('png', 'html'):
        view.get_by_role('button', name=f'save {kind.upper()}').click()
        view.get_by_role('status').filter(has_text=f'turn-9.{kind}').wait_for(timeout=20_000)
    assert (folder/'out'/'cache-map-turn-9.png').read_bytes().startswith(b'\x89PNG')
    for number, name in enumerate(('Attention flow', 'Token view', 'Drift view', 'Frontier'), 3):
        page.get_by_role('tab', name=name).first.click()
        kind = name.lower().replace(' ', '-')
        view = page.locator(f'.lyra-{kind} .lyra-view, .lyra-{kind}.lyra-view').first
        if kind != 'frontier': view.get_by_role('status').filter(has_text='Turn 9').wait_for(timeout=20_000)
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
    if kind == 'frontier': return use_marks(page, view)
    for y in range(6, 168, 8):                              # some line is there
        canvas.hover(position=dict(x=box['width']*.6, y=y))
        if view.locator('.tip.on').count(): break
    assert re.match(r'.+, turn \d+: score -?[\d.]+ nats', view.locator('.tip').inner_text())


def use_marks(page, view) -> None:
    "Pointer, keys, pin and table of a frontier: the same in a notebook and in a saved page."
    share, canvas, pin = r'\d+\.\d % \(\d+\.\d % to \d+\.\d %\)', view.locator('canvas').first, view.locator('.pin')
    said = rf'[\w:.-]+, turn \d+: healthy replies {share}, facts said {share}, \d+ personas'
    status = view.get_by_role('status')
    view.get_by_role('combobox', name='turn').select_option('200')
    view.get_by_role('combobox', name='method').select_option('near')
    status.filter(has_text='Near, turn 200: healthy').wait_for(timeout=20_000)
    canvas.focus()
    for key, mark in dict(ArrowLeft='Near, turn 50', ArrowDown='Near:1.25, turn 50', ArrowRight='turn 139').items():
        page.keyboard.press(key)
        status.filter(has_text=f'{mark}: healthy').wait_for(timeout=20_000)
    page.keyboard.press('Enter')
    pin.filter(has_text=re.compile(f'Pinned: {said}$')).wait_for(timeout=10_000)
    page.keyboard.press('Escape')
    box, found = canvas.bounding_box(), ''
    for x, y in itertools.product(range(70, int(box['width']), 12), range(8, 330, 12)):
        canvas.hover(position=dict(x=x, y=y))
        if view.locator('.tip.on').count(): break
    found = view.locator('.tip').inner_text()
    assert re.fullmatch(said, found), f'a mark says only {found!r}'
    canvas.click(position=dict(x=x, y=y))
    pin.filter(has_text=found).wait_for(timeout=10_000)
    canvas.click(position=dict(x=x, y=y))
    pin.filter(has_text='Nothing is pinned').wait_for(timeout=10_000)
    page.keyboard.press('t')
    assert view.locator('.sheet').get_by_role('row').count() > 15, 'the table of marks is missing'
    page.keyboard.press('t')


def look_narrow(page, view) -> None:
    "On a small screen, and with forced colours."
    page.set_viewport_size(dict(width=320, height=600))
    page.wait_for_timeout(500)
    wide = page.evaluate('document.documentElement.scrollWidth')
    assert wide <= 320, f'at 320 pixels the page is {wide} wide'
    page.emulate_media(forced_colors='active')
    assert view.evaluate(CONTRAST) > 4.5, 'forced colours are not taken'


def check_pages(browser, folder: Path) -> None:
    "The saved pages, with the network off, in either colour scheme."
    script = axe(folder)
    pages = sorted((folder/'out').glob('*.html'))
    assert len(pages) == 5, f'{len(pages)} pages were saved'
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
        if path.name.startswith('frontier'): use_marks(page, view)
        assert view.evaluate(CONTRAST) > 4.5
        page.screenshot(path=SHOTS/f'page-{path.stem}-{scheme}.png', full_page=True)
        if scheme == 'light':
            check_access(page, script, 'html')
            look_narrow(page, view)
        context.close()
        assert not faults, f'{path.name}: {faults[:3]}'


class ChatPage:
    "The page of `chat_notebook`, as a reader finds it."
    def __init__(self, page):
        self.page, self.chat = page, page.locator('.lyra-chat').last
        self.field = self.chat.get_by_role('textbox', name='Your message')
        self.turns, self.type, self.press = self.chat.locator('.turn'), page.keyboard.type, page.keyboard.press

    def button(self, name: str): return self.chat.get_by_role('button', name=name, exact=True)

    def run_cell(self, i: int) -> None:
        self.page.locator('.jp-Notebook .jp-Cell').nth(i).locator('.jp-InputArea-editor').click()
        self.press('Control+Enter')

    def transcript(self) -> list[list[str]]:
        text = lambda turn, who: turn.locator(f'.{who} bdi').evaluate('x => x.textContent')
        return [[text(turn, 'you'), text(turn, 'reply').strip()] for turn in self.turns.all()]

    def wait_for(self, turns: int) -> None:
        "Until so many turns are finished, and nothing is under way."
        script = """n => { const chat = [...document.querySelectorAll('.lyra-chat')].at(-1);
            if (!chat) return false;
            const off = [...chat.querySelectorAll('button')].find(b => b.textContent === 'Another reply').ariaDisabled;
            return chat.querySelectorAll('.turn').length === n && off === 'false'; }"""
        self.page.wait_for_function(script, arg=turns, timeout=120_000)

    def heard(self) -> list[list[str]]:
        "What the kernel says that it has heard."
        self.run_cell(3)
        out = self.page.locator('.jp-Notebook .jp-Cell').nth(3).locator('.jp-OutputArea-output')
        was = out.inner_text() if out.count() else ''
        deadline = time.time() + 60
        while not out.count() or '[*]' in self.page.locator('.jp-Notebook .jp-Cell').nth(3).inner_text():
            assert time.time() < deadline, f'the kernel does not say what it has heard: {was}'
            time.sleep(.2)
        return [[text, reply.strip()] for text, reply in ast.literal_eval(out.inner_text())]


def type_while_busy(p: ChatPage) -> None:
    "At a person's speed, and in one burst, ahead of the kernel; what follows the last Enter stays in the field."
    p.run_cell(2)
    time.sleep(.5)
    p.field.click()
    p.type('Hello my friend', delay=100)
    p.press('Enter')
    p.type('Is it windy?\n')
    p.type('Good night\nleft in the field')
    p.wait_for(3)
    assert [text for text, _ in p.transcript()] == ['Hello my friend', 'Is it windy?', 'Good night'], p.transcript()
    assert p.field.input_value() == 'left in the field', p.field.input_value()
    assert p.transcript() == p.heard(), 'the view shows another conversation than the kernel has'
    assert p.transcript()[-1][1] in p.chat.locator('.aloud').text_content(), 'the last reply is not read aloud'


def stop_and_correct(p: ChatPage, shot) -> None:
    "Stop beside a cell that blocks the kernel; another reply; a corrected message; and keys that stay in the chat."
    p.field.fill('Tell me a long story about the sea, the wind and the lamp.')
    p.press('Enter')
    p.turns.nth(3).locator('.reply bdi').filter(has_text=re.compile(r'\w+ \w+ \w+')).wait_for(timeout=60_000)
    p.type('And then?\n')
    p.turns.nth(4).locator('.note').filter(has_text='queued').wait_for()
    p.run_cell(2)
    began = time.time()
    p.button('Stop').click()
    p.turns.nth(3).locator('.note').filter(has_text=re.compile('stopped', re.I)).wait_for(timeout=20_000)
    assert (took := time.time() - began) < 3, f'stop took {took:.1f} s beside a blocking cell'
    said = p.turns.nth(3).locator('.reply').inner_text()
    p.turns.nth(3).locator('.note').filter(has_text='Stopped.').wait_for(timeout=30_000)
    assert p.turns.nth(3).locator('.reply').inner_text().strip() == said.strip(), 'a reply goes on after its stop'
    p.wait_for(5)
    shot('6-chat')
    story, last = p.transcript()[3][1], p.transcript()[4][1]
    p.button('Another reply').click()
    p.page.wait_for_timeout(300)
    p.wait_for(5)
    assert p.transcript()[4][0] == 'And then?' and p.transcript()[4][1] != last and p.transcript()[3][1] == story
    p.button('Edit last').click()
    field = p.chat.get_by_role('textbox', name='Edit your last message')
    field.fill('one')
    p.press('Shift+Enter')
    p.type('two')
    p.press('Enter')
    p.page.wait_for_timeout(300)
    p.wait_for(5)
    assert p.transcript()[4][0] == 'one\ntwo', p.transcript()[4]
    p.field.fill('<b>bold</b> <|im_end|>')
    p.press('Enter')
    p.turns.nth(5).locator('.note').filter(has_text='control token').wait_for(timeout=20_000)
    shot('7-chat-error')
    p.turns.nth(5).get_by_role('button', name='Put back').click()
    assert p.field.input_value() == '<b>bold</b> <|im_end|>' and not p.chat.locator('b').count()
    cells = p.page.locator('.jp-Notebook .jp-Cell').count()
    for place in (p.button('Stop'), p.chat.get_by_role('log'), p.chat.locator('summary')):
        place.focus()
        for key in ('d', 'd', 'a', 'b', 'x'): p.press(key)
    assert p.page.locator('.jp-Notebook .jp-Cell').count() == cells, 'keys of the chat have reached the notebook'
    p.field.fill('')
    assert p.transcript() == p.heard(), 'the view shows another conversation than the kernel has'


def change_and_rerun(p: ChatPage, shot, script: str) -> None:
    "Another policy; the cell again; and a new kernel, in which the conversation goes on."
    before = p.transcript()
    n = len(before)
    p.chat.locator('summary').click()
    p.chat.get_by_role('combobox', name='policy').select_option('lyra')
    p.button('Apply from the next turn on').click()
    p.chat.get_by_role('status').filter(has_text='From the next turn on: lyra').wait_for(timeout=120_000)
    p.field.fill('a draft')
    p.run_cell(1)
    p.page.wait_for_timeout(1500)
    p.wait_for(n)
    p = ChatPage(p.page)
    assert p.transcript() == before and p.field.input_value() == 'a draft', (p.transcript(), p.field.input_value())
    p.page.evaluate("window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})")
    p.page.locator('body[data-jp-theme-name="JupyterLab Dark"]').wait_for(state='attached')
    shot('8-chat-dark')
    check_access(p.page, script, '.lyra-live')
    p.page.evaluate("void window.jupyterapp.commands.execute('notebook:restart-kernel')")
    p.page.locator('.jp-Dialog .jp-mod-accept').click()
    p.chat.get_by_text('The kernel does not answer').wait_for(timeout=30_000)
    p.field.fill('not heard')
    p.press('Enter')
    shot('9-chat-restarted')
    for i in (0, 1): p.run_cell(i)
    p.page.wait_for_timeout(2000)
    p.wait_for(n)
    p = ChatPage(p.page)
    assert p.transcript() == before and p.field.input_value() == 'not heard', (p.transcript(), p.field.input_value())
    p.field.click()
    p.press('Enter')
    p.wait_for(n + 1)
    assert p.transcript() == p.heard() and len(p.transcript()) == n + 1
    p.page.locator('.lyra-cache-map canvas').first.wait_for(timeout=20_000)
    shot('10-chat-views')


def watch(page, faults: list[str]):
    is_outside = lambda url: url.startswith(('http', 'ws')) and '//127.0.0.1' not in url
    page.on('pageerror', lambda e: faults.append(f'page error: {e}'))
    page.on('console', lambda m: m.type == 'error' and faults.append(f'console: {m.text}'))
    page.on('request', lambda r: is_outside(r.url) and faults.append(f'request to {r.url}'))
    return page


def open_notebook(page, server: Server, name: str) -> dict:
    "Start a kernel for a notebook and open it; returns the session."
    kernel = dict(path=f'nbs/{name}', name=name, type='notebook', kernel=dict(name='python3'))
    session = server.ask('POST', '/api/sessions', kernel)
    page.goto(f'{server.url}/lab/tree/nbs/{name}?token={server.token}&reset')
    page.locator('#jp-main-statusbar, #jp-bottom-panel').get_by_text('| Idle').first.wait_for(timeout=60_000)
    return session


def see_widgets(page, server: Server, notebook: Path, folder: Path) -> None:
    session = open_notebook(page, server, notebook.name)
    page.get_by_role('menuitem', name='Run', exact=True).click()
    page.get_by_role('menuitem', name='Run All Cells', exact=True).click()
    outputs = page.locator('.jp-OutputArea-output')
    trace = outputs.filter(has_text='Traceback (most recent call last)')
    fault = trace.or_(page.locator('.jp-Dialog'))                          # a dialog says that the kernel died
    outputs.get_by_text(DONE, exact=True).or_(fault).first.wait_for(timeout=1_800_000)
    assert not fault.count(), fault.first.inner_text()[-1500:]
    drive(page, folder)
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
    server.ask('DELETE', f"/api/sessions/{session['id']}")


def see_chat(page, server: Server, notebook: Path) -> None:
    session = open_notebook(page, server, notebook.name)
    p = ChatPage(page)
    shot = lambda name: page.locator('.lyra-live').last.screenshot(path=SHOTS/f'{name}.png')
    for i in (0, 1): p.run_cell(i)
    p.field.wait_for(timeout=120_000)
    script = axe(notebook.parent)
    check_access(page, script, '.lyra-live')
    type_while_busy(p)
    stop_and_correct(p, shot)
    p.chat.locator('summary').click()                       # with the settings open, and a reply that failed
    check_access(page, script, '.lyra-live')
    p.chat.locator('summary').click()
    change_and_rerun(p, shot, script)
    server.ask('DELETE', f"/api/sessions/{session['id']}")


def see_page(page, path: Path) -> None:
    "A saved notebook as HTML, with the network off."
    page.goto(f'file://{path}')
    is_whole = 'i => i.complete && i.naturalWidth > 300'
    pictures = [i for i in page.locator('img').all() if i.evaluate(is_whole) and i.is_visible()]
    assert len(pictures) >= 6, f'only {len(pictures)} pictures stand in the saved page'
    bare = [i for i in pictures if len(i.get_attribute('alt') or '') < 20]
    assert not bare, f'{len(bare)} pictures of the saved page have no alternative text'


def run(folder: Path, browser_path: str, parts: list[str]) -> None:
    from playwright.sync_api import sync_playwright
    notebook, server, faults = make_notebook(folder), Server(folder), []
    chat, view = chat_notebook(folder), dict(width=1400, height=1000)
    try:
        with sync_playwright() as p:
            context = p.chromium.launch_persistent_context(folder/'profile', executable_path=browser_path, args=FLAGS,
                                                           headless=True, viewport=view)
            page = watch(context.pages[0], faults)
            try:
                if 'widgets' in parts: see_widgets(page, server, notebook, folder)
                if 'chat' in parts: see_chat(page, server, chat)
            except Exception:
                page.screenshot(path=SHOTS/'failure.png')
                raise
            context.close()
            if 'widgets' in parts:
                convert = [sys.executable, '-m', 'nbconvert', '--to', 'html', notebook.name]
                subprocess.run(convert, cwd=notebook.parent, check=True, capture_output=True)
                browser = p.chromium.launch(executable_path=browser_path, args=FLAGS)
                see_page(browser.new_page(viewport=view, offline=True), notebook.with_suffix('.html'))
                check_pages(browser, folder)
                browser.close()
    finally: server.stop()
    assert not faults, '; '.join(faults[:5])


def problem(parts: list[str]) -> str | None:
    "What is wrong, '' if nothing, None if there is no browser to run in."
    path, why = chromium.get()
    if path is None:
        print(f'browser: not run, since {why}')
        return None
    SHOTS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        try: run(Path(folder), path, parts)
        except Exception as e:
            if (log := Path(folder)/'jupyter.log').exists(): shutil.copy(log, SHOTS)
            return f'{type(e).__name__}: {e}'
    return ''


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--only', choices=PARTS, help='one of the two notebooks; both when none is named')
    only = parser.parse_args().only
    fault = problem([only] if only else PARTS)
    if fault is not None: print(f"browser: {fault or f'ok, screenshots in {SHOTS.relative_to(ROOT)}'}")
    return int(bool(fault))


if __name__ == '__main__': sys.exit(main())
