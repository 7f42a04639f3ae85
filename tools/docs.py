"""Build the documentation site: the notebooks with their committed outputs, and the reference of the package.

Nothing is executed, and the pages load nothing from another host: MathJax is laid beside them. Exits with 1 where
Sphinx warns, a link is dead, or something would be loaded from elsewhere.
"""
import argparse, html, os, re, shutil, subprocess, sys, tarfile, tempfile, time
from collections.abc import Iterator
from configparser import ConfigParser
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

import chromium, reference

try:
    import nbformat
    from sphinx.application import Sphinx
except ImportError: sys.exit('The site is built by Sphinx, which is not here: `pip install -e ".[site]"`.')

ROOT = Path(__file__).resolve().parent.parent
MATHJAX = 'mathjax@3.2.2'      # the last version that has its fonts in the script
FRAMED = 'nbs/pages'           # pictures that one can point at, as HTML files: notebook 90 writes them
AXE, REPOSITORY = 'axe-core@4', 'https://github.com/fborgnia/lyra'
HIDDEN = re.compile(r'#\|\s*(hide|default_exp)|(nbdev\.)?nbdev_export\(')
WIDGET = 'application/vnd.jupyter.widget-view+json'
# Printed tables keep their columns, and the code's lines of 120 columns fit where the screen is wide enough.
CSS = """.cell_output pre { white-space: pre; overflow-x: auto; }
.cell_output details { margin: .25rem 0 1rem; }
.cell_output table.dataframe { width: auto; table-layout: auto; font-size: .85em; }
.cell_output table.dataframe td { text-align: right; }
.cell_output table.dataframe :is(th, td) { min-width: 0; }
html[data-theme] .bd-content div.cell_output .text_html:has(> details) { background: none; color: inherit; padding: 0; }
iframe.picture { width: 100%; height: 44rem; border: 1px solid var(--pst-color-border); }
div.highlight pre { font-size: .8em; }
.bd-page-width { max-width: 104rem; }
.bd-main .bd-content .bd-article-container { max-width: 68rem; }
.bd-article :is(p, li, blockquote) { max-width: 52rem; }
"""
CONF = dict(
    project='Lyra', language='en', html_title='Lyra', html_theme='sphinx_book_theme', extensions=['myst_nb'],
    html_static_path=['_static'], html_extra_path=['_extra'], html_css_files=['lyra.css'], html_show_copyright=False, html_copy_source=False,
    nb_execution_mode='off', nb_merge_streams=True, nb_render_markdown_format='gfm', nb_ipywidgets_js={},
    myst_enable_extensions=['amsmath', 'colon_fence', 'dollarmath', 'fieldlist'], myst_heading_anchors=3,
    mathjax_path='mathjax/tex-svg.js', add_module_names=False, toc_object_entries_show_parents='hide',
    html_context=dict(default_mode='auto'), html_theme_options=dict(
        repository_url=REPOSITORY, use_repository_button=True, use_download_button=False, home_page_in_toc=True,
        show_navbar_depth=1, show_toc_level=2, navbar_persistent=[], footer_content_items=[]))

CSS_URL = re.compile(r'''(?:url\(\s*['"]?|@import\s+['"])([^'")\s]+)''')
# A code block, a heading, a link, or a text between backticks.
PIECE = re.compile(r'^(?P<fence>`{3,}|~{3,})[^\n]*\n.*?^(?P=fence)[ ]*$|^\#[^\n]*$|\[[^\]]*\]\((?P<url>[^)\s]+)\)'
                   r'|(?<!`)`(?P<code>[^`\n]+)`(?!`)', flags=re.M | re.S)


class SiteError(Exception):
    "What is wrong, and the remedy."


def described(project: Path) -> str:
    "One sentence on an archived project, from its settings."
    config = ConfigParser(delimiters=['='], interpolation=None)
    config.read(project/'settings.ini', encoding='utf-8')
    return config['DEFAULT']['description']


