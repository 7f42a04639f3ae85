// One view of a recorded conversation: panels of numbers that one can point at.
// The kernel sends a scene: what is in view, as JSON, with all numbers of its panels in one block of bytes.
// A panel has planes of rows x columns. Its kind says how it is drawn: 'states' and 'shades' as cells, 'words' as
// running text, 'lines' as curves, 'points' as marks.
// Everything from outside becomes text (textContent), never markup.

const CELL = 14, GAP = 8, AXIS = 34, MARGIN = 12, HEIGHT = 170, WIDEST = 760;      // pixels
const clamp = (x, low, high) => Math.min(Math.max(x, low), high);
const isolated = text => `\u2068${text}\u2069`;           // right-to-left text turns nothing around it

export function make(tag, parent, attributes = {}, text = '') {
  const node = parent.appendChild(document.createElement(tag));
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.textContent = text;
  return node;
}

// A live region is read aloud when it is written to, so what is the same is not written again.
export function say(node, text) { if (node.textContent !== text) node.textContent = text; }

// ---- the numbers of a scene

function unpack(scene) {
  const bytes = scene.data, at = i => bytes.byteOffset + i;
  let start = 0;
  return scene.panels.map(meta => {
    const [planes, rows, columns] = meta.shape, n = planes*rows*columns, size = meta.dtype === 'uint8' ? 1 : 4;
    const block = bytes.buffer.slice(at(start), at(start + n*size));
    start += n*size;
    const numbers = size === 1 ? new Uint8Array(block) : new Float32Array(block);
    return { ...meta, height: rows, width: columns, value: (p, r, c) => numbers[(p*rows + r)*columns + c] };
  });
}

function written(x, unit) {
  if (Number.isNaN(x)) return 'not measured';
  if (unit === '%') return `${(100*x).toFixed(1)} %`;
  return `${x.toFixed(2)}${unit ? ' ' + unit : ''}`;
}

// The ticks of a scale: round numbers in equal steps, all with as many decimals.
function ticks({ low, high, unit }, most) {
  const times = unit === '%' ? 100 : 1, rough = times*((high - low) || 1)/most;
  const power = 10**Math.floor(Math.log10(rough)), step = power*[1, 2, 5, 10].find(k => k*power >= rough*.999);
  const decimals = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const first = Math.ceil(times*low/step - 1e-6), last = Math.floor(times*high/step + 1e-6), out = [];
  for (let i = first; i <= last; i++) out.push([i*step/times, (i*step).toFixed(decimals) + (unit === '%' ? ' %' : '')]);
  return out;
}
const find = (axis, key) => axis.ends ? axis.keys.findIndex((k, i) => k <= key && key < axis.ends[i])
  : axis.keys.indexOf(key);

// ---- where the cells of a panel are, and how they are drawn

const isFlat = ({ kind }) => kind === 'lines' || kind === 'points';      // drawn on scales, not in cells

function layout(panel, room) {
  const { columns, height, width, kind, planes } = panel, left = isFlat(panel) ? 64 : panel.left;
  const groups = columns.groups || [], wide = kind === 'points' ? Math.min(room, WIDEST) : room;
  const spare = wide - left - MARGIN - GAP*groups.length;
  const px = isFlat(panel) ? spare/width : clamp(spare/width, 3, kind === 'shades' && width < 64 ? 64 : CELL);
  const before = c => GAP*groups.filter(([at]) => at > 0 && at <= c).length;
  const x = c => left + c*px + before(c), y = r => 4 + r*CELL;
  const tall = kind === 'points' ? 2*HEIGHT : kind === 'lines' ? HEIGHT : height*CELL;
  const share = (v, { low, high }) => (v - low)/((high - low) || 1), up = planes[kind === 'points' ? 3 : 0];
  const at = { left, px, x, y, right: x(width - 1) + px, tall, full: tall + 4 + AXIS,
    height: v => 8 + (1 - share(v, up))*(tall - 16), across: v => left + 8 + share(v, planes[0])*(spare - 16),
    ends: (r, c) => [1, 2, 4, 5].map(p => (p < 3 ? at.across : at.height)(panel.value(p, r, c))),
    spot: (r, c) => kind === 'points' ? [at.across(panel.value(0, r, c)), at.height(panel.value(3, r, c))]
      : [x(c) + px/2, at.height(panel.value(0, r, c))],
    column: from => { for (let c = 0; c < width; c++) if (from >= x(c) && from < x(c) + px) return c; return -1; } };
  return at;
}

