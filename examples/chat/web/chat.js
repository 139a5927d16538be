// The chat page. The messages that it exchanges with the server are described in ../server.py.
import { Scram, WSE_ERROR, WSE_REASON, WSE_STATUS, WseClient } from '/wse.js'
import { signUpKeys } from '/keys.js'
import { CuttableSocket, cutNetwork } from '/network.js'

const $ = (id) => document.getElementById(id)
const url = Object.assign(new URL('/', location), { protocol: location.protocol === 'https:' ? 'wss:' : 'ws:' }).href

const LOGGED_OUT = 'chat.logged-out'
const SESSION_ENDED = 'chat.session-ended'

// Errors as sentences. Codes and stack traces are for the console.
const SENTENCES = {
  [WSE_ERROR.NOT_AUTHORIZED]: 'The name or the password is wrong.',
  [WSE_ERROR.WS_CLIENT_ERROR]: 'The server cannot be reached.',
  [WSE_ERROR.CONNECTION_CLOSED]: 'The server cannot be reached.',
  [WSE_ERROR.CLIENT_NOT_READY]: 'There is no connection to the server at the moment.',
  [SESSION_ENDED]: 'Your session has ended. Please log in again.',
  [WSE_ERROR.RP_DISCONNECT]: 'The connection was lost before the server could answer.',
  [WSE_ERROR.RP_TIMEOUT]: 'The server did not answer in time.',
  [LOGGED_OUT]: 'This device was logged out from another one.',
  [WSE_REASON.CLIENTS_CONCURRENCY]: 'This device was logged out because you have logged in on too many others.',
  'bad-name': 'A name has 2 to 20 characters: a to z, digits, dots, hyphens; the first is a letter or digit.',
  'name-taken': 'This name is taken. Choose another one, or log in.',
  full: 'The server takes no more people.',
}
const sentence = (error) => {
  const known = SENTENCES[error.details?.reason] ?? SENTENCES[error.code]
  if (known) return known
  // The application's own errors come with words for people.
  if (error.code?.startsWith('chat.')) return `${error.message[0].toUpperCase()}${error.message.slice(1)}.`
  console.error(error)
  return 'Something went wrong. Please try again.'
}

// The state of the connection.

const STATUS = {
  [WSE_STATUS.IDLE]: 'Not connected',
  [WSE_STATUS.CONNECTING]: 'Connecting…',
  [WSE_STATUS.READY]: 'Connected',
  [WSE_STATUS.OFFLINE]: 'Not connected',
  [WSE_STATUS.RE_CONNECTING]: 'Reconnecting…',
}
const showStatus = (status) => {
  const ready = status === WSE_STATUS.READY
  const isLate = ready && [...pending.values()].some(({ isLate }) => isLate)
  $('status').textContent = isLate ? 'Waiting for an answer…' : STATUS[status]
  document.body.dataset.status = isLate ? 'WAITING' : status
  $('make-report').disabled = !ready || isBusy($('make-report'))
  const lost = status === WSE_STATUS.RE_CONNECTING && (me || session)
  $('banner').hidden = !lost
  $('banner').textContent = lost ? 'The connection to the server is lost. Trying to get it back…' : ''
}

let me = null // the last welcome; null before logging in
let client = null

// A session key lets this tab come back after a reload. The password is kept nowhere.

const stored = 'wse-chat-session'
let session = null
const keepSession = (value) => {
  session = value
  try {
    if (value) sessionStorage.setItem(stored, JSON.stringify(value))
    else sessionStorage.removeItem(stored)
  } catch {} // the browser forbids it: then a reload asks for the password
}
try {
  session = JSON.parse(sessionStorage.getItem(stored))
} catch {}

/** An identity as Scram is one: the session if there is one, else the password. */
class Login {
  constructor(scram) {
    this.scram = scram
  }
  start() {
    this.resumes = Boolean(session)
    return session ? { session: session.key } : this.scram.start()
  }
  respond(quest) {
    return this.scram.respond(quest)
  }
  finish(welcome) {
    return this.resumes ? welcome : this.scram.finish(welcome)
  }
}

// Coming and going.

