// The browser's part of a live chat: see nbs/92_livechat.ipynb.

// ## make
function make(tag, parent, attributes = {}, text = '') {
  const node = parent.appendChild(document.createElement(tag));
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.textContent = text;                                // what people and models write never becomes markup
  return node;
}

// ## say
function say(node, text) {                                // the same is not written, or it would be read aloud again
  if (node.textContent !== text) node.textContent = text;
}

// ## newKey
function newKey() {                                       // randomUUID is missing where a page comes over plain http
  return [...crypto.getRandomValues(new Uint8Array(12))].map(x => x.toString(16).padStart(2, '0')).join('');
}

// ## transcript
// Turns by their key: finished ones as the trait `lines` has them, and those that are queued or under way.
function transcript(log) {
  const turns = new Map();
  const atEnd = () => log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  function add(key, text) {
    const node = make('div', log, { class: 'turn' }), t = { node, state: 'sending', sent: Date.now() };
    for (const who of ['you', 'reply']) {
      const p = make('p', node, { class: who });
      make('span', p, { class: 'who' }, who === 'you' ? 'you' : 'reply');
      t[who] = make('bdi', p);
    }
    t.reply.parentNode.hidden = true;
    t.note = make('p', node, { class: 'note' });
    t.you.textContent = text;
    turns.set(key, t);
    log.scrollTop = log.scrollHeight;
    return t;
  }
  function show(t, { state = t.state, said, note = '' }) {
    const follow = atEnd();
    t.state = state;
    if (said !== undefined) { t.reply.textContent = said; t.reply.parentNode.hidden = !said; }
    t.note.textContent = note;
    t.node.classList.toggle('wrong', state === 'failed');
    if (follow) log.scrollTop = log.scrollHeight;
  }
  function sync(lines) {
    const kept = new Set(lines.map(line => line.key));
    for (const [key, t] of turns) if (t.state === 'finished' && !kept.has(key)) { t.node.remove(); turns.delete(key); }
    let before = null;
    for (const line of lines) {
      const known = turns.get(line.key), t = known || add(line.key, line.text);
      if (!known) before ? before.node.after(t.node) : log.prepend(t.node);
      before = t;
      t.you.textContent = line.text;
      show(t, { state: 'finished', said: line.reply, note: line.note });
    }
  }
  const inState = (...states) => [...turns].filter(([, t]) => states.includes(t.state));
  return { turns, add, show, sync, inState };
}

// ## settings
function settings(root, model, send) {
  const box = make('details', root), title = make('summary', box), form = make('form', box, { 'aria-label': 'Settings' });
  const field = (name, tag, kind, more = {}) => {
    const label = make('label', form, { class: kind }, name + ' ');
    return make(tag, label, { name, 'data-lm-suppress-shortcuts': 'true', ...more });
  };
  const pick = Object.fromEntries(['model', 'persona', 'policy'].map(name => [name, field(name, 'select', '')]));
  const numbers = { gain: field('gain', 'input', '', { type: 'number', min: 0.1, step: 'any' }),
                    window: field('window', 'input', '', { type: 'number', min: 1, step: 1 }) };
  const words = field('or a persona in words', 'textarea', 'words', { rows: 2 });
  make('button', form, { type: 'submit' }, 'Apply from the next turn on');
  function usual() {                                      // what the policy has where nothing is given
    const own = model.get('choices').policy[pick.policy.value] || {};
    for (const [name, input] of Object.entries(numbers)) {
      input.placeholder = own[name] ?? 'none';
      input.disabled = own[name] == null;
    }
  }
  function draw() {
    const choices = model.get('choices'), chosen = model.get('chosen');
    for (const [name, select] of Object.entries(pick)) {
      const names = name === 'policy' ? Object.keys(choices.policy) : choices[name];
      select.replaceChildren();
      for (const value of names) make('option', select, { value }, value);
      select.value = chosen[name];
    }
    for (const [name, input] of Object.entries(numbers)) input.value = chosen[name] ?? '';
    title.textContent = `Settings: ${chosen.policy}, persona ${chosen.persona}, ${chosen.model}`;
    usual();
  }
  pick.policy.onchange = usual;
  form.onsubmit = event => {
    event.preventDefault();
    const choice = Object.fromEntries(Object.entries(pick).map(([name, select]) => [name, select.value]));
    for (const [name, input] of Object.entries(numbers))
      choice[name] = input.disabled || input.value === '' ? null : Number(input.value);
    if (send({ kind: 'change', key: newKey(), choice, text: words.value.trim() })) words.value = '';
  };
  draw();
  return draw;
}