function paintCells(panel, at, g, view) {
  const { x, y, px } = at, plane = view.plane(panel), { states, shades } = view.look;
  const scale = panel.planes[plane];
  for (let r = 0; r < panel.height; r++) for (let c = 0, n; c < panel.width; c += n) {
    const v = panel.value(plane, r, c), edge = k => (panel.columns.groups || []).some(([first]) => first === k);
    n = 1;
    if (panel.kind === 'states') {                          // a run of equal cells gets one letter
      while (c + n < panel.width && panel.value(plane, r, c + n) === v && !edge(c + n)) n++;
      const [, letter, paper, ink] = states[v];
      if (!paper) continue;
      g.fillStyle = paper; g.fillRect(x(c), y(r), n*px + .3, CELL - 1);
      g.fillStyle = ink;
      if (n*px > 11) g.fillText(letter, x(c) + n*px/2, y(r) + CELL/2);
    } else if (!Number.isNaN(v)) {
      const [paper, ink] = view.shade(v, scale);
      g.fillStyle = paper; g.fillRect(x(c), y(r), px - (px > 6 ? 1 : 0) + .3, CELL - 1);
      g.fillStyle = ink;
      if (px > 26) g.fillText(scale.unit === '%' ? (100*v).toFixed(0) : v.toFixed(1), x(c) + px/2, y(r) + CELL/2);
    }
  }
  g.fillStyle = view.ink; g.textAlign = 'right';
  panel.rows.ticks.forEach((tick, r) => g.fillText(tick, at.left - 6, y(r) + CELL/2));
}

function paintHeights(scale, most, at, g, view) {
  g.fillStyle = '#fff'; g.fillRect(at.left, 0, at.right - at.left + MARGIN, at.tall);   // the colours need white
  g.textAlign = 'right';
  for (const [v, text] of ticks(scale, most)) {
    g.fillStyle = view.ink; g.fillText(text, at.left - 6, at.height(v));
    g.fillStyle = '#ddd'; g.fillRect(at.left, at.height(v), at.right - at.left, 1);
  }
}

function paintLines(panel, at, g, view) {
  paintHeights(panel.planes[0], 4, at, g, view);
  const now = find(panel.columns, view.get(panel.columns.of));
  if (now >= 0) { g.fillStyle = '#555'; g.fillRect(at.x(now) + at.px/2 - .5, 0, 1, at.tall); }
  for (let r = 0; r < panel.height; r++) {
    const [color, dash] = panel.looks[r];
    g.strokeStyle = g.fillStyle = color; g.setLineDash(dash); g.lineWidth = 1.5; g.beginPath();
    const known = [...Array(panel.width).keys()].filter(c => !Number.isNaN(panel.value(0, r, c)));
    known.forEach((c, i) => g[i ? 'lineTo' : 'moveTo'](...at.spot(r, c)));
    g.stroke(); g.setLineDash([]);
    if (known.length < 60) for (const c of known) { g.beginPath(); g.arc(...at.spot(r, c), 2.5, 0, 7); g.fill(); }
  }
}

// Points: planes 0 to 2 are a number across and its interval's ends, 3 to 5 the same up, 6 how many were measured.
// Shapes by matplotlib's names: corners, turned by degrees, and how far in every other corner is.
const SHAPES = { o: [40, 0], s: [4, 45], D: [4, 0], d: [4, 0, .5], '^': [3, -90], v: [3, 90], '<': [3, 180],
  '>': [3, 0], '*': [5, -90, .4], P: [4, 0, .4], X: [4, 45, .4], H: [6, 0], p: [5, -90], h: [6, 30] };

function shape(g, [x, y], marker, size) {
  const [corners, turned, within] = SHAPES[marker] || SHAPES.o, n = within ? 2*corners : corners;
  g.beginPath();
  for (let i = 0; i < n; i++) {
    const angle = (turned + 360*i/n)*Math.PI/180, far = within && i % 2 ? within*size : size;
    g.lineTo(x + far*Math.cos(angle), y + far*Math.sin(angle));
  }
  g.closePath();
}

const marksOf = (panel, r) => [...Array(panel.width).keys()].filter(c => !Number.isNaN(panel.value(0, r, c)));

function paintPoints(panel, at, g, view) {
  paintHeights(panel.planes[3], 7, at, g, view);
  const turn = find(panel.columns, view.get(panel.columns.of)), newest = [];
  for (let r = 0; r < panel.height; r++) {
    const [color, marker] = panel.looks[r], marks = marksOf(panel, r), now = marks.filter(c => c <= turn).at(-1);
    g.strokeStyle = g.fillStyle = color;
    g.lineWidth = 1; g.globalAlpha = .5; g.beginPath();     // a method's way from turn to turn
    for (const c of marks) g.lineTo(...at.spot(r, c));
    g.stroke();
    for (const c of marks) {
      const [x0, x1, y0, y1] = at.ends(r, c);
      g.fillStyle = color; g.globalAlpha = c === now ? .16 : .05; g.beginPath();
      if (!Number.isNaN(x0)) g.ellipse((x0 + x1)/2, (y0 + y1)/2, (x1 - x0)/2, (y0 - y1)/2, 0, 0, 7);
      g.fill();
      g.fillStyle = c === now ? color : '#fff'; g.globalAlpha = 1; g.lineWidth = 1.5;
      shape(g, at.spot(r, c), marker, 6); g.fill(); g.stroke();
    }
    if (now !== undefined) newest.push([r, now]);
  }
  const row = find(panel.rows, view.get(panel.rows.of));
  if (row >= 0 && turn >= 0) bars(at, g, [row, turn]);
  nameMarks(panel, at, g, newest);
}