const signUp = async (name, password) => {
  // The server answers in its quest and lets nobody in for it: see `challenge` in ../server.py.
  const stranger = new WseClient({ url })
  const keys = await signUpKeys(name, password)
  const answer = await new Promise((resolve, reject) => {
    stranger.challenge((quest) => resolve(quest.signup))
    stranger.connect({ signup: { name, keys } }).catch(reject)
  })
  await stranger.close()
  if (answer !== 'done') throw Object.assign(new Error(answer), { code: answer })
}

/** Log in with a password, `scram`, or come back with the session; `device` is the name of this device. */
const logIn = async (scram, device) => {
  // In the inbox of its user, each tab is a device of its own.
  const inbox = session?.inbox ?? `${Date.now()}-${Math.random()}`
  const candidate = new WseClient({
    url,
    inbox,
    rooms: true,
    WebSocket: CuttableSocket,
    reconnect: true,
    resume: true,
    backoff: { base: 0.5, cap: 4 },
    heartbeat: { interval: 5, timeout: 5 }, // so that a server that has stopped is noticed soon
  })
  candidate.when.error(() => {}) // attempts that will be repeated; errors of what the user does are shown below
  candidate.when.updated((status) => {
    // A first attempt is not repeated: the user is there to try again.
    if (status === WSE_STATUS.RE_CONNECTING && client !== candidate && !session) candidate.close()
    else showStatus(status)
    if (status === WSE_STATUS.RE_CONNECTING) leftAt ??= Date.now()
    for (const message of pending.values()) if (client === candidate) mark(message, NOT_SENT[status] ?? 'Sending…')
  })
  candidate.when.resumed(backInSession)
  candidate.when.ready((welcome) => {
    client = candidate
    me = welcome
    keepSession({ key: welcome.session, device, inbox })
    enter()
  })
  candidate.when.closed((code, reason) => {
    // Whether it tries again is decided after this event.
    queueMicrotask(() => {
      if (client === candidate && candidate.status === WSE_STATUS.OFFLINE) leave(reason)
    })
  })
  candidate.register('client-info', clientInfo)
  candidate.channel
    .on('message', showNews)
    .on('direct', showDirect)
    .on('sent', showMessage)
    .on('note', ({ from, text }) => showEvent(`${from}, to this device: ${text}`))
    .on('news', ({ text }) => showEvent(text))
    .on('online', showPeople)
    .on('devices', showDevices)
    .on('progress', showProgress)
  await candidate.connect(new Login(scram), { device })
}

/** After every welcome: the first, and those after the connection was lost. */
const enter = async () => {
  const first = $('chat').hidden
  leftAt = null
  showStatus(client.status)
  $('who').textContent = me.user
  for (const id of ['session', 'chat']) $(id).hidden = false
  $('entry').hidden = true
  if (first) {
    $('text').focus()
    showTitle()
    const room = client.room('chat')
    room.presence.when.changed(() => showTypists(room.presence.members))
    room.join().catch((error) => showEvent(sentence(error)))
  }
  $('composer-error').textContent = ''
  try {
    for (const message of await client.call('history')) showMessage(message)
  } catch (error) {
    showEvent(sentence(error))
  }
  // Messages whose answer was lost: those that have arrived were in the history.
  deliverAll()
}

let leftAt = null // when the connection was lost
let arrived = 0 // messages of others in this session

/** The connection is back, and the session as well: messages and answers of the time between are on their way. */
const backInSession = async () => {
  const seconds = Math.round((Date.now() - leftAt) / 1000)
  leftAt = null
  const [before, sent] = [arrived, pending.size]
  deliverAll()
  await client.call('who-is-online').catch(() => {}) // what came meanwhile comes before the answer
  showEvent(`Back after ${seconds} s. Messages that arrived meanwhile: ${arrived - before}; of yours that were sent: ${sent}.`)
}
const deliverAll = () => [...pending.values()].filter(({ isUnderWay }) => !isUnderWay).forEach(deliver)