class Pages:
    "Which texts between backticks are names of pages, or of things that the reference tells of."

    def __init__(self, modules: list[reference.Module], pages: list[str]):
        self.pages = {page: page for page in pages} | {'nbs/index.ipynb': 'index.ipynb', 'README.md': 'index.ipynb'}
        self.module = {m.notebook: m.name for m in modules}
        self.homes: dict[str, list[str]] = {}
        for m in modules:
            for name in m.public: self.homes.setdefault(name, []).append(m.name)

    def find(self, text: str, page: str) -> str | None:
        "The page that a text names, seen from a page."
        folder = os.path.dirname(page)
        places = (os.path.normpath(f'{base}/{text}{end}' if base else text + end)
                  for base in (folder, '', 'nbs', 'archive') for end in ('', '.ipynb', '/README.md'))
        return next((self.pages[place] for place in places if place in self.pages), None)

    def role(self, text: str, page: str) -> str | None:
        "The role of a module, or of a public name: of the page's own module, or one that means nothing else."
        if text in self.module.values(): return f'{{py:mod}}`{text}`'
        homes = self.homes.get(text, [])
        own = self.module.get(page)
        if own in homes: return f'{{py:obj}}`{text} <{own}.{text}>`'
        distinct = len(homes) == 1 and (text != text.lower() or '_' in text)
        return f'{{py:obj}}`{text} <{homes[0]}.{text}>`' if distinct else None

    def link(self, found: re.Match, page: str) -> str:
        "What Sphinx is given for one piece of Markdown that `PIECE` found."
        text, url = found['code'], found['url']
        if text:
            if (there := self.find(text, page)): return f'[`{text}`]({relative(there, page)})'
            return self.role(text, page) or found[0]
        if not url or urlsplit(url).scheme or url.startswith('#'): return found[0]
        path, hash_, heading = url.partition('#')
        if (there := self.find(path, page)): return found[0].replace(url, relative(there, page) + hash_ + heading)
        file = os.path.normpath(os.path.join(os.path.dirname(page), path))
        if file.startswith(FRAMED): return framed(found[0].partition(']')[0].lstrip('['), relative(file, page))
        return found[0].replace(url, f'{REPOSITORY}/blob/main/{file}') if (ROOT/file).exists() else found[0]

    def linked(self, markdown: str, page: str) -> str:
        "Markdown whose mentions of pages and public names are links, with words for pictures of other hosts."
        markdown = re.sub(r'!\[([^\]]*)\]\(https?://[^)]*\)', r'\1', markdown)
        return PIECE.sub(lambda found: self.link(found, page), markdown)


def framed(text: str, url: str) -> str:
    "A link to a page, and behind the link's paragraph the page itself."
    words = html.escape(text)
    return f'<a href="{url}">{words}</a>\n\n<iframe class="picture" src="{url}" title="{words}" loading="lazy"></iframe>'


def relative(there: str, page: str) -> str:
    "The path from the folder in which a page stands on the site."
    return os.path.relpath(there, os.path.dirname('' if page == 'nbs/index.ipynb' else page) or '.')


def alternative(cell: nbformat.NotebookNode, section: str) -> str:
    "What a cell's pictures show, in words; the section that they stand in, where the notebook does not say."
    shown = [output.get('metadata', {}).get(kind, {}).get('alt', '') for output in cell.outputs
             for kind in output.get('data', ()) if kind.startswith('image/')]
    return ' '.join(filter(None, shown)) or f'Figure in the section "{section}"'


def cells(path: Path, page: str, pages: Pages) -> Iterator[nbformat.NotebookNode]:
    "What is shown of a notebook: without hidden cells, directives, and widgets, which need a running kernel."
    section = ''
    for cell in nbformat.read(path, as_version=4).cells:
        if HIDDEN.match(cell.source): continue
        if cell.cell_type == 'markdown':
            section = re.findall('^#+ (.+)$', f'# {section}\n{cell.source}', flags=re.M)[-1]
            cell.source = pages.linked(cell.source, page)
        if cell.cell_type == 'code':
            if re.match(r'#\|\s*exporti?\b', cell.source):
                yield nbformat.v4.new_markdown_cell(f'({reference.anchor(page, cell.id)})=')
            if re.match(r'#\|\s*echo:\s*false', cell.source): cell.metadata.tags = ['remove-input']
            cell.source = re.sub(r'^#\|.*\n?', '', cell.source, flags=re.M)
            cell.outputs = [o for o in cell.outputs if WIDGET not in o.get('data', {})]
            cell.metadata.mystnb = {'image': {'alt': alternative(cell, section)}}
        if cell.source.strip() or cell.get('outputs'): yield cell


