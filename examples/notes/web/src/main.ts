import { WSE_STATUS } from 'wse-js'
import { Client, type ErrorCode, type Note } from './api.js'

const find = <T extends HTMLElement = HTMLElement>(id: string): T => document.querySelector<T>(`#${id}`)!
const [status, online, list, trouble, page] = [find('status'), find('online'), find('list'), find('trouble'), find('page')]
const [login, add] = [find<HTMLFormElement>('login'), find<HTMLFormElement>('add')]
const [name, password, text] = [find<HTMLInputElement>('name'), find<HTMLInputElement>('password'), find<HTMLInputElement>('text')]

const scheme = location.protocol === 'https:' ? 'wss:' : 'ws:'
const client = new Client({ url: `${scheme}//${location.host}/ws`, reconnect: true, resume: true })
const notes = new Map<number, Note>()
const here = new Set<string>()
let user = ''

// What the server tells, and what it asks.

const STATUS: { [status: string]: string } = { [WSE_STATUS.READY]: 'Connected', [WSE_STATUS.CONNECTING]: 'Connecting…', [WSE_STATUS.RE_CONNECTING]: 'Reconnecting…' }
client.when.updated((now) => (status.textContent = STATUS[now] ?? 'Not connected'))
client.when.error((error) => console.info(error.message)) // attempts that will be repeated
client.when.gaveUp(() => leave())

client.channel.on('notes.added', (note) => show(note))
client.channel.on('notes.removed', (id) => {
  notes.delete(id)
  draw()
})
client.channel.on('account.presence', ({ user, online }) => {
  if (online) here.add(user)
  else here.delete(user)
  draw()
})
client.register('confirm', (question) => confirm(question))
client.register('device', () => ({ kind: 'page', name: navigator.userAgent }))

// After every welcome that does not go on with the session from before, something may have been missed.
client.when.ready(async (welcome) => {
  if (client.recovered) return
  user = welcome.user
  const found = await client.call('notes.list', {})
  notes.clear() // at once: messages that come after the answer change what it says
  for (const note of found) notes.set(note.id, note)
  const users = await client.call('account.online')
  here.clear()
  for (const each of users) here.add(each)
  draw()
})

// What the user does.

const SAID: { [code in ErrorCode]?: string } = {
  'notes.not-yours': 'This note is not yours.',
  'sharing.no-such-user': 'There is no such user.',
  'wse.invalid-payload': 'This is too long.',
}

/** Run what a click asks for, and say what has failed. */
const attempt = async (action: () => Promise<unknown>): Promise<void> => {
  trouble.textContent = ''
  try {
    await action()
  } catch (error) {
    const { code, message } = error as { code?: ErrorCode; message: string }
    trouble.textContent = (code && SAID[code]) ?? message
  }
}

const enter = async (token: string): Promise<void> => {
  await client.connect({ token })
  sessionStorage.setItem('token', token)
  login.hidden = true
  page.hidden = false
  text.focus()
}

const leave = (): void => {
  sessionStorage.removeItem('token')
  login.hidden = false
  page.hidden = true
}

login.addEventListener('submit', (event) => {
  event.preventDefault()
  void attempt(async () => {
    const body = JSON.stringify({ name: name.value, password: password.value })
    const answer = await fetch('/login', { method: 'POST', headers: { 'Content-Type': 'application/json' }, body })
    const said = await answer.json()
    if (!answer.ok) throw new Error(said.detail)
    password.value = ''
    await enter(said.token)
  })
})

find('logout').addEventListener('click', () => {
  void attempt(async () => {
    await client.call('account.log_out')
    await client.close()
    leave()
  })
})

add.addEventListener('submit', (event) => {
  event.preventDefault()
  void attempt(async () => {
    show(await client.call('notes.add', { text: text.value }))
    text.value = ''
  })
})

const share = (note: Note): void => {
  const other = prompt('With whom?')
  if (other) void attempt(() => client.call('sharing.share', { note: note.id, user: other }))
}

// What the page shows.

const show = (note: Note): void => {
  notes.set(note.id, note)
  draw()
}

const button = (label: string, action: () => void): HTMLButtonElement => {
  const made = Object.assign(document.createElement('button'), { type: 'button', textContent: label })
  made.addEventListener('click', action)
  return made
}

const draw = (): void => {
  online.textContent = `You are ${user}. Online: ${[...here].sort().join(', ')}`
  const newest = [...notes.values()].sort((one, other) => other.id - one.id)
  list.replaceChildren(
    ...newest.map((note) => {
      const item = document.createElement('li')
      const said = Object.assign(document.createElement('span'), { textContent: note.text })
      const by = Object.assign(document.createElement('small'), { textContent: `${note.owner}, ${new Date(note.at).toLocaleString()}` })
      const own = [button('Share', () => share(note)), button('Remove', () => void attempt(() => client.call('notes.remove', { note: note.id })))]
      item.append(said, by, ...(note.owner === user ? own : []))
      return item
    }),
  )
}

const token = sessionStorage.getItem('token')
if (token) await enter(token).catch(leave)