function bars(at, g, [r, c]) {                             // the chosen mark's intervals
  const [x, y] = at.spot(r, c), [x0, x1, y0, y1] = at.ends(r, c);
  g.lineWidth = 1.5; g.strokeStyle = '#000'; g.beginPath();
  g.moveTo(x0, y); g.lineTo(x1, y); g.moveTo(x, y0); g.lineTo(x, y1); g.stroke();
}

function nameMarks(panel, at, g, marks) {                   // beside each mark, where no other name or mark is
  const taken = marks.map(mark => at.spot(...mark)).map(([x, y]) => [x - 7, y - 7, x + 7, y + 7]);
  g.textAlign = 'left'; g.fillStyle = '#000'; g.strokeStyle = '#fff'; g.lineWidth = 3;
  for (const [r, c] of marks) {
    const [x, y] = at.spot(r, c), name = panel.rows.ticks[r], wide = g.measureText(name).width;
    const left = -10 - wide, over = -wide/2;
    const boxes = [[10, 0], [left, 0], [over, -15], [over, 15], [10, -15], [10, 15], [left, -15], [left, 15]]
      .map(([dx, dy]) => [x + dx, y + dy - 6, x + dx + wide, y + dy + 6]);
    const free = ([a, b, c, d]) => a > at.left && c < at.right && b > 0 && d < at.tall &&
      !taken.some(([e, f, h, i]) => a < h && c > e && b < i && d > f);
    const box = boxes.find(free) || boxes[0];
    taken.push(box); g.strokeText(name, box[0], box[1] + 6); g.fillText(name, box[0], box[1] + 6);
  }
}

function paintColumnTicks(panel, at, g, view) {
  g.fillStyle = view.ink; g.textAlign = 'center';
  const { planes: [scale], columns } = panel;
  const marked = panel.kind === 'points' ? ticks(scale, 7).map(([v, text]) => [at.across(v), text])
    : columns.ticks.map((text, c) => [at.x(c) + at.px/2, text]);
  let free = -Infinity;
  for (const [middle, text] of marked) {
    const half = g.measureText(text).width/2;
    if (middle - half < free) continue;
    g.fillRect(middle - .5, at.tall + 4, 1, 3); g.fillText(text, middle, at.tall + 14);
    free = middle + half + 12;
  }
  g.textAlign = 'left'; free = -Infinity;
  for (const [first, name] of columns.groups || [[0, panel.kind === 'points' ? scale.name : columns.name]]) {
    const from = Math.max(at.x(first), free);
    g.fillText(name, from, at.tall + 28);
    free = from + g.measureText(name).width + 10;
  }
}

// The cell under a pointer: of lines and points the nearest one that was measured.
function hit(panel, at, px, py) {
  if (!isFlat(panel)) {
    const r = Math.floor((py - 4)/CELL), c = at.column(px);
    return c >= 0 && r >= 0 && r < panel.height ? [r, c] : null;
  }
  let best = null, least = panel.kind === 'points' ? 20 : Math.max(30, .75*at.px);
  for (let r = 0; r < panel.height; r++) for (let c = 0; c < panel.width; c++) {
    const [x, y] = at.spot(r, c), far = Math.hypot(x - px, y - py);
    if (far < least) [best, least] = [[r, c], far];
  }
  return best;
}

// ---- the view