def stale() -> list[str]:
    "Pages that were made with another script than the package has."
    script = (ROOT/'lyra'/'static'/'view.js').read_text(encoding='utf-8')
    remedy = 'has another view.js than the package: set LYRA_PAGES=pages and run nbs/90_widgets.ipynb'
    paths = sorted((ROOT/FRAMED).glob('*.html'))
    return [f'{path.relative_to(ROOT)} {remedy}' for path in paths if script not in path.read_text(encoding='utf-8')]


def toctree(caption: str, *entries: str) -> str:
    name = f':caption: {caption}\n' if caption else ''
    return '\n'.join([f'```{{toctree}}\n:hidden:\n{name}', *entries, '```'])


def title(path: Path) -> str: return re.match('# (.+)', nbformat.read(path, as_version=4).cells[0].source)[1]


def numbered(folder: Path) -> list[str]:
    "The entries of a folder's notebooks, by number."
    paths = [path for path in sorted(folder.glob('[0-9]*.ipynb'))]
    return [f'{path.name[:2]} {title(path)} </{path.relative_to(ROOT).with_suffix("")}>' for path in paths]


def front() -> str:
    "The contents of the whole site."
    return '\n\n'.join([toctree('Notebooks', *numbered(ROOT/'nbs')), toctree('Reference', '/reference/index'),
                        toctree('Archive', '/archive/README', '/archive/comparison'), toctree('What failed', '/LOG')])


def index_of(modules: list[reference.Module]) -> str:
    "The front of the reference."
    front = reference.front_names(ROOT/'lyra'/'__init__.py')
    rows = [f'| `{m.name}` | {reference.plain(m.summary)} | `{m.notebook}` |' for m in modules]
    names = [m.name.partition('.')[2] for m in modules]
    return '\n'.join(['# The package', '', 'Every public name of every module, as its notebook documents it. '
                      f'From the package itself, `from lyra import ...` gives {front}.', '',
                      '| module | what it holds | notebook |', '| --- | --- | --- |', *rows, '', toctree('', *names)])


def texts(modules: list[reference.Module]) -> dict[str, str]:
    "The pages that are no notebooks, by path."
    archive = ROOT/'archive'
    found = {f'reference/{m.name.partition(".")[2]}.md': reference.page(m) for m in modules}
    found |= {'reference/index.md': index_of(modules), 'LOG.md': (ROOT/'LOG.md').read_text(encoding='utf-8')}
    projects = sorted(path.parent for path in archive.glob('*/settings.ini'))
    for folder in projects:
        own = folder/'README.md'
        text = own.read_text(encoding='utf-8') if own.exists() else f'# {folder.name}\n\n{described(folder)}\n'
        found[f'archive/{folder.name}/README.md'] = f'{text}\n{toctree("", *numbered(folder/"nbs"))}\n'
    within = toctree('', *(f'/archive/{folder.name}/README' for folder in projects))
    found['archive/README.md'] = f'{(archive/"README.md").read_text(encoding="utf-8")}\n{within}\n'
    return found


def write_sources(folder: Path) -> None:
    "All that Sphinx reads."
    modules = reference.modules(ROOT/'lyra')
    markdown = texts(modules)
    notebooks = [str(path.relative_to(ROOT)) for pattern in ('nbs/*.ipynb', 'archive/*.ipynb', 'archive/*/nbs/*.ipynb')
                 for path in sorted(ROOT.glob(pattern))]
    pages = Pages(modules, [*notebooks, *markdown])
    shutil.copytree(ROOT/FRAMED, folder/'_extra'/FRAMED)
    for page, text in markdown.items():
        (folder/page).parent.mkdir(parents=True, exist_ok=True)
        (folder/page).write_text(pages.linked(text, page), encoding='utf-8')
    for page in notebooks:
        found = nbformat.v4.new_notebook(cells=list(cells(ROOT/page, page, pages)))
        found.metadata = {'kernelspec': {'name': 'python3', 'display_name': 'Python', 'language': 'python'}}
        if page == 'nbs/index.ipynb': found.cells.append(nbformat.v4.new_markdown_cell(front()))
        target = folder/pages.pages[page]
        target.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(found, target)


def packed(package: str, names: dict[str, str], folder: Path) -> bool:
    "Fetch files of an npm package, each under a name of our own; False where npm or its registry is not there."
    command = ['npm', 'pack', '--silent', '--fetch-retries=0', '--fetch-timeout=30000', package]
    try: subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.SubprocessError): return False
    with tarfile.open(next(folder.glob('*.tgz'))) as archive:
        for name, own in names.items(): (folder/own).write_bytes(archive.extractfile(f'package/{name}').read())
    return True


