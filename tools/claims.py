"""Every number of README.md is printed by a cell of its own, or stands in REPRODUCE.md, where its source is looked up.

In a row of REPRODUCE.md's table the claim's numbers are bold. The third column quotes what the file in the second one
says: the outputs of a notebook, or the text of a record. The quotation has to be there, and each bold number in it.
"""
import html, json, re, sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NUMBER = r'(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?(?![\w])'


def squeezed(text: str) -> str: return ' '.join(text.split())


def said(path: Path) -> str:
    "What a file says: of a notebook its outputs, without markup."
    if path.suffix != '.ipynb': return path.read_text(encoding='utf-8')
    outputs = [out for cell in json.loads(path.read_text(encoding='utf-8'))['cells'] for out in cell.get('outputs', ())]
    texts = [text for out in outputs
             for text in (out.get('text'), *(out.get('data', {}).get(f'text/{kind}') for kind in ('plain', 'markdown')))]
    return '\n'.join(''.join(text) for text in texts if text)


def digits(number: str) -> int:
    "The digits that a number is given with, its leading zeros aside."
    return max(1, len(re.sub(r'e.*|[^\d]', '', number).lstrip('0')))


def is_in(number: str, text: str) -> bool:
    "Whether a text has a number, or one that rounds to it."
    n, value = digits(number) - 1, float(number.replace(',', ''))
    return any(f"{float(x.replace(',', '')):.{n}e}" == f'{value:.{n}e}' for x in re.findall(NUMBER, text))


def rows(page: str) -> Iterator[list[str]]:
    "The cells of a table's rows, without its head."
    for line in page.splitlines():
        if line.startswith('| ') and not line.startswith(('| claim', '| ---')):
            yield [cell.strip() for cell in re.split(r'(?<!\\)\|', line)[1:-1]]


def faults_of(row: list[str]) -> Iterator[str]:
    "What is wrong with one claim."
    claim, where, quoted = row[0], ROOT/row[1].strip('`'), row[2].strip('`')
    if not where.is_file():
        yield f'{row[1]} is not there'
        return
    if squeezed(quoted) not in squeezed(said(where)): yield f'{row[1]} does not say “{quoted}”'
    for number in re.findall(rf'\*\*({NUMBER})\*\*', claim):
        if not is_in(number, quoted): yield f'“{claim}”: {number} is not in what {row[1]} says'


def prose(page: str) -> str:
    "A page without code, links, and names of versions and models."
    for pattern in (r'```.*?```', r'<!--.*?-->', r'!\[.*?\]\(.*?\)', r'\]\(.*?\)', r'`[^`\n]*`'):
        page = re.sub(pattern, ' ', page, flags=re.S)
    return re.sub(r'^    .*$', ' ', page, flags=re.M)


def unproven(page: str, claims: str) -> list[str]:
    "The numbers of a page that no claim states; numbers below ten count things, and are left alone."
    sources = ' '.join((said(ROOT/'nbs'/'index.ipynb'), (ROOT/'settings.ini').read_text(encoding='utf-8'),
                        (ROOT/'LICENSE').read_text(encoding='utf-8'), *re.findall(r'\*\*(.*?)\*\*', claims)))
    known = {n.strip(',') for n in re.findall(r'\d[\d,]*(?:\.\d+)?(?:e-?\d+)?', sources)}
    found = [n.rstrip(',').lstrip('-') for n in re.findall(NUMBER, prose(page))]
    return sorted({n for n in found if n not in known and not re.fullmatch(r'\d', n)})


def faults() -> list[str]:
    claims = (ROOT/'REPRODUCE.md').read_text(encoding='utf-8')
    found = [fault for row in rows(claims) for fault in faults_of(row)]
    missing = unproven((ROOT/'README.md').read_text(encoding='utf-8'), claims)
    return found + [f'README.md says {number}, which REPRODUCE.md does not' for number in missing]


if __name__ == '__main__':
    found = faults()
    print('\n'.join(found) or 'ok')
    sys.exit(bool(found))
