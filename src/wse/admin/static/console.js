// The operations page: a WSE client. Whatever comes from the server is shown as text, never as markup.
import { WseClient } from './wse.js'

const EVERY = 2000 // milliseconds between two overviews
const LISTS_EVERY = 5 // overviews between two looks at users and rooms
const POINTS = 90 // of a plot, at most
const LEAST = 20

const $ = id => document.getElementById(id)
const url = new URL('.', import.meta.url)
url.protocol = url.protocol === 'https:' ? 'wss:' : 'ws:'

let client = null
let before = new Map() // the counters of each node at the last overview
let beforeAt = 0
let looks = 0
let isLooking = false
let shownUser = null // the row of the user whose devices are shown
let target = null // of the message that is written

// Elements.

function el (tag, className = '', ...content) {
  const element = document.createElement(tag)
  if (className) element.className = className
  element.append(...content.map(item => item instanceof Node ? item : document.createTextNode(String(item))))
  return element
}

const cell = (...content) => el('td', '', ...content)
const number = value => el('td', 'n', value)
const name = text => {
  const element = el('span', 'name', text === '' ? '(empty)' : text)
  element.title = text
  return element
}

function button (text, label, act, className = '') {
  const element = el('button', className, text)
  element.type = 'button'
  element.setAttribute('aria-label', label)
  element.addEventListener('click', () => act(element))
  return element
}

// Asks a second time before it acts.
function drop (text, label, act) {
  return button(text, label, element => {
    if (element.dataset.sure) return act()
    element.dataset.sure = '1'
    element.textContent = 'Sure?'
    element.setAttribute('aria-label', `Sure? ${label}`)
    setTimeout(() => {
      delete element.dataset.sure
      element.textContent = text
      element.setAttribute('aria-label', label)
    }, 4000)
  }, 'danger')
}

// Rows replace those that are there, unless somebody is about to press one of their buttons.
function fill (id, rows, nothing, always = false) {
  const body = $(id)
  if (!always && body.contains(document.activeElement)) return
  if (!rows.length) {
    const empty = el('td', 'faint', nothing)
    empty.colSpan = 12
    rows = [el('tr', '', empty)]
  }
  body.replaceChildren(...rows)
}

const row = (...cells) => el('tr', '', ...cells)

const whole = new Intl.NumberFormat('en', { maximumFractionDigits: 0 })
const fine = new Intl.NumberFormat('en', { maximumFractionDigits: 1 })
const count = value => (value < 10 && value % 1 ? fine : whole).format(value)

function bytes (value) {
  for (const unit of ['B', 'KiB', 'MiB']) {
    if (value < 1024) return `${count(value)} ${unit}`
    value /= 1024
  }
  return `${count(value)} GiB`
}

function duration (seconds) {
  const minutes = Math.floor(seconds / 60)
  const hours = Math.floor(minutes / 60)
  const days = Math.floor(hours / 24)
  if (days) return `${days} d ${hours % 24} h`
  if (hours) return `${hours} h ${minutes % 60} min`
  return minutes ? `${minutes} min` : `${Math.floor(seconds)} s`
}

const ago = seconds => seconds < 5 ? 'just now' : `${duration(seconds)} ago`
const nodeName = node => node ? node.slice(0, 8) : 'this server'

function say (text, id = 'say') {
  $(id).textContent = text
}

const trouble = error => `This has failed: ${error.message || error.code}`

async function attempt (id, done, work) {
  try {
    await work()
    say(done, id)
    return true
  } catch (error) {
    say(trouble(error), id)
    return false
  }
}

// Plots.

class Plot {
  constructor (title, unit) {
    this.points = []
    this.unit = unit
    this.value = el('b', '', '0')
    this.line = document.createElementNS('http://www.w3.org/2000/svg', 'polyline')
    this.svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg')
    this.svg.setAttribute('preserveAspectRatio', 'none')
    this.svg.setAttribute('role', 'img')
    this.svg.append(this.line)
    this.title = title
    $('tiles').append(el('div', 'tile', el('span', '', title), this.value, this.svg))
  }