def lay_mathjax(folder: Path, given: Path | None, former: Path) -> str:
    "Put MathJax into a folder: the given one, the former site's, or npm's. Tells where it is from; '' from nowhere."
    folder.mkdir(parents=True)
    script = folder/'tex-svg.js'
    for place in [given, given/'es5'] if given else [former]:
        if (place/script.name).exists() and (place/script.name).stat().st_size:
            for name in ('tex-svg.js', 'LICENSE'):
                if (place/name).exists(): shutil.copy(place/name, folder)
            return str(place)
    if given: raise SiteError(f'{given} has no tex-svg.js: name the folder of MathJax 3, or leave --mathjax out.')
    with tempfile.TemporaryDirectory() as tmp:
        if packed(MATHJAX, {'es5/tex-svg.js': 'tex-svg.js', 'LICENSE': 'LICENSE'}, Path(tmp)):
            for name in ('tex-svg.js', 'LICENSE'): shutil.copy(Path(tmp)/name, folder)
            return MATHJAX
    script.touch()      # the pages ask for it
    return ''


def named(page: str) -> str:
    "A page on which the theme's controls say what they are: it leaves the arrows of the contents without a name."
    item = r'(<a class="[^"]*" href="[^"]*">([^<]*)</a><details[^>]*><summary)>'
    page = re.sub(item, r'\1 aria-label="Pages of \2">', page)
    return re.sub(r'(<button class="[^"]*search-button-field[^"]*" title="Search") aria-label="Search"', r'\1', page)


class Page(HTMLParser):
    "What a built page links to, what it loads, and the anchors that it has."

    def __init__(self, path: Path):
        super().__init__()
        self.anchors: set[str] = {'', 'top'}
        self.links: list[str] = []
        self.loads: list[str] = []
        self.mute: list[str] = []       # pictures without words
        self.feed(path.read_text(encoding='utf-8'))

    def handle_starttag(self, tag: str, attributes: list) -> None:
        found = {key: value or '' for key, value in attributes}
        self.anchors |= {found.get('id', ''), found.get('name', '') if tag == 'a' else ''}
        if tag == 'img' and found.get('alt') in (None, '', found.get('src')): self.mute.append(found.get('src', ''))
        links = tag == 'a' or tag == 'link' and found.get('rel') in ('next', 'prev', 'index', 'search', 'canonical')
        urls = [found[key] for key in ('href', 'src', 'data', 'poster') if found.get(key)]
        urls += [part.split()[0] for part in found.get('srcset', '').split(',') if part.strip()]
        (self.links if links else self.loads).extend(urls)
        self.loads += re.findall(CSS_URL, found.get('style', ''))

    def handle_data(self, data: str) -> None:
        if self.lasttag == 'style': self.loads += re.findall(CSS_URL, data)


def faults(site: Path) -> list[str]:
    "Dead links and anchors between pages, pictures without words, and what would be loaded from another host."
    built = (path for path in sorted(site.rglob('*.html')) if '_static' not in path.parts)      # the theme's templates
    pages, found = {path: Page(path) for path in built}, []
    for path, page in pages.items():
        where = path.relative_to(site)
        found += [f'{where}: {url} has no alternative text' for url in page.mute]
        for url in [*page.links, *page.loads]:
            parts = urlsplit(url)
            if parts.scheme in ('http', 'https') or parts.netloc:
                if url in page.loads: found.append(f'{where} loads {url}')
            elif not parts.scheme and (fault := dead(path, parts, pages)): found.append(f'{where}: {url} {fault}')
    for path in site.rglob('*.css'):
        urls = re.findall(CSS_URL, path.read_text(encoding='utf-8'))
        found += [f'{path.relative_to(site)} loads {url}' for url in urls if re.match('(https?:)?//', url)]
    return found


def dead(path: Path, parts: SplitResult, pages: dict[Path, Page]) -> str:
    "'' if what an internal link names is there."
    target = path if not parts.path else Path(os.path.normpath(path.parent/unquote(parts.path)))
    if target.is_dir(): target = target/'index.html'
    if not target.exists(): return 'is not there'
    known = pages[target].anchors if target in pages else {parts.fragment}
    return '' if parts.fragment in known or unquote(parts.fragment) in known else 'has no such anchor'


