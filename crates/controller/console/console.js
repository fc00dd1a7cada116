// The embedded console: reads the public API with the user's token and shows what it says.
// All text from the server goes into the page as text nodes, never as HTML.
'use strict';

const TEXTS = {
  en: {
    token: 'Token', open: 'Open', leave: 'Leave', other: '中文',
    tokenHint: 'The administrator\'s token is in the file admin.token of the data directory.',
    alarms: 'Alarms', datastores: 'Datastores', volumes: 'Volumes', snapshots: 'Snapshots of',
    templates: 'Templates', tasks: 'Tasks', none: 'none', used: 'used', promised: 'provisioned',
    free: 'free', of: 'of', name: 'Name', datastore: 'Datastore', kind: 'Kind', size: 'Size',
    state: 'State', count: 'Snapshots', chain: 'Chain', clones: 'Clones', operation: 'Operation',
    object: 'Object', progress: 'Progress', created: 'Created', message: 'Message', since: 'Since',
    severity: 'Severity', here: 'you are here', nodeUp: 'node', nodeDown: 'the node does not answer',
    lost: 'The connection to the server is lost; trying again.',
  },
  zh: {
    token: '令牌', open: '进入', leave: '退出', other: 'English',
    tokenHint: '管理员令牌保存在数据目录的 admin.token 文件中。',
    alarms: '告警', datastores: '数据存储', volumes: '卷', snapshots: '快照链：',
    templates: '模板', tasks: '任务', none: '无', used: '已用', promised: '已分配',
    free: '可用', of: '/', name: '名称', datastore: '数据存储', kind: '类型', size: '容量',
    state: '状态', count: '快照数', chain: '链长', clones: '链接克隆', operation: '操作',
    object: '对象', progress: '进度', created: '创建时间', message: '信息', since: '开始时间',
    severity: '级别', here: '当前位置', nodeUp: '节点', nodeDown: '节点无响应',
    lost: '与服务器的连接中断，正在重试。',
  },
};
const WORDS_ZH = {
  normal: '正常', abnormal: '异常', 'read-only': '只读', creating: '创建中', deleting: '删除中',
  connected: '已连接', disconnected: '未连接', held: '等待空间', thin: '精简', lazy: '普通延迟置零',
  fixed: '普通', waiting: '等待', running: '运行', cancelling: '取消中', success: '成功',
  failed: '失败', cancelled: '已取消', info: '提示', warning: '警告', critical: '紧急',
};

const $ = (id) => document.getElementById(id);
let language = localStorage.getItem('language') || (navigator.language.startsWith('zh') ? 'zh' : 'en');
let token = sessionStorage.getItem('token') || '';
let chosen = null;
let state = { system: {}, datastores: [], volumes: [], templates: [], tasks: [], alarms: [], tree: null };

const text = (key) => TEXTS[language][key];
const word = (value) => (language === 'zh' && WORDS_ZH[value]) || value;

function element(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key === 'class') made.className = value;
    else if (key.startsWith('on')) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value);
  }
  made.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return made;
}

function human(bytes) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];
  let at = 0;
  while (bytes >= 1024 && at < units.length - 1) { bytes /= 1024; at += 1; }
  return `${bytes >= 100 || Number.isInteger(bytes) ? Math.round(bytes) : bytes.toFixed(1)} ${units[at]}`;
}

const when = (time) => new Date(time).toLocaleString(language === 'zh' ? 'zh-CN' : 'en-GB');

async function get(path) {
  const answer = await fetch(path, { headers: { Authorization: `Bearer ${token}` } });
  const body = await answer.json();
  if (answer.ok) return body;
  const problem = new Error(`${body.detail} (${body.code}) ${body.hint || ''}`);
  problem.status = answer.status;
  throw problem;
}

async function all(noun, most = Infinity) {
  let items = [];
  let cursor = '';
  do {
    const page = await get(`/api/v1/${noun}?limit=${Math.min(most, 1000)}${cursor && `&cursor=${cursor}`}`);
    items = items.concat(page.items);
    cursor = page.next;
  } while (cursor && items.length < most);
  return items;
}

function table(titles, rows) {
  if (rows.length === 0) return element('p', { class: 'muted' }, text('none'));
  const head = titles.map((title) => element('th', {}, title));
  return element('table', {}, element('thead', {}, element('tr', {}, ...head)), element('tbody', {}, ...rows));
}

const cell = (content, style) => element('td', style ? { class: style } : {}, content);
const row = (...cells) => element('tr', {}, ...cells);

function bar(label, style, part, total) {
  const share = total > 0 ? Math.round((part * 100) / total) : 0;
  const meter = element('progress', { class: share > 100 ? 'over' : style, max: 100, value: Math.min(share, 100), 'aria-label': label });
  return element('div', { class: 'bar' }, element('span', {}, label), meter, element('span', {}, `${share} %`));
}

function showDatastores() {
  const cards = state.datastores.map((store) => element('div', { class: 'card' },
    element('h3', {}, store.name, ' ', element('small', { class: store.state }, word(store.state))),
    bar(text('promised'), 'promised', store.space.provisioned, store.space.total),
    bar(text('used'), 'used', store.space.total - store.space.free, store.space.total),
    element('div', { class: 'muted' }, `${human(store.space.free)} ${text('free')} ${text('of')} ${human(store.space.total)} · ${store.file_system} · ${store.path}`),
    store.state_reason ? element('div', { class: 'abnormal' }, store.state_reason) : ''));
  $('datastores').replaceChildren(...(cards.length ? cards : [element('p', { class: 'muted' }, text('none'))]));
}

