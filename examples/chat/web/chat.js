// The chat page: what a user sees and does. What travels is described in ../server.py.
import { Scram, WSE_ERROR, WSE_REASON, WSE_STATUS, WseClient } from '/wse.js'
import { signUpKeys } from '/keys.js'

const $ = (id) => document.getElementById(id)
const url = Object.assign(new URL('/', location), { protocol: location.protocol === 'https:' ? 'wss:' : 'ws:' }).href

const LOGGED_OUT = 'chat.logged-out'

// What went wrong, in a sentence. Codes and stack traces are for the console.
const SENTENCES = {
  [WSE_ERROR.NOT_AUTHORIZED]: 'The name or the password is wrong.',
  [WSE_ERROR.WS_CLIENT_ERROR]: 'The server cannot be reached.',
  [WSE_ERROR.CONNECTION_CLOSED]: 'The server cannot be reached.',
  [WSE_ERROR.CLIENT_NOT_READY]: 'There is no connection to the server at the moment.',
  [WSE_ERROR.RP_DISCONNECT]: 'The connection was lost before the server could answer.',
  [WSE_ERROR.RP_TIMEOUT]: 'The server did not answer in time.',
  [LOGGED_OUT]: 'This device was logged out from another one.',
  [WSE_REASON.CLIENTS_CONCURRENCY]: 'This device was logged out because you have logged in on too many others.',
  'bad-name': 'A name has 2 to 20 characters: a to z, digits, dots, hyphens; the first is a letter or digit.',
  'name-taken': 'This name is taken. Choose another one, or log in.',
  full: 'The server takes no more people.',
}
const sentence = (error) => {
  if (SENTENCES[error.code]) return SENTENCES[error.code]
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
  $('status').textContent = STATUS[status]
  document.body.dataset.status = status
  for (const id of ['send', 'make-report']) $(id).disabled = !ready
  const lost = me && status === WSE_STATUS.RE_CONNECTING
  $('banner').hidden = !lost
  $('banner').textContent = lost ? 'The connection to the server is lost. Trying to get it back…' : ''
}

// Who we are: null before logging in.
let me = null
let client = null

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