def build(out: Path, mathjax: Path | None) -> list[str]:
    "Build the site into a folder, whose former site it replaces; returns what is wrong with it."
    if out.is_file() or out.exists() and any(out.iterdir()) and not (out/'objects.inv').exists():
        raise SiteError(f'{out} holds something else than a site: name a new folder, or an empty one.')
    with tempfile.TemporaryDirectory() as tmp:
        sources, pages = Path(tmp)/'sources', Path(tmp)/'pages'
        write_sources(sources)
        origin = lay_mathjax(sources/'_static'/'mathjax', mathjax, out/'_static'/'mathjax')
        print(f"MathJax: {origin or 'not to be had, so formulas are shown as TeX; name a folder with --mathjax'}")
        (sources/'_static'/'lyra.css').write_text(CSS, encoding='utf-8')
        app = Sphinx(sources, None, pages, Path(tmp)/'trees', 'html', confoverrides=CONF, status=None,
                     warningiserror=True, parallel=min(4, os.cpu_count() or 1))
        app.build()
        for path in pages.rglob('*.html'): path.write_text(named(path.read_text(encoding='utf-8')), encoding='utf-8')
        if out.exists(): shutil.rmtree(out)
        shutil.move(pages, out)
    return (['Sphinx has warned, see above'] if app.statuscode else []) + faults(out) + stale()


AXE_PAGES = 'index.html', 'nbs/40_policy.html', 'nbs/90_widgets.html', 'reference/policy.html'
AXE_RUN = """async () => (await axe.run()).violations.flatMap(v => v.nodes.map(n =>
    `${document.querySelector(n.target)?.closest('article') ? 'ours' : 'theme'}: ${v.impact} ${v.id} ${n.target}`))"""


def seen(site: Path, names: tuple[str, ...]) -> list[str]:
    "What axe-core and the network say of some pages in a browser; axe-core is fetched for the check alone."
    from playwright.sync_api import sync_playwright
    browser, why = chromium.get()
    if browser is None: raise SiteError(why)
    with tempfile.TemporaryDirectory() as tmp, sync_playwright() as playwright:
        if not packed(AXE, {'axe.min.js': 'axe.min.js'}, Path(tmp)):
            raise SiteError(f'{AXE} could not be fetched: try again where npm and its registry can be reached.')
        page, found = playwright.chromium.launch(executable_path=browser, args=['--no-sandbox']).new_page(), []
        page.on('request', lambda asked: found.extend([f'ours: asked for {asked.url}'] if 'http' in asked.url else []))
        for name in names:
            page.goto((site/name).as_uri(), wait_until='load')
            page.wait_for_timeout(1500)     # MathJax
            page.add_script_tag(path=f'{tmp}/axe.min.js')
            found += [f'{name}, {said}' for said in page.evaluate(AXE_RUN)]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('out', nargs='?', type=Path, default=ROOT/'_site', metavar='OUT', help='default _site/')
    parser.add_argument('--mathjax', type=Path, metavar='FOLDER', help="a folder with MathJax 3's tex-svg.js")
    parser.add_argument('--gaps', action='store_true', help='only list what the package leaves undocumented')
    parser.add_argument('--axe', action='store_true', help='also check some pages with axe-core in a browser')
    args, start = parser.parse_args(), time.perf_counter()
    missing = [gap for module in reference.modules(ROOT/'lyra') for gap in reference.gaps(module)]
    if args.gaps:
        print(*missing, f'{len(missing)} gaps', sep='\n')
        return 0
    try:
        wrong = build(args.out.resolve(), args.mathjax)
        said = seen(args.out.resolve(), AXE_PAGES) if args.axe else []
    except SiteError as error:
        print(error)
        return 1
    wrong += [line for line in said if re.search(': (serious|critical|asked)', line)]
    for line in [*wrong, *(line for line in said if line not in wrong)]: print(line)
    count = sum(1 for _ in args.out.rglob('*.html'))
    print(f'{args.out}: {count} pages in {time.perf_counter() - start:.0f} s, {len(wrong)} faults, '
          f'{len(missing)} gaps in the reference (--gaps lists them)')
    return int(bool(wrong))


if __name__ == '__main__': sys.exit(main())