  add (value) {
    this.points = [...this.points, value].slice(-POINTS)
    const most = Math.max(...this.points, 1)
    const width = Math.max(this.points.length, LEAST)
    const start = width - this.points.length
    this.svg.setAttribute('viewBox', `0 0 ${width - 1} 30`)
    this.line.setAttribute('points', this.points.map((y, i) => `${start + i},${(29 - 28 * y / most).toFixed(1)}`).join(' '))
    this.value.textContent = this.unit(value)
    const [from, to] = [Math.min(...this.points), Math.max(...this.points)].map(this.unit)
    this.svg.setAttribute('aria-label', `${this.title}: now ${this.unit(value)}, from ${from} to ${to}`)
  }
}

const plots = {
  connections: new Plot('Connections', count),
  users: new Plot('Users', count),
  messages_in: new Plot('Messages in per second', count),
  messages_out: new Plot('Messages out per second', count),
  calls_in: new Plot('Calls per second', count),
  bytes_out: new Plot('Bytes out per second', bytes),
  queued: new Plot('Waiting for receivers', bytes),
  errors: new Plot('Errors per second', count)
}
const RATES = ['messages_in', 'messages_out', 'calls_in', 'bytes_out', 'errors']

function plot (overview, nodes) {
  const now = performance.now()
  const seconds = (now - beforeAt) / 1000
  plots.connections.add(nodes.reduce((sum, node) => sum + node.connections, 0))
  plots.users.add(overview.users)
  plots.queued.add(nodes.reduce((sum, node) => sum + (node.queued || 0), 0))
  for (const rate of RATES) {
    let risen = 0
    for (const node of nodes) {
      const old = before.get(node.node)
      if (old) risen += Math.max(0, node[rate] - old[rate])
    }
    if (beforeAt) plots[rate].add(risen / seconds)
  }
  before = new Map(nodes.map(node => [node.node, node]))
  beforeAt = now
}

// The overview.

function health (node) {
  if (node.silent) return el('span', 'bad', 'no answer')
  const cluster = node.cluster
  if (!cluster) return el('span', 'good', node.node && node.version === undefined ? 'up, without this page' : 'up')
  if (cluster.healthy) return el('span', 'good', 'healthy')
  return el('span', 'bad', !cluster.broker ? 'no broker' : `lease ${duration(cluster.lease_age)} old`)
}

function facts (cluster) {
  if (!cluster) return ''
  const parts = []
  if (cluster.backlog) parts.push(`${count(cluster.backlog)} messages wait for the broker`)
  if (cluster.lost) parts.push(`${count(cluster.lost)} messages lost`)
  return parts.length ? ` (${parts.join(', ')})` : ''
}

function show (overview) {
  const nodes = overview.nodes.filter(node => !node.silent)
  plot(overview, nodes)
  fill('nodes', overview.nodes.map(node => {
    const title = el('code', '', nodeName(node.node))
    title.title = node.node
    const place = cell(title, node.node && node.node === overview.here ? ' (here)' : '')
    const state = cell(health(node), facts(node.cluster))
    if (node.silent) return row(place, state)
    const numbers = ['connections', 'users', 'detached', 'rooms', 'handlers'].map(key => number(node[key] === undefined ? '' : count(node[key])))
    return row(place, state, number(duration(node.uptime)), ...numbers, number(node.queued === undefined ? '' : bytes(node.queued)),
      number(count(node.errors)), cell(node.version || ''))
  }), 'No nodes')
  const all = key => nodes.flatMap(node => (node[key] || []).map(entry => ({ ...entry, node: node.node })))
  fill('failures', all('failures').sort((a, b) => a.ago - b.ago).map(failure => {
    const text = el('td', 'wide', el('code', '', failure.code), ` ${failure.text}`)
    if (failure.cause && failure.cause !== failure.text) text.append(el('div', '', failure.cause))
    const known = Object.entries(failure.facts).map(([key, value]) => `${key} ${value}`)
    if (failure.node) known.push(`node ${nodeName(failure.node)}`)
    text.append(el('div', 'faint', known.join(', ')))
    return row(cell(ago(failure.ago)), number(count(failure.count)), text, el('td', 'wide', el('code', '', failure.place)))
  }), 'None since the start')
  fill('blocked', all('blocked').sort((a, b) => a.ago - b.ago).map(blocked =>
    row(cell(ago(blocked.ago)), number(count(blocked.count)), number(fine.format(blocked.seconds)),
      el('td', 'wide', el('code', '', blocked.facts.handler)))
  ), 'None since the start')
  fill('slow', all('slow').sort((a, b) => b.queued - a.queued).slice(0, 20).map(slow =>
    row(cell(name(slow.user)), cell(el('code', '', slow.conn_id)), number(bytes(slow.queued)), cell(dropDevice(slow.conn_id, 'say')))
  ), 'None')
}