export function mount(model, el) {
  const get = name => model.get(name);
  const root = make('div', el, { class: 'lyra-view', role: 'group' });
  const bar = make('div', root, { class: 'bar' }), status = make('div', root, { role: 'status' });
  const pinned = make('div', root, { class: 'pin', 'aria-live': 'polite' });
  const stage = make('div', root, { class: 'stage' }), notes = make('div', root, { class: 'notes' });
  const foot = make('div', root, { class: 'bar' });         // its button "table" stands before what it opens
  const sheet = make('div', root, { class: 'sheet', hidden: '', tabindex: 0, role: 'region',
    'aria-label': 'Table of the same numbers' });
  const tip = make('div', root, { class: 'tip', 'aria-hidden': 'true' });
  let scene, panels, places = [], built = '', hover = null, asking = false;
  let playing = 0, player, opener;                          // a timer, and the buttons "play" and "table"

  const view = { get, look: get('look'), ink: '', paper: '',
    plane: p => Math.max(0, p.planes.findIndex(({ name }) => name === get(p.by))),
    shade: (v, { low, high }) => {
      const all = view.look.shades, share = clamp((v - low)/((high - low) || 1), 0, 1);
      return all[Math.round(share*(all.length - 1))];
    } };

  // -- asking for something else: the kernel answers with a scene, and ipywidgets thins out a held key

  function ask(change) {
    const known = Object.entries(change).filter(([name]) => name === 'pin' || scene.controls[name]);
    asking = true;
    for (const [name, value] of known) model.set(name, value);
    asking = false;
    model.save_changes();
    draw();
  }
  function move(name, by) {
    const control = scene.controls[name];
    if (!control) return;
    if (control.choices) {
      const i = control.choices.indexOf(get(name)) + by;
      ask({ [name]: control.choices[clamp(i, 0, control.choices.length - 1)] });
    } else ask({ [name]: clamp(get(name) + by, control.min, control.max) });
  }
  function hop(down, right) {                               // from mark to mark
    const [panel] = panels, [r, c] = chosen(0), row = clamp(r + down, 0, panel.height - 1), marks = marksOf(panel, row);
    const [to] = down ? marks.sort((a, b) => Math.abs(a - c) - Math.abs(b - c))
      : right > 0 ? marks.filter(k => k > c) : marks.filter(k => k < c).reverse();
    if (to !== undefined) choose(0, [row, to]);
  }
  const turn = by => panels[0].kind === 'points' ? hop(0, by) : move('turn', by);
  const row = by => panels[0].kind === 'points' ? hop(by, 0) : move('layer', by);
  function along(by) {                                      // to the neighbour in the row
    const { columns } = panels[0], control = scene.controls[columns.of];
    if (!control || control.choices) return move(columns.of, by);
    const next = columns.keys[find(columns, get(columns.of)) + by] ?? get(columns.of) + by;
    ask({ [columns.of]: clamp(next, control.min, control.max) });
  }
  const chosen = i => [find(panels[i].rows, get(panels[i].rows.of)), find(panels[i].columns, get(panels[i].columns.of))]
    .map(at => Math.max(at, 0));
  const keys = (i, [r, c]) => [i, panels[i].rows.keys[r], panels[i].columns.keys[c], scene.turn];
  function pin(i, cell) {
    const now = keys(i, cell), old = get('pin'), same = old.slice(0, 3).join() === now.slice(0, 3).join();
    ask({ pin: same ? [] : now });
  }
  function choose(i, [r, c]) {                              // what was clicked becomes what is chosen
    const { rows, columns } = panels[i];
    ask({ ...(rows.of && { [rows.of]: rows.keys[r] }), ...(columns.of && { [columns.of]: columns.keys[c] }) });
  }

  // -- saying what a cell is

  const label = (axis, i) => axis.labels ? axis.labels[i] : `${axis.name} ${axis.ticks[i]}`.trim();
  function values(panel, r, c) {
    if (panel.kind === 'states') return view.look.states[panel.value(0, r, c)][0];
    if (panel.kind === 'points') return [0, 3].map(p => {
      const { name, unit } = panel.planes[p], [v, low, high] = [0, 1, 2].map(k => panel.value(p + k, r, c));
      const ends = Number.isNaN(low) ? '' : ` (${written(low, unit)} to ${written(high, unit)})`;
      return `${name} ${written(v, unit)}${ends}`;
    }).join(', ') + (Number.isNaN(panel.value(0, r, c)) ? '' : `, ${panel.value(6, r, c)} ${panel.planes[6].name}`);
    return panel.planes.map(({ name, unit }, p) => `${name} ${written(panel.value(p, r, c), unit)}`).join(', ');
  }
  function tell(i, [r, c]) {
    const panel = panels[i], text = panel.texts.length ? ` “${isolated(panel.texts[c])}”` : '';
    const row = label(panel.rows, r);
    return `${row ? row + ', ' : ''}${label(panel.columns, c)}${text}: ${values(panel, r, c)}`;
  }
  function tellPin([i, row, column, turn]) {
    if (!panels[i]) return '';
    const cell = [find(panels[i].rows, row), find(panels[i].columns, column)];
    const gone = cell.includes(-1) || (panels[i].kind === 'words' && turn !== scene.turn);
    return gone ? `${panels[i].columns.name} ${column} of turn ${turn} is not in view` : tell(i, cell);
  }

  // -- drawing

  function draw() {
    const began = performance.now();
    scene = get('scene');
    panels = unpack(scene);
    root.setAttribute('aria-label', scene.title);
    const plan = JSON.stringify([scene.controls, scene.panels.map(p => [p.kind, p.by && get(p.by)])]);
    if (plan !== built) build();
    built = plan;
    for (const [name, field] of Object.entries(fields)) for (const f of field)
      if (f.value !== String(get(name))) f.value = get(name);
    ({ color: view.ink, backgroundColor: view.paper } = getComputedStyle(root));
    panels.forEach((panel, i) => {
      places[i].title.textContent = panel.title;
      places[i].node.setAttribute('aria-label', `${panel.title}. ${keysInWords()}`);
      (panel.kind === 'words' ? words : canvas)(panel, i);
    });
    const now = tell(0, chosen(0));
    say(status, [scene.caption, now[0].toUpperCase() + now.slice(1), get('note')].filter(Boolean).join('. '));
    const what = { words: 'token', lines: 'line', points: 'mark' }[panels[0].kind] || 'cell';
    say(pinned, get('pin').length ? 'Pinned: ' + tellPin(get('pin')) : `Nothing is pinned: click a ${what}.`);
    listNotes();
    if (!sheet.hidden) table();
    if (hover) point(hover);
    root.dataset.turn = scene.turn;
    root.dataset.ms = (performance.now() - began).toFixed(2);
  }
  function canvas(panel, i) {
    const node = places[i].node, g = node.getContext('2d'), ratio = devicePixelRatio || 1;
    const room = Math.max(280, el.clientWidth - 20);
    g.font = '11px sans-serif';
    panel.left = 14 + Math.max(...panel.rows.ticks.map(tick => g.measureText(tick).width), 12);
    const at = places[i].at = layout(panel, room), width = at.right + MARGIN;
    node.width = width*ratio; node.height = at.full*ratio;
    node.style.width = width + 'px'; node.style.height = at.full + 'px';
    g.scale(ratio, ratio); g.font = '11px sans-serif'; g.textBaseline = 'middle'; g.textAlign = 'center';
    ({ lines: paintLines, points: paintPoints }[panel.kind] || paintCells)(panel, at, g, view);
    paintColumnTicks(panel, at, g, view);
    const ring = ([r, c], wide) => {
      if (!isFlat(panel)) {                                 // two colours: one of them stands out from any cell
        for (const [ink, more] of [[view.paper, 2], [view.ink, 0]]) {
          g.strokeStyle = ink; g.lineWidth = wide + more; g.strokeRect(at.x(c) - 1, at.y(r) - 1, at.px + 1, CELL + 1);
        }
        return;
      }
      g.strokeStyle = '#000'; g.lineWidth = wide;
      if (Number.isNaN(panel.value(0, r, c))) return;
      g.beginPath(); g.arc(...at.spot(r, c), panel.kind === 'points' ? 10 : 6, 0, 7); g.stroke();
    };
    g.strokeStyle = view.ink;
    if (panel.rows.of && !isFlat(panel)) {
      g.lineWidth = 1; g.strokeRect(at.x(0) - .5, at.y(chosen(i)[0]) - 1, at.right - at.x(0) + 1, CELL + 1);
    }
    if (panel.kind !== 'lines') ring(chosen(i), 2);
    const [p, row, column] = get('pin'), at_ = [find(panel.rows, row), find(panel.columns, column)];
    if (p === i && !at_.includes(-1)) ring(at_, 3);
  }
  function words(panel, i) {
    const node = places[i].node, plane = view.plane(panel), [p, , column, turn] = get('pin');
    node.replaceChildren();
    for (let c = 0; c < panel.width; c++) {
      const v = panel.value(plane, 0, c), [paper, ink] = view.shade(Number.isNaN(v) ? 0 : v, panel.planes[plane]);
      const word = make('span', node, { 'data-c': c, style: `background: ${paper}; color: ${ink}` }, panel.texts[c]);
      if (c === chosen(i)[1]) word.classList.add('chosen');
      if (p === i && turn === scene.turn && find(panel.columns, column) === c) word.classList.add('pinned');
      if (panel.texts[c].endsWith('↵')) make('br', node);
    }
  }
  function listNotes() {
    notes.replaceChildren();
    if (!scene.notes) return;
    const { title, names, rows } = scene.notes;
    fill(make('table', notes), title, names, rows);
  }
  function fill(node, title, names, rows) {
    make('caption', node, {}, title);
    const head = make('tr', make('thead', node)), body = make('tbody', node);
    for (const name of names) make('th', head, { scope: 'col' }, name);
    for (const row of rows) {
      const line = make('tr', body);
      row.forEach((x, i) => make('bdi', make(i ? 'td' : 'th', line, i ? {} : { scope: 'row' }), {},
        String(x).trim() ? x : '␣'));                      // a token of blanks alone must be seen, too
    }
  }
  const number = (v, unit) => Number.isNaN(v) ? '–' : unit === '%' ? (100*v).toFixed(1)
    : unit || !Number.isInteger(v) ? v.toFixed(2) : v;
  const withUnit = ({ name, unit }) => unit ? `${name}, ${unit}` : name;
  function pointTable(panel) {                              // all marks: they are few
    const { title, rows, columns, planes, value } = panel;
    const body = rows.ticks.flatMap((name, r) => marksOf(panel, r).map(c =>
      [name, columns.ticks[c], ...planes.map(({ unit }, p) => number(value(p, r, c), unit))]));
    fill(make('table', sheet), title, [rows.name, columns.name, ...planes.map(withUnit)], body);
  }
  function table() {                                        // the same numbers, of the chosen row of every panel
    sheet.replaceChildren();
    panels.forEach((panel, i) => {
      if (panel.kind === 'points') return pointTable(panel);
      const every = !panel.rows.of && panel.height > 1;     // nobody chooses a row: all of them
      const row = chosen(i)[0], { columns, rows } = panel, told = columns.of || columns.name;
      const names = every ? rows.ticks : panel.kind === 'states' ? ['state'] : panel.planes.map(withUnit);
      const bare = (p, r, c, unit) => number(panel.value(p, r, c), unit);
      const cells = c => every ? rows.ticks.map((_, r) => bare(0, r, c, panel.planes[0].unit))
        : panel.kind === 'states' ? [values(panel, row, c)] : panel.planes.map((p, k) => bare(k, row, c, p.unit));
      const body = columns.ticks.map((_, c) => [label(columns, c), ...(panel.texts.length ? [panel.texts[c]] : []),
        ...cells(c)]);
      const unit = every && panel.planes[0].unit ? `, ${panel.planes[0].unit}` : '';
      const title = [panel.title + unit, `turn ${scene.turn}`, every ? '' : label(rows, row)].filter(Boolean)
        .join(', ');
      fill(make('table', sheet), title, [told, ...(panel.texts.length ? ['text'] : []), ...names], body);
    });
  }

  // -- the parts that stay from scene to scene

  let fields = {};
  function keysInWords() {                                  // those that do something here
    const { layer, head } = scene.controls, [{ kind, rows, columns }] = panels, points = kind === 'points';
    const down = layer ? 'layer' : points && rows.name, inRow = !points && columns.of && columns.of !== 'turn';
    return ['Left and right arrow: turn', down && `Up and down arrow: ${down}`,
      inRow && 'Shift with left or right arrow: along the row', head && 'H: next head',
      'Enter: pin or unpin', 'Escape: unpin', 'T: table'].filter(Boolean).join('. ') + '.';
  }
  function build() {
    const active = document.activeElement, old = places.findIndex(({ node }) => node === active);
    const kept = root.contains(active) && active.getAttribute('aria-label');
    bar.replaceChildren(); stage.replaceChildren(); foot.replaceChildren();
    fields = {};
    for (const [name, control] of Object.entries(scene.controls)) fields[name] = field(name, control);
    places = panels.map(place);
    for (const kind of get('saves')) button(foot, `save ${kind.toUpperCase()}`, () => model.send({ save: kind }));
    opener = button(foot, 'table', toggle);
    opener.setAttribute('aria-expanded', String(!sheet.hidden));
    make('span', foot, { class: 'keys' }, keysInWords());
    if (old >= 0) places[old]?.node.focus();
    else if (kept) [...root.querySelectorAll('[aria-label]')].find(n => n.getAttribute('aria-label') === kept)?.focus();
  }
  function button(parent, name, act, spoken = name) {       // `spoken` begins with the name that is seen
    const node = make('button', parent, { type: 'button', 'aria-label': spoken }, name);
    node.onclick = act;
    return node;
  }
  function field(name, control) {
    const here = make('span', bar, { class: 'field' });
    make('span', here, { 'aria-hidden': 'true' }, name);
    if (control.choices) {
      const node = make('select', here, { 'aria-label': name });
      for (const choice of control.choices) make('option', node, { value: choice }, choice);
      node.onchange = () => ask({ [name]: control.choices[node.selectedIndex] });
      return [node];
    }
    const bounds = { min: control.min, max: control.max, 'aria-label': name };
    const node = make('input', here, { type: 'number', ...bounds });
    node.onchange = () => node.value !== '' &&
      ask({ [name]: clamp(Math.round(+node.value), control.min, control.max) });
    if (name !== 'turn') return [node];
    const slider = make('input', here, { type: 'range', ...bounds, 'aria-label': 'turn, slider' });
    slider.oninput = () => ask({ turn: +slider.value });
    button(here, 'previous', () => move('turn', -1), 'previous turn');
    button(here, 'next', () => move('turn', 1), 'next turn');
    player = button(here, 'play', () => playing ? rest() : play());
    labelPlayer();
    return [node, slider];
  }
  function labelPlayer() {
    const [seen, spoken] = playing ? ['stop', 'stop playing'] : ['play', 'play the turns'];
    player.textContent = seen; player.setAttribute('aria-label', spoken);
    status.setAttribute('aria-live', playing ? 'off' : 'polite');       // nobody can hear four turns a second
  }
  function rest() { clearInterval(playing); playing = 0; labelPlayer(); }
  function play() {
    playing = setInterval(() => {
      if (!root.isConnected || get('turn') >= scene.controls.turn.max) rest();
      else if (scene.turn === get('turn')) move('turn', 1);             // the last one has arrived
    }, 250);
    labelPlayer();
  }
  function place(panel, i) {
    const box = make('div', stage, { class: 'panel' });
    const title = make('div', box, { class: 'title' });
    const node = panel.kind === 'words'
      ? make('div', box, { class: 'words', tabindex: 0, role: 'group', dir: 'auto' })
      : make('canvas', make('div', box, { class: 'scroll' }), { tabindex: 0, role: 'application' });
    const cell = e => {
      if (panels[i].kind !== 'words') return hit(panels[i], places[i].at, e.offsetX, e.offsetY);
      const c = e.target.closest('[data-c]')?.dataset.c;
      return c === undefined ? null : [0, +c];
    };
    node.onpointermove = e => point({ i, cell: cell(e), x: e.clientX, y: e.clientY });
    node.onpointerleave = () => point(null);
    node.onclick = e => { const found = cell(e); if (found) { pin(i, found); choose(i, found); node.focus(); } };
    if (panel.kind !== 'lines' || !i) legend(make('div', box, { class: 'bar legend' }), panel);
    return { node, title };
  }
  function legend(node, panel) {
    const entry = (style, name, letter = '') => make('i', make('span', node), { style }, letter).after(name);
    if (panel.kind === 'states') for (const [name, letter, paper, ink] of view.look.states)
      if (paper) entry(`background: ${paper}; color: ${ink}`, name, letter);
    if (panel.kind === 'lines') panel.rows.ticks.forEach((name, r) => {
      const [color, dash] = panel.looks[r], line = dash.length > 2 ? 'double' : ['solid', '', 'dashed'][dash.length];
      entry(`border: 0; height: 0; width: 26px; border-top: 4px ${dash[0] < 4 ? 'dotted' : line} ${color}`, name);
    });
    if (panel.kind === 'points') panel.rows.ticks.forEach((name, r) => {
      const sample = make('canvas', make('span', node), { width: 36, height: 36, 'aria-hidden': 'true' });
      const [color, marker] = panel.looks[r], g = sample.getContext('2d');
      g.scale(2, 2); g.fillStyle = color; shape(g, [9, 9], marker, 7); g.fill();
      sample.after(name);
    });
    if (panel.kind === 'points') make('span', node, {}, `filled: the newest up to the ${panel.columns.name}`);
    if (panel.kind === 'states' || isFlat(panel)) return;
    const { name, low, high, unit } = panel.planes[view.plane(panel)];
    const stops = view.look.shades.map(([paper]) => paper).filter((_, i) => i % 8 === 0);
    entry(`width: 120px; background: linear-gradient(to right, ${stops})`,
      `${name}: ${written(low, unit)} to ${written(high, unit)}`);
  }
  function toggle() {
    sheet.hidden = !sheet.hidden;
    opener.setAttribute('aria-expanded', String(!sheet.hidden));
    if (!sheet.hidden) table();
  }

  // -- pointer and keys

  function point(event) {
    hover = event;
    const is = !!event?.cell && event.cell[0] < panels[event.i].height && event.cell[1] < panels[event.i].width;
    tip.classList.toggle('on', is);
    if (!is) return;
    tip.textContent = tell(event.i, event.cell);
    const box = root.getBoundingClientRect(), room = root.clientWidth - tip.offsetWidth - 4;
    tip.style.left = clamp(event.x - box.left + 14, 0, Math.max(0, room)) + 'px';
    tip.style.top = event.y - box.top + 16 + 'px';
  }
  const acts = { ArrowLeft: e => e.shiftKey ? along(-1) : turn(-1), ArrowRight: e => e.shiftKey ? along(1) : turn(1),
    ArrowUp: () => row(-1), ArrowDown: () => row(1),
    h: () => move('head', 1), H: () => move('head', -1),
    Enter: e => { const i = Math.max(0, places.findIndex(({ node }) => node === e.target)); pin(i, chosen(i)); },
    Escape: () => { point(null); ask({ pin: [] }); }, t: toggle };
  root.onkeydown = e => {
    if (e.ctrlKey || e.metaKey || e.altKey) return;         // Ctrl+S and the like are the page's
    e.stopPropagation();                                    // a plain key would be a command to the notebook
    const kind = e.target.tagName, act = acts[e.key];
    if (!act || kind === 'INPUT' || kind === 'SELECT' || (kind === 'BUTTON' && e.key === 'Enter')) return;
    e.preventDefault();
    act(e);
  };

  // -- what makes it draw anew

  const redraw = () => { if (!asking) draw(); };
  const answered = () => { if (get('scene') !== scene) redraw(); };       // it may be on view already, see `ahead`
  model.on('change:scene', answered);
  const names = [ 'pin', 'note', ...Object.keys(get('scene').controls)];
  for (const name of names) model.on('change:' + name, redraw);
  const later = () => requestAnimationFrame(draw);
  const size = new ResizeObserver(later), theme = new MutationObserver(later);
  const media = ['(prefers-color-scheme: dark)', '(forced-colors: active)'].map(query => matchMedia(query));
  draw();
  size.observe(el);
  theme.observe(document.body, { attributes: true });
  for (const query of media) query.addEventListener('change', later);
  return () => {
    for (const name of names) model.off('change:' + name, redraw);
    model.off('change:scene', answered);
    clearInterval(playing); size.disconnect(); theme.disconnect();
    for (const query of media) query.removeEventListener('change', later);
  };
}