const logIn = async (name, password, device) => {
  const candidate = new WseClient({ url, re: true, backoff: { base: 0.5, cap: 4 } })
  candidate.when.error(() => {}) // attempts that will be repeated; what the user does is answered below
  candidate.when.updated((status) => {
    // Only a connection that there was is worth repeating.
    if (status === WSE_STATUS.RE_CONNECTING && client !== candidate) candidate.close()
    else showStatus(status)
  })
  candidate.when.ready((welcome) => {
    client = candidate
    me = welcome
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
    .on('message', showMessage)
    .on('direct', showMessage)
    .on('sent', showMessage)
    .on('note', ({ from, text }) => showEvent(`${from}, to this device: ${text}`))
    .on('news', ({ text }) => showEvent(text))
    .on('online', showPeople)
    .on('devices', showDevices)
    .on('progress', showProgress)
  await candidate.connect(new Scram(name, password), { device })
}

/** After every welcome: the first, and those after the connection was lost. */
const enter = async () => {
  const first = $('chat').hidden
  showStatus(client.status)
  $('who').textContent = me.user
  for (const id of ['session', 'chat']) $(id).hidden = false
  $('entry').hidden = true
  if (first) {
    $('text').focus()
    document.title = `${me.user} · WSE chat`
  }
  try {
    for (const message of await client.call('history')) showMessage(message)
  } catch (error) {
    showEvent(sentence(error))
  }
}

const leave = (reason) => {
  client = null
  me = null
  showStatus(WSE_STATUS.OFFLINE)
  document.title = 'WSE chat'
  for (const id of ['session', 'chat']) $(id).hidden = true
  for (const id of ['messages', 'people', 'devices', 'report']) $(id).replaceChildren()
  for (const id of ['composer', 'sign-in']) $(id).reset()
  shown.clear()
  showMode()
  addressee('')
  showSide(false)
  $('entry').hidden = false
  const known = SENTENCES[reason] ?? 'The server has ended the connection. Please log in again.'
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
      await logIn(name, password, $('device').value.trim() || browser())
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
  await mine.close()
  if (client === mine) leave(WSE_REASON.BY_CLIENT) // there was no connection that could tell `closed`
}
$('log-out').addEventListener('click', logOut)

// Messages.

const shown = new Map() // by id: after a reconnect the history has many that are here already
const clock = new Intl.DateTimeFormat(undefined, { hour: '2-digit', minute: '2-digit' })
const day = new Intl.DateTimeFormat(undefined, { dateStyle: 'medium', timeStyle: 'short' })

const copy = (id) => $(id).content.firstElementChild.cloneNode(true)
const portrait = (element, name) => {
  element.textContent = [...name][0].toUpperCase()
  element.classList.add(`hue-${[...name].reduce((sum, char) => sum + char.codePointAt(0), 0) % 6}`)
}

// Whoever reads the end stays there when a message comes, the window changes or a phone's keyboard opens.
const list = $('messages')
let atEnd = true
const toEnd = () => (list.scrollTop = list.scrollHeight)
list.addEventListener('scroll', () => (atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 80))
new ResizeObserver(() => atEnd && toEnd()).observe(list)

const append = (item) => {
  list.append(item)
  if (atEnd || item.classList.contains('own')) toEnd()
}

const showMessage = ({ id, at, from, to, text }) => {
  if (shown.has(id)) return
  const [, user, device] = /^([^/]*)\/(.*)$/s.exec(from)
  const item = copy('message-template')
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
  time.title = day.format(date)
  shown.set(id, item)
  // What comes late, from the history after a reconnect, goes where it belongs.
  const next = [...shown].filter(([other]) => other > id).sort(([a], [b]) => a - b)[0]
  if (next) next[1].before(item)
  else append(item)
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
$('text').addEventListener('keydown', ({ key }) => key === 'Escape' && addressee(''))
$('composer').addEventListener('submit', async (event) => {
  event.preventDefault()
  const [to, text] = [$('to').value, $('text').value.trim()]
  if (!text) return
  $('composer-error').textContent = ''
  try {
    if (to) await client.call('tell', { to, text })
    else client.send('say', text)
    $('text').value = ''
  } catch (error) {
    $('composer-error').textContent = sentence(error)
  }
  $('text').focus()
})

// People.

const showPeople = (online) => {
  const names = Object.keys(online).sort()
  const others = names.filter((name) => name !== me.user)
  const chosen = $('to').value
  $('people').replaceChildren(
    ...names.map((name) => {
      const item = copy('person-template')
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
  // Somebody whom we are writing to stays, to be told on sending that they are gone.
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

/** The server asks every device this. */
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
  const focused = document.activeElement?.closest('#devices li')?.dataset.device
  $('devices').replaceChildren(
    ...devices.map(({ device, name, info }) => {
      const label = name.slice(name.indexOf('/') + 1)
      const item = copy('device-template')
      item.dataset.device = device
      item.querySelector('.label').textContent = label
      if (device !== me.device) item.querySelector('.this').remove()
      const { browser, system, timezone, ...other } = info ?? {}
      const words = [browser, timezone, ...Object.values(other)].filter((word) => typeof word === 'string')
      item.querySelector('.info').textContent = words.join(' · ') || 'does not answer'
      const button = item.querySelector('button')
      button.setAttribute('aria-label', `Log out ${label}${device === me.device ? ' (this one)' : ''}`)
      button.addEventListener('click', () => whileBusy(button, () => logOutDevice(device)))
      return item
    }),
  )
  if (focused) ($('devices').querySelector(`[data-device="${focused}"] button`) ?? $('text')).focus()
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
      const { messages, words, people } = await client.call('report', null, { tO: 60 })
      const talkers = Object.entries(people).map(([name, count]) => `${name} ${count}`)
      $('report').textContent = `${messages} messages, ${words} words. Most by: ${talkers.join(', ') || 'nobody yet'}.`
    } catch (error) {
      if (me) $('report').textContent = sentence(error)
    }
    for (const id of ['progress', 'percent']) $(id).hidden = true
  }).then(() => showStatus(client?.status ?? WSE_STATUS.OFFLINE)),
)

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
$('name').focus()