// Users and rooms, in pages.

class List {
  constructor (id, nothing, make) {
    this.id = id
    this.nothing = nothing
    this.make = make
    this.rows = []
    this.next = null
    this.asked = 0
    this.extended = false
    $(`${id}-more`).addEventListener('click', () => this.load(true))
    let timer
    $(`${id}-search`).addEventListener('input', () => {
      clearTimeout(timer)
      timer = setTimeout(() => this.load(), 200)
    })
  }

  async load (more = false) {
    const asked = ++this.asked
    let page
    try {
      page = await client.call(this.id, { search: $(`${this.id}-search`).value, after: more ? this.next : null })
    } catch (error) {
      return say(trouble(error))
    }
    if (asked !== this.asked || !client) return // a later question has been asked
    const rows = page.rows.map(this.make)
    this.extended = more
    this.next = page.next
    this.rows = more ? [...this.rows, ...rows] : rows
    fill(this.id, this.rows, this.nothing, true)
    $(`${this.id}-more`).hidden = !page.next
  }

  clear () {
    this.asked++
    this.rows = []
    this.next = null
    this.extended = false
    $(this.id).replaceChildren()
    $(`${this.id}-more`).hidden = true
  }

  refresh () {
    if (!this.extended && !$(this.id).contains(document.activeElement)) return this.load()
  }
}

const users = new List('users', 'No such user', user => row(
  cell(name(user.name)), number(count(user.devices)), cell(el('code', '', nodeName(user.node))),
  cell(button('Devices', `Devices of ${user.name}`, () => openUser(user)))
))

const rooms = new List('rooms', 'No such room', room => row(
  cell(name(room.name)), number(count(room.members)), cell(el('code', '', nodeName(room.node))),
  cell(room.ref ? button('Send', `Send to the room ${room.name}`, () => write(`Message to the room ${room.name}`, { room: room.ref })) : '')
))

// One user.

function dropDevice (connId, place) {
  return drop('Drop', `Drop the device ${connId}`, async () => {
    await attempt(place, `The device ${connId} has been dropped.`, () => client.call('drop-device', { conn_id: connId }))
    await showAgain()
  })
}

async function showAgain () {
  if (shownUser) await showDevices().catch(error => say(trouble(error), 'user-say'))
  await users.load()
}

async function showDevices () {
  const user = shownUser
  const devices = await client.call('devices', { user: user.ref })
  if (user !== shownUser) return // another one is shown by now
  fill('devices', devices.map(device => row(
    cell(el('code', '', device.conn_id)), cell(device.address), cell(device.attached ? 'connected' : 'away'),
    number(device.rtt === null ? '' : `${fine.format(device.rtt * 1000)} ms`), number(bytes(device.queued)),
    el('td', 'wide', device.rooms.join(', ') + (device.more_rooms ? ` and ${device.more_rooms} more` : '')),
    cell(el('code', '', nodeName(device.node))), cell(dropDevice(device.conn_id, 'user-say'))
  )), 'The user has left', true)
}

// A button of each user's own: being sure about one says nothing about the next.
function dropUser (user) {
  const element = drop('Drop the user', 'Drop the user', async () => {
    await attempt('user-say', `${user.name} has been dropped.`, () => client.call('drop-user', { user: user.ref }))
    await showAgain()
  })
  element.id = 'user-drop'
  return element
}