const leave = (reason) => {
  client = null
  me = null
  keepSession(null)
  pending.clear()
  showStatus(WSE_STATUS.OFFLINE)
  unread = 0
  showTitle()
  for (const id of ['session', 'chat']) $(id).hidden = true
  for (const id of ['messages', 'people', 'devices', 'report', 'typing']) $(id).replaceChildren()
  for (const id of ['composer', 'sign-in']) $(id).reset()
  shown.clear()
  showMode()
  addressee('')
  showSide(false)
  $('entry').hidden = false
  const known = SENTENCES[reason] ?? SENTENCES[SESSION_ENDED]
  $('entry-error').textContent = reason === WSE_REASON.BY_CLIENT ? '' : known
  $('name').focus()
}

const mode = () => new FormData($('sign-in')).get('mode')
const showMode = () => {
  const isNew = mode() === 'sign-up'
  $('enter').textContent = isNew ? 'Sign up' : 'Log in'
  $('password').autocomplete = isNew ? 'new-password' : 'current-password'
  $('password').minLength = isNew ? 8 : 0
  $('entry-error').textContent = ''
  if (!$('device').value) $('device').value = `${browser()} on ${system()}`
}

// A button whose work is going on stays disabled, whatever else is drawn meanwhile.
const isBusy = (button) => button.hasAttribute('aria-busy')
const whileBusy = async (button, work) => {
  if (button.disabled) return
  button.disabled = true
  button.setAttribute('aria-busy', 'true')
  try {
    await work()
  } finally {
    button.removeAttribute('aria-busy')
    button.disabled = false
  }
}

$('sign-in').addEventListener('change', ({ target }) => target.name === 'mode' && showMode())
$('sign-in').addEventListener('submit', (event) => {
  event.preventDefault()
  whileBusy($('enter'), async () => {
    const name = $('name').value.trim().toLowerCase()
    const password = $('password').value
    $('entry-error').textContent = ''
    try {
      if (mode() === 'sign-up') await signUp(name, password)
      await logIn(new Scram(name, password), $('device').value.trim() || browser())
      $('password').value = ''
    } catch (error) {
      const isForbidden = error instanceof TypeError // by Scram
      $('entry-error').textContent = isForbidden ? 'The name or the password has characters that cannot be used.' : sentence(error)
      $('password').focus()
    }
  })
})
const logOut = async () => {
  const mine = client
  if (mine.status === WSE_STATUS.READY) await mine.call('log-out', null, { timeout: 2 }).catch(() => {})
  await mine.close()
  if (client === mine) leave(WSE_REASON.BY_CLIENT) // without a connection, `closed` does not fire
}
$('log-out').addEventListener('click', logOut)

// Messages.

const shown = new Map() // by id: after a reconnect the history has many that are here already
const pending = new Map() // by ref: messages of this tab that the server has not acknowledged
const PATIENCE = 2000 // milliseconds until a message without an answer says so
const TOGETHER = 5 * 60_000 // milliseconds between messages of one sender that are shown as one group
const clock = new Intl.DateTimeFormat(undefined, { hour: '2-digit', minute: '2-digit' })
const dateAndTime = new Intl.DateTimeFormat(undefined, { dateStyle: 'medium', timeStyle: 'short' })
const longDate = new Intl.DateTimeFormat(undefined, { weekday: 'long', day: 'numeric', month: 'long', year: 'numeric' })

const copy = (id) => $(id).content.firstElementChild.cloneNode(true)
const portrait = (element, name) => {
  element.textContent = [...name][0].toUpperCase()
  element.classList.add(`hue-${[...name].reduce((sum, char) => sum + char.codePointAt(0), 0) % 6}`)
}

// A user who reads the end stays there when a message comes, the window changes or a phone's keyboard opens.
const list = $('messages')
let atEnd = true
let size = ''
const sizeOf = () => `${list.clientWidth}x${list.clientHeight}`
const toEnd = () => (list.scrollTop = list.scrollHeight)
// A scroll event between a change of the size and its observation says nothing about the user.
list.addEventListener('scroll', () => {
  if (sizeOf() === size) atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 80
})
new ResizeObserver(() => {
  size = sizeOf()
  if (atEnd) toEnd()
}).observe(list)

const append = (item) => {
  list.append(item)
  if (atEnd || item.classList.contains('own')) toEnd()
}