// ## drafts
// What is typed or was not heard yet, kept in the tab: a cell that runs again, or another kernel, finds it there.
function drafts(place) {
  const name = 'lyra-live:' + place;
  return {
    read() { try { return JSON.parse(sessionStorage.getItem(name)) || {}; } catch { return {}; } },
    write(value) { try { sessionStorage.setItem(name, JSON.stringify(value)); } catch { /* no storage here */ } } };
}

// ## render
const SILENT = 'The kernel does not answer. It is busy, or it was restarted: then run this cell again. ' +
               'The conversation goes on, and what you typed comes back.';

function render({ model, el }) {
  const root = make('div', el, { class: 'lyra-chat', role: 'group', 'aria-label': 'Live chat' });
  const draw = settings(root, model, send);
  const log = make('div', root, { class: 'log', role: 'log', 'aria-live': 'off', tabindex: 0,
                                  'aria-label': 'Transcript' });
  const aloud = make('div', root, { class: 'aloud', 'aria-live': 'polite' });     // a reply, when it is whole
  const book = transcript(log);
  const form = make('form', root, { 'aria-label': 'Message' });
  const field = make('textarea', form, { rows: 2, 'aria-label': 'Your message', placeholder: 'Say something',
                                         dir: 'auto', 'data-lm-suppress-shortcuts': 'true' });
  const button = (name, act) => {                         // never `disabled`, which would lose the focus
    const node = make('button', form, { type: 'button', 'aria-disabled': 'true' }, name);
    node.onclick = () => { if (node.getAttribute('aria-disabled') !== 'true') { act(); field.focus(); } };
    return node;
  };
  make('button', form, { type: 'submit' }, 'Send');
  const stop = button('Stop', () => send({ kind: 'stop', key: running() }));
  const again = button('Another reply', () => ask({ kind: 'again', text: '' }, lastText()));
  const edit = button('Edit last', () => {
    if (!editing) aside = [field.value, aside].filter(Boolean).join('\n');
    editing = true;
    field.value = lastText();
    changed();
  });
  const silent = make('div', root, { class: 'silent', role: 'alert' });
  const status = make('div', root, { role: 'status' });
  const draft = drafts(model.get('place'));
  let left = draft.read();                                // what an earlier view has left
  let waits = '';                                         // the key of what stands in the field and is on its way
  let editing = false, aside = '';                        // what stood in the field before the last turn was put there
  let changing = '';                                      // the key of a change of settings that is under way
  let heard = Date.now(), asked = 0;                      // when the kernel last spoke, and was asked whether it lives

  // ## sending
  function send(message) {
    try { model.send(message); return true; }
    catch (error) { say(silent, SILENT); return false; }
  }
  function ask(message, text) {                           // the field is cleared when the kernel has taken the message
    const key = newKey();
    if (!send({ ...message, key })) return '';            // nothing has left: the text stays in the field
    book.show(book.add(key, text), { note: 'sending ...' });
    changed();
    return key;
  }
  function submit() {
    const text = field.value.trim();
    if (!text || waits) return;                           // Enter twice sends once
    waits = ask({ kind: editing ? 'edit' : 'submit', text }, text);
    editing = false;
    field.select();                                       // still there, and the next word typed takes its place
    changed();
  }

  // ## receiving
  function receive(message) {
    const t = book.turns.get(message.key);
    heard = Date.now();
    say(silent, '');
    if (message.kind === 'open') opened(message.turns);
    else if (!t) return settled(message);
    else if (message.kind === 'taken') {
      if (t.state === 'sending') book.show(t, { state: 'queued', note: message.waiting ? 'queued' : '' });
      if (waits === message.key) cleared();
      else if (aside && !editing) { field.value = [field.value, aside].filter(Boolean).join('\n'); aside = ''; }
    } else if (message.kind === 'start') {
      if (message.text) t.you.textContent = message.text;
      book.show(t, { state: 'running', said: '', note: '...' });
    } else if (message.kind === 'word') {
      t.reply.parentNode.hidden = false;
      t.reply.append(message.text);
      book.show(t, { note: '...' });
    } else if (message.kind === 'stopping') book.show(t, { note: 'stopped; the turn is being written down' });
    else if (message.kind === 'failed') failed(message.key, t, message.text);
    changed();
  }
  function cleared() { field.value = aside; waits = aside = ''; }
  function failed(key, t, why) {
    if (waits === key) waits = '';
    book.show(t, { state: 'failed', note: why });
    aloud.textContent = why;
    const more = make('button', t.note, { type: 'button' }, 'Put back');
    t.note.insertBefore(document.createTextNode(' '), more);
    more.onclick = () => {
      const text = t.you.textContent;
      if (field.value !== text) field.value = [text, field.value].filter(Boolean).join('\n');
      t.node.remove(); book.turns.delete(key); changed(); field.focus();
    };
  }
  function settled(message) {                             // of a change of settings, which is no turn
    if (message.kind === 'start') changing = message.key;
    else if (message.key === changing) changing = '';
    if (message.kind === 'failed') { say(silent, message.text); draw(); }
    changed();
  }

  // ## keeping
  const running = () => book.inState('running')[0]?.[0] || changing;
  const lastText = () => (model.get('lines') || []).at(-1)?.text || '';
  function changed() {
    const waiting = book.inState('sending', 'queued').length, busy = Boolean(running()) || waiting > 0;
    const off = (node, is) => node.setAttribute('aria-disabled', String(Boolean(is)));
    off(stop, !running()); off(again, busy || !lastText()); off(edit, busy || !lastText());
    field.setAttribute('aria-label', editing ? 'Edit your last message' : 'Your message');
    say(status, [model.get('status'), editing && 'Enter holds the last turn again; Esc leaves it.',
                 waiting && `${waiting} waiting`].filter(Boolean).join(' '));
    const open = book.inState('sending', 'queued', 'running', 'failed').map(([key, t]) => [key, t.you.textContent]);
    draft.write({ text: [field.value, aside].filter(Boolean).join('\n'), open: [...(left.open || []), ...open] });
  }
  function opened(turns) {                                // what the kernel has, and what an earlier one never answered
    for (const { key, text, said, running } of turns) {
      const t = book.turns.get(key) || book.add(key, text);
      t.you.textContent = text;
      book.show(t, { state: running ? 'running' : 'queued', said, note: running ? '...' : 'queued' });
    }
    const lost = left.open?.filter(([key]) => !book.turns.has(key)).map(([, text]) => text) || [];
    if (lost.length) field.value = [...lost, field.value].filter(Boolean).join('\n');
    left = {};
    changed();
  }
  function ask_whether_alive() {
    const open = book.inState('sending', 'queued', 'running').length;
    if (!open && !asked) return;
    if (asked && heard < asked && Date.now() - asked > 4000) say(silent, SILENT);
    if (heard >= asked && Date.now() - heard > 3000) { asked = Date.now(); send({ kind: 'ping', key: '' }); }
    if (heard >= asked && !open) asked = 0;
  }

  // ## keys
  // Plain keys stay in here; JupyterLab would take "d", "d" for "delete the cell", and Shift+Enter for "run it".
  root.onkeydown = event => {
    if (event.key === 'Enter' || !(event.ctrlKey || event.metaKey || event.altKey)) event.stopPropagation();
    if (event.key === 'Escape' && running()) send({ kind: 'stop', key: running() });
    else if (event.key === 'Escape' && editing) { editing = false; field.value = aside; aside = ''; changed(); }
  };
  field.onkeydown = event => {
    if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    submit();
  };
  field.oninput = () => { waits = ''; changed(); };
  form.onsubmit = event => { event.preventDefault(); submit(); field.focus(); };

  // ## life
  field.value = left.text || '';
  const lines = () => {
    const now = model.get('lines') || [], last = now.at(-1), known = last && book.turns.get(last.key);
    if (known && known.state !== 'finished') aloud.textContent = `${last.reply} ${last.note}`;
    book.sync(now);
    changed();
  };
  const gone = () => { asked = Date.now(); send({ kind: 'ping', key: '' }); };
  const events = { 'msg:custom': receive, 'change:lines': lines, 'change:status': changed, 'change:chosen': draw,
                   'change:choices': draw, 'comm_live_update': gone };
  for (const [name, act] of Object.entries(events)) model.on(name, act);
  const timer = setInterval(ask_whether_alive, 1000);
  lines();
  send({ kind: 'hello', key: '' });                       // the answer opens the way on which a busy kernel is reached
  return () => {
    clearInterval(timer);
    for (const [name, act] of Object.entries(events)) model.off(name, act);
  };
}
export default { render };