async function openUser (user) {
  shownUser = user
  $('user-drop').replaceWith(dropUser(user))
  $('user-name').textContent = user.name
  say('', 'user-say')
  fill('devices', [], 'Loading', true)
  $('user').showModal()
  await attempt('user-say', '', showDevices)
}

$('user').addEventListener('close', () => { shownUser = null })
$('user-send').addEventListener('click', () => write(`Message to ${shownUser.name}`, { user: shownUser.ref }))

// Test messages.

function write (title, to) {
  target = to
  $('message-to').textContent = title
  say('', 'message-problem')
  $('message').showModal()
  $('message-type').focus()
}

$('everyone').addEventListener('click', () => write('Message to everyone', {}))
$('message-cancel').addEventListener('click', () => $('message').close())
$('send').addEventListener('submit', async event => {
  event.preventDefault()
  let payload
  try {
    payload = JSON.parse($('message-payload').value || 'null')
  } catch {
    return say('The payload is not JSON: a text needs quotes, for example.', 'message-problem')
  }
  const message = { type: $('message-type').value, payload, ...target }
  if (await attempt('message-problem', '', () => client.call('send', message))) {
    $('message').close()
    say('The message has been sent.', $('user').open ? 'user-say' : 'say')
  }
})

// The connection.

function status (text, className) {
  $('status').textContent = text
  $('status').className = `badge ${className}`
}

function enter (inside) {
  $('main').hidden = $('leave').hidden = $('everyone').hidden = !inside
  $('login').hidden = inside
}

async function connect (identity, silent) {
  client?.close()
  const mine = client = new WseClient({ url: url.href, reconnect: true })
  say('', 'refused')
  mine.when.updated(state => {
    if (mine === client) status({ READY: 'live', CONNECTING: 'connecting', RE_CONNECTING: 'reconnecting' }[state] || 'offline', state === 'READY' ? 'good' : 'bad')
  })
  mine.when.gaveUp(error => {
    if (mine === client && !$('main').hidden) signOut(error.details.reason || error.message)
  })
  mine.when.error(() => {}) // calls show theirs, and the client tries again
  try {
    await mine.connect(identity)
  } catch (error) {
    if (mine === client) signOut(silent ? '' : error.details?.reason || error.message)
    return
  }
  $('operator').textContent = identity.name
  $('key').value = ''
  before.clear()
  beforeAt = looks = 0
  enter(true)
  if (matchMedia('(pointer: fine)').matches) $('users-search').focus()
  await look()
}

function signOut (why) {
  for (const dialog of document.querySelectorAll('dialog[open]')) dialog.close()
  client?.close()
  client = null
  for (const id of ['nodes', 'failures', 'slow', 'blocked', 'devices']) $(id).replaceChildren()
  for (const list of [users, rooms]) list.clear()
  $('operator').textContent = ''
  status('signed out', '')
  enter(false)
  say(why, 'refused')
  $('name').focus()
}

$('login').addEventListener('submit', event => {
  event.preventDefault()
  connect({ name: $('name').value, key: $('key').value }, false)
})
$('leave').addEventListener('click', () => signOut(''))

async function look () {
  if (isLooking || document.hidden || client?.status !== 'READY') return
  isLooking = true
  const mine = client
  try {
    const overview = await mine.call('overview')
    if (mine === client) show(overview)
    if (looks++ % LISTS_EVERY === 0) await Promise.all([users.refresh(), rooms.refresh()])
  } catch (error) {
    if (mine === client && mine.status === 'READY') say(trouble(error))
  }
  isLooking = false
}

setInterval(look, EVERY)
document.addEventListener('visibilitychange', look)
document.addEventListener('keydown', event => {
  const typing = /^(INPUT|TEXTAREA)$/.test(document.activeElement?.tagName)
  if (event.key === '/' && !typing && !document.querySelector('dialog[open]')) {
    event.preventDefault()
    $('users-search').focus()
  }
})

// A proxy, a cookie or a certificate may say who this is: then no key is needed.
connect({ name: '', key: '' }, true)