/** The list item of a message; one without an id has not been acknowledged. */
const makeItem = ({ at, from, to, text }) => {
  const [, user, device] = /^([^/]*)\/(.*)$/s.exec(from)
  const item = copy('message-template')
  Object.assign(item.dataset, { at, from, to: to ?? '' })
  const part = (name) => item.querySelector(`.${name}`)
  portrait(part('avatar'), user)
  item.classList.toggle('own', user === me.user)
  part('from').textContent = user === me.user ? 'You' : user
  part('via').textContent = device
  part('text').textContent = text
  if (to) {
    item.classList.add('direct')
    part('private').hidden = false
    part('private').textContent = to === me.user ? 'to you only' : `to ${to} only`
  }
  const time = item.querySelector('time')
  const date = new Date(at)
  time.dateTime = at
  time.textContent = clock.format(date)
  time.title = dateAndTime.format(date)
  return item
}

let unread = 0 // messages to this user that came while this device was away, and that nobody has looked at

const showTitle = () => (document.title = me ? `${unread ? `(${unread}) ` : ''}${me.user} · WSE chat` : 'WSE chat')

const showDirect = (message) => {
  if (client.kept?.at < me.now) {
    unread++
    showTitle()
  }
  showNews(message)
}

/** Whoever does something on the page has seen what is on it. */
for (const type of ['keydown', 'pointerdown']) {
  addEventListener(type, () => {
    unread = 0
    showTitle()
  })
}

const showNews = (message) => {
  if (!message.from.startsWith(`${me.user}/`)) arrived++
  showMessage(message)
}

const showMessage = (message) => {
  const { id, ref } = message
  const mine = pending.get(ref)
  if (mine) {
    mine.item.remove()
    pending.delete(ref)
    showStatus(client.status)
  }
  if (shown.has(id)) return
  const item = makeItem(message)
  shown.set(id, item)
  // A late message, from the history after a reconnect, goes to its own place; unacknowledged ones stay at the end.
  const next = [...shown].filter(([other]) => other > id).sort(([a], [b]) => a - b)[0]?.[1]
  const before = next && list.contains(precursor(next)) ? precursor(next) : (next ?? list.querySelector('.pending'))
  if (before) {
    before.before(item)
    if (atEnd) toEnd()
  } else append(item)
  for (const changed of [item, item.nextElementSibling]) arrange(changed)
}

/** The date above a message, if there is one. */
const precursor = (item) => (item.previousElementSibling?.matches('.day') ? item.previousElementSibling : null)

/** Put the date above the first message of a day, and join a message to the one above it of the same sender. */
const arrange = (item) => {
  if (!item?.matches('.message')) return
  precursor(item)?.remove()
  const { at, from, to } = item.dataset
  const above = item.previousElementSibling
  const messages = [...list.querySelectorAll('.message')]
  const earlier = messages[messages.indexOf(item) - 1]
  const isNewDay = new Date(at).toDateString() !== (earlier && new Date(earlier.dataset.at).toDateString())
  if (isNewDay) {
    const date = document.createElement('li')
    date.className = 'day'
    date.textContent = longDate.format(new Date(at))
    item.before(date)
  }
  const same = above?.matches('.message') && above.dataset.from === from && above.dataset.to === to
  item.classList.toggle('joined', Boolean(same && !isNewDay && new Date(at) - new Date(above.dataset.at) < TOGETHER))
  if (atEnd) toEnd()
}

// Messages that this tab sends are shown at once, and look unacknowledged until the server has answered.

const AWAY = 'Not sent yet: it will be when the connection is back.'
const NOT_SENT = { [WSE_STATUS.OFFLINE]: AWAY, [WSE_STATUS.RE_CONNECTING]: AWAY }

/** Send a message, again if need be: the server keeps one `ref` once. */
const deliver = async (message) => {
  const { ref, to, text, item } = message
  const late = setTimeout(() => {
    if (client?.status !== WSE_STATUS.READY) return
    message.isLate = true
    mark(message, 'No answer from the server yet…')
  }, PATIENCE)
  message.isUnderWay = true
  mark(message, NOT_SENT[client.status] ?? 'Sending…')
  try {
    showMessage(await (to ? client.call('tell', { to, text, ref }) : client.call('say', { text, ref })))
  } catch (error) {
    if (!pending.has(ref)) return // it has arrived all the same, or the user has logged out
    message.isLate = message.isUnderWay = false
    if (error.code?.startsWith('chat.')) {
      // The server does not take it: it goes back to where it was written.
      pending.delete(ref)
      item.remove()
      if (!$('text').value) $('text').value = text
      $('composer-error').textContent = sentence(error)
    } else {
      mark(message, AWAY)
      if (client?.status === WSE_STATUS.READY) deliver(message)
    }
  } finally {
    clearTimeout(late)
    if (client) showStatus(client.status)
  }
}