// ---- a step ahead: what the next keys will ask for is asked for before, and then drawn at once

const MOST = 64;                                            // scenes that are kept

export function ahead(model, el) {
  const had = new Map(), names = Object.keys(model.get('scene').controls);
  const key = at => JSON.stringify(names.map(name => at[name]));
  const now = () => Object.fromEntries(names.map(name => [name, model.get(name)]));
  let before = now(), moved = ['turn', 1], edition = 0, waiting = false;

  const control = name => model.get('scene').controls[name];
  const place = (name, x) => control(name).choices ? control(name).choices.indexOf(x) : x;
  const there = (name, i) => control(name).choices ? control(name).choices[i]
    : i >= control(name).min && i <= control(name).max ? i : undefined;
  function wanted() {                                       // some steps on, and one back
    const [name, by] = moved, state = now(), steps = [...Array(model.get('ahead')).keys()].map(k => k + 1);
    return [...steps, -1].map(k => ({ ...state, [name]: there(name, place(name, state[name]) + k*by) }))
      .filter(at => at[name] !== undefined && !had.has(key(at)));
  }
  function want() {
    if (waiting || !model.get('ahead') || !el.clientWidth) return;        // a view in another tab has no width
    const list = wanted();
    if (!list.length) return;
    waiting = true;
    model.send({ ahead: list });
  }
  function keep(scene) {
    if (scene.edition !== edition || !model.get('ahead')) had.clear();  // turns were added: what was had is out of date
    edition = scene.edition;
    had.set(key(scene.at), scene);
    if (had.size > MOST) had.delete(had.keys().next().value);
  }
  const heard = (message, buffers) => {
    if (!message.ahead) return;
    waiting = false;
    const known = had.size;
    message.ahead.forEach((scene, i) => scene.edition === edition && keep({ ...scene, data: buffers[i] }));
    if (had.size > known) want();
  };
  const answered = () => keep(model.get('scene'));
  answered();
  model.on('msg:custom', heard); model.on('change:scene', answered);
  for (const event of ['focusin', 'pointerenter']) el.addEventListener(event, want);
  return { set: (name, value) => model.set(name, value), send: message => model.send(message),
    on: (name, act) => model.on(name, act), off: (name, act) => model.off(name, act),
    get: name => name === 'scene' && model.get('ahead') ? had.get(key(now())) || model.get(name) : model.get(name),
    save_changes: () => {
      const state = now(), [name, ...others] = names.filter(name => state[name] !== before[name]);
      if (name && !others.length) moved = [name, Math.sign(place(name, state[name]) - place(name, before[name])) || 1];
      before = state;
      model.save_changes();
      want();
    },
    end: () => { model.off('msg:custom', heard); model.off('change:scene', answered); } };
}

function render({ model, el }) {
  const near = ahead(model, el), end = mount(near, el);
  return () => { end(); near.end(); };
}
export default { render };

// ---- without a kernel: a saved page holds some scenes, and answers from them

export async function standalone(page, el) {
  const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
  const packed = new Blob([bytes(page.scenes)]).stream().pipeThrough(new DecompressionStream('gzip'));
  const { state, varies, scenes } = await new Response(packed).json();
  const listeners = new Map(), key = () => varies.map(name => state[name]).join(), at = new Map();
  scenes.forEach(({ at: where, scene }) => at.set(where.join(), scene));
  const answer = () => {
    const scene = at.get(key());
    if (!(scene.data instanceof DataView)) scene.data = new DataView(bytes(scene.data).buffer);
    state.scene = scene;
    for (const act of new Set(listeners.values())) act();
  };
  answer();
  return mount({ get: name => state[name], set: (name, value) => { state[name] = value; }, save_changes: answer,
    on: (name, act) => listeners.set(name, act), off: name => listeners.delete(name), send: () => {} }, el);
}