function showVolumes() {
  const choose = (volume) => () => { chosen = volume.id; loadTree(); };
  const rows = state.volumes.map((volume) => element('tr', {
    class: volume.id === chosen ? 'choice chosen' : 'choice', tabindex: 0, onclick: choose(volume),
    onkeydown: (event) => { if (event.key === 'Enter') choose(volume)(); },
  }, cell(volume.name), cell(volume.datastore_name), cell(word(volume.kind)), cell(human(volume.size), 'number'),
  cell(human(volume.space.used), 'number'), cell(word(volume.state), volume.state), cell(volume.snapshots, 'number'), cell(volume.chain_length, 'number')));
  $('volumes').replaceChildren(table(
    [text('name'), text('datastore'), text('kind'), text('size'), text('used'), text('state'), text('count'), text('chain')], rows));
}

function branch(nodes, here) {
  const items = nodes.map((node) => element('li', {}, node.snapshot.name, ' ',
    element('span', { class: 'muted' }, `${when(node.snapshot.created)} · ${human(node.snapshot.used)}`),
    node.children.length || node.here ? branch(node.children, node.here) : ''));
  if (here) items.push(element('li', { class: 'here' }, `● ${text('here')}`));
  return element('ul', { class: 'tree' }, ...items);
}

function showTree() {
  $('treeSection').hidden = !state.tree;
  if (!state.tree) return;
  $('treeName').textContent = state.tree.volume_name;
  $('tree').replaceChildren(branch(state.tree.roots, !state.tree.current_snapshot));
}

function showRest() {
  $('templates').replaceChildren(table([text('name'), text('datastore'), text('kind'), text('size'), text('used'), text('clones')],
    state.templates.map((one) => row(cell(one.name), cell(one.datastore_name), cell(word(one.kind)), cell(human(one.size)), cell(human(one.used)), cell(one.clones)))));
  $('tasks').replaceChildren(table([text('operation'), text('object'), text('state'), text('progress'), text('created'), text('message')],
    state.tasks.slice(0, 20).map((task) => row(cell(task.operation), cell(task.object.name), cell(word(task.state), task.state),
      cell(element('progress', { max: 100, value: task.percent, 'aria-label': `${task.percent} %` })), cell(when(task.created)),
      cell(task.error ? `${task.error.detail} (${task.error.code})` : task.phase || '')))));
  $('alarms').replaceChildren(table([text('severity'), text('object'), text('message'), text('since')],
    state.alarms.map((alarm) => row(cell(word(alarm.severity), alarm.severity), cell(alarm.object.name),
      cell(`${alarm.message} ${alarm.hint || ''}`), cell(when(alarm.since))))));
  const node = state.system.node;
  $('node').textContent = node ? `${text('nodeUp')} ${node.host} · ${node.version} · ${node.io_backend}` : text('nodeDown');
}

function show() {
  document.documentElement.lang = language === 'zh' ? 'zh-CN' : 'en';
  for (const one of document.querySelectorAll('[data-text]')) one.textContent = text(one.dataset.text);
  $('language').textContent = text('other');
  $('leave').textContent = text('leave');
  const open = token !== '';
  $('enter').hidden = open;
  $('content').hidden = !open;
  $('leave').hidden = !open;
  if (!open) { $('node').textContent = ''; return; }
  showDatastores();
  showVolumes();
  showTree();
  showRest();
}

function complain(message) {
  $('problem').textContent = message;
  $('problem').hidden = message === '';
}

async function loadTree() {
  state.tree = null;
  if (chosen && state.volumes.some((volume) => volume.id === chosen)) {
    try { state.tree = await get(`/api/v1/volumes/${chosen}/tree`); } catch (problem) { complain(problem.message); }
  }
  show();
}

async function load() {
  const [system, datastores, volumes, templates, tasks, alarms] = await Promise.all(
    [get('/api/v1/system'), all('datastores'), all('volumes'), all('templates'), all('tasks', 20), all('alarms')]);
  Object.assign(state, { system, datastores, volumes, templates, tasks, alarms });
  complain('');
  await loadTree();
}

// EventSource cannot send a token, so the stream is read by hand. Whatever happens, everything is
// loaded again, at most twice a second: simple, and right after a lost connection too.
async function follow(mine) {
  while (token === mine && mine !== '') {
    try {
      await load();
      const answer = await fetch('/api/v1/events', { headers: { Authorization: `Bearer ${mine}` } });
      if (!answer.ok) throw new Error(text('lost'));
      const reader = answer.body.getReader();
      let due = false;
      for (;;) {
        const { done } = await reader.read();
        if (done || token !== mine) break;
        if (!due) {
          due = true;
          setTimeout(() => { due = false; if (token === mine) load().catch((problem) => complain(problem.message)); }, 500);
        }
      }
    } catch (problem) {
      if (problem.status === 401 || problem.status === 403) {
        leave();
        complain(problem.message);
        return;
      }
      complain(problem.status ? problem.message : text('lost'));
    }
    await new Promise((wake) => { setTimeout(wake, 2000); });
  }
}

function leave() {
  token = '';
  sessionStorage.removeItem('token');
  chosen = null;
  show();
}

$('enter').addEventListener('submit', (event) => {
  event.preventDefault();
  token = $('token').value.trim();
  $('token').value = '';
  sessionStorage.setItem('token', token);
  show();
  follow(token);
});
$('leave').addEventListener('click', () => { leave(); complain(''); });
$('language').addEventListener('click', () => {
  language = language === 'zh' ? 'en' : 'zh';
  localStorage.setItem('language', language);
  show();
});

show();
if (token) follow(token);