const mark = ({ ref, item }, state) => {
  if (!pending.has(ref)) return
  const label = item.querySelector('.state')
  label.hidden = false
  label.textContent = state
  showStatus(client.status)
}

const showEvent = (text) => {
  const item = document.createElement('li')
  item.className = 'event'
  item.textContent = text
  append(item)
}

const addressee = (user) => {
  $('to').value = user
  $('text').placeholder = user ? `Message to ${user} only` : 'Message to everybody'
  $('composer').classList.toggle('direct', Boolean(user))
}
$('to').addEventListener('change', () => addressee($('to').value))
$('text').addEventListener('keydown', (event) => {
  if (event.key === 'Escape') addressee('')
  if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return
  event.preventDefault() // Shift+Enter begins a new line
  send()
})
$('composer').addEventListener('submit', (event) => {
  event.preventDefault()
  send()
})

const send = () => {
  const [to, text] = [$('to').value, $('text').value.trim()]
  if (!text) return
  $('composer-error').textContent = ''
  $('text').value = ''
  showTyping()
  const at = new Date().toISOString()
  const ref = btoa(String.fromCharCode(...crypto.getRandomValues(new Uint8Array(18))))
  const item = makeItem({ at, from: `${me.user}/${session.device}`, to, text })
  item.classList.add('pending')
  append(item)
  arrange(item)
  const message = { ref, to, text, item }
  pending.set(ref, message)
  deliver(message)
  $('text').focus()
}

// Who is typing. What is for one user only is nobody else's affair.

const TYPING = 3 // seconds after the last key

const showTyping = () => {
  const { presence } = client.room('chat')
  if ($('text').value && !$('to').value) presence.set({ typing: true }, { ttl: TYPING })
  else presence.clear()
}
$('text').addEventListener('input', showTyping)

const showTypists = (members) => {
  const names = Object.keys(members).filter((name) => name !== me?.user)
  const last = names.pop()
  $('typing').textContent = !last ? '' : names.length ? `${names.join(', ')} and ${last} are typing…` : `${last} is typing…`
}

// Lists that are drawn anew when something changes.

/** Draw the items of a list. The one whose button has the focus keeps it, if it is still there. */
const redraw = (list, items) => {
  const focused = document.activeElement?.closest('li')
  const key = focused?.parentElement === list && focused.dataset.key
  list.replaceChildren(...items)
  if (key) (items.find((item) => item.dataset.key === key)?.querySelector('button') ?? $('text')).focus()
}

// People.

const showPeople = (online) => {
  const names = Object.keys(online).sort()
  const others = names.filter((name) => name !== me.user)
  const chosen = $('to').value
  redraw(
    $('people'),
    names.map((name) => {
      const item = copy('person-template')
      item.dataset.key = name
      portrait(item.querySelector('.avatar'), name)
      item.querySelector('.label').textContent = name === me.user ? `${name} (you)` : name
      item.querySelector('.count').textContent = online[name] > 1 ? `${online[name]} devices` : '1 device'
      const button = item.querySelector('button')
      if (name === me.user) button.remove()
      else {
        button.setAttribute('aria-label', `Write to ${name} only`)
        button.addEventListener('click', () => {
          addressee(name)
          showSide(false)
          $('text').focus()
        })
      }
      return item
    }),
  )
  // The addressee of the message being written stays, even if offline: sending it shows that.
  if (chosen && !others.includes(chosen)) others.push(chosen)
  $('to').replaceChildren(new Option('Everybody', ''), ...others.map((name) => new Option(`${name} only`, name)))
  addressee(chosen)
}

// Devices.

const browser = () => {
  const brand = navigator.userAgentData?.brands.findLast(({ brand }) => !/Not.A.Brand|Chromium/i.test(brand))
  if (brand) return brand.brand
  const [, name] = /(Firefox|Edg|OPR|Chrome|Safari)\//.exec(navigator.userAgent) ?? []
  return { Edg: 'Edge', OPR: 'Opera', Chrome: 'Chromium' }[name] ?? name ?? 'a browser'
}
const system = () => /Android|iPhone|iPad|Windows|Mac OS|CrOS|Linux/.exec(navigator.userAgent)?.[0] ?? 'an unknown system'

/** The answer to the server's question about this device. */
const clientInfo = () => ({
  browser: browser(),
  system: system(),
  timezone: Intl.DateTimeFormat().resolvedOptions().timeZone,
})

const showDevices = async () => {
  const asked = (showDevices.asked = Symbol('asked'))
  let devices
  try {
    devices = await client.call('my-devices')
  } catch (error) {
    if (me) $('devices-error').textContent = sentence(error)
    return
  }
  if (asked !== showDevices.asked || !me) return // asked again meanwhile, or logged out
  $('devices-error').textContent = ''
  const busy = new Map([...$('devices').querySelectorAll('[aria-busy]')].map((button) => [button.closest('li').dataset.key, button]))
  redraw(
    $('devices'),
    devices.map(({ device, name, info }) => {
      const label = name.slice(name.indexOf('/') + 1)
      const item = copy('device-template')
      item.dataset.key = device
      item.querySelector('.label').textContent = label
      if (device !== me.device) item.querySelector('.this').remove()
      const { browser, system, timezone, ...other } = info ?? {}
      const words = [browser, timezone, ...Object.values(other)].filter((word) => typeof word === 'string')
      item.querySelector('.info').textContent = words.join(' · ') || 'does not answer'
      const button = item.querySelector('button')
      button.setAttribute('aria-label', `Log out ${label}${device === me.device ? ' (this one)' : ''}`)
      button.addEventListener('click', () => whileBusy(button, () => logOutDevice(device)))
      if (busy.has(device)) button.replaceWith(busy.get(device))
      return item
    }),
  )
}

const logOutDevice = async (device) => {
  try {
    if (device === me.device) await logOut()
    else await client.call('log-out-device', { device })
  } catch (error) {
    $('devices-error').textContent = sentence(error)
  }
}

// The long call.

const showProgress = ({ done, of }) => {
  $('progress').value = done / of
  $('percent').textContent = `${Math.round((100 * done) / of)} %`
}
$('make-report').addEventListener('click', () =>
  whileBusy($('make-report'), async () => {
    $('progress').value = 0
    for (const id of ['progress', 'percent']) $(id).hidden = false
    for (const id of ['percent', 'report']) $(id).textContent = ''
    try {
      const { messages, words, people } = await client.call('report', null, { timeout: 60 })
      const talkers = Object.entries(people).map(([name, count]) => `${name} ${count}`)
      $('report').textContent = `${messages} messages, ${words} words. Most by: ${talkers.join(', ') || 'nobody yet'}.`
    } catch (error) {
      if (me) $('report').textContent = sentence(error)
    }
    for (const id of ['progress', 'percent']) $(id).hidden = true
  }).then(() => showStatus(client?.status ?? WSE_STATUS.OFFLINE)),
)

// The network.

$('cut-network').addEventListener('click', () => {
  const cut = $('cut-network').getAttribute('aria-pressed') !== 'true'
  $('cut-network').setAttribute('aria-pressed', String(cut))
  $('cut-network').textContent = cut ? 'Mend the network' : 'Cut the network'
  cutNetwork(cut)
})

// On a narrow screen the side is a sheet.

const showSide = (open) => {
  $('side').classList.toggle('open', open)
  $('toggle-side').setAttribute('aria-expanded', String(open))
}
$('toggle-side').addEventListener('click', () => showSide($('toggle-side').getAttribute('aria-expanded') !== 'true'))
document.addEventListener('keydown', ({ key }) => {
  if (key === 'Escape' && $('side').classList.contains('open')) {
    showSide(false)
    $('toggle-side').focus()
  }
})

showMode()
if (session) {
  // After a reload.
  $('entry').hidden = true
  logIn(null, session.device).catch((error) => {
    leave(WSE_REASON.BY_CLIENT)
    $('entry-error').textContent = sentence(error)
  })
} else $('name').focus()
