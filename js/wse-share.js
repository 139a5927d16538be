// One connection for the tabs of a browser: `new WseClient({ url, share: true })` of wse.js loads this. MIT licence.
//
//   tab: WseClient, SharedSocket ── line ──┐
//   tab: WseClient, SharedSocket ── line ──┤ Hub ── WebSocket ── server
//
// A SharedSocket looks like a WebSocket to the client of its tab. The hub opens one WebSocket for all of them. It lives in
// a SharedWorker; where there is none, in the tab that holds a Web Lock, and lines are a BroadcastChannel. Where neither
// exists, or the protocol is not JSON, each tab has a connection of its own.
//
// A leading tab takes the connection with it: `pagehide` comes too late for another one to connect first. What it has not
// taken from the other tabs is theirs to send again.

const JSON_PROTOCOL = 'wse-default-json'
const isWorker = typeof globalThis.SharedWorkerGlobalScope === 'function' && globalThis instanceof globalThis.SharedWorkerGlobalScope

// The hub.

/**
 * The connection of one user to one server, and the tabs that share it.
 *
 * A tab is `{ post(message) }`. It sends `{ open: [url, protocol], lock }`, `{ data, number }`, `{ welcome }` and `{ close:
 * [code, reason] }`, and gets `{ open: true, joined }`, `{ data }`, `{ taken: number }` and `{ close: [code, reason] }`.
 */
export class Hub {
  // In the order in which they came; the first one that has not been welcomed shakes hands with the server.
  #tabs = new Set()
  #socket = /** @type {any} */ (null)
  #opener = /** @type {any} */ (null)
  #welcome = /** @type {any} */ (null)
  #stamp = 0
  // By the stamp on the wire: who called, and under which stamp.
  #calls = new Map()
  // By the server's stamp: the tab that has been asked to answer its call, and those that are left.
  #asked = new Map()

  get isIdle() {
    return !this.#tabs.size
  }

  receive(tab, { open, data, number, welcome, close, lock }) {
    if (open) this.#join(tab, open, lock)
    else if (!this.#tabs.has(tab)) return
    else if (close) this.leave(tab, ...close)
    else if (welcome) this.#welcomed(welcome[0])
    else this.#send(tab, data, number)
  }

  leave(tab, code = 1000, reason = 'wse.by-client') {
    if (!this.#tabs.delete(tab)) return
    for (const [stamp, call] of this.#calls) if (call.tab === tab) this.#calls.delete(stamp)
    for (const [stamp, { asked, rp }] of this.#asked) {
      if (asked !== tab) continue
      this.#asked.delete(stamp)
      this.#write(['~wse:response-err', { code: 'wse.client.rp.disconnect', details: { rp, rpc: rp } }, stamp])
    }
    if (this.#tabs.size && tab !== this.#opener) return
    if (this.#tabs.size && this.#welcome) {
      this.#opener = null
      return
    }
    // Nobody is left, or the handshake has lost its tab and begins anew with the next one.
    this.#drop()?.close(code === 4000 ? 4000 : 1000, reason)
    const [next] = this.#tabs
    if (next) this.#connect(next)
  }

  #join(tab, [url, protocol], lock) {
    Object.assign(tab, { url, protocol, hello: null, isReady: false })
    this.#tabs.add(tab)
    // The lock is free when the tab has gone, however it went.
    if (lock) globalThis.navigator.locks?.request(lock, () => this.leave(tab))
    if (!this.#socket) this.#connect(tab)
    else if (this.#socket.readyState === 1) tab.post({ open: true, joined: true })
  }

  #connect(tab) {
    const socket = (this.#socket = new WebSocket(tab.url, tab.protocol))
    this.#opener = tab
    const isOurs = () => socket === this.#socket
    socket.onopen = () => {
      if (!isOurs()) return
      for (const each of this.#tabs) each.post({ open: true, joined: each !== tab })
      if (tab.hello) socket.send(tab.hello)
    }
    socket.onmessage = ({ data }) => isOurs() && this.#receive(data)
    socket.onclose = ({ code, reason }) => {
      if (!isOurs()) return
      this.#drop()
      const tabs = [...this.#tabs]
      this.#tabs.clear()
      for (const each of tabs) each.post({ close: [code, reason] })
    }
  }

  #drop() {
    const socket = this.#socket
    this.#socket = this.#opener = this.#welcome = null
    this.#calls.clear()
    this.#asked.clear()
    return socket
  }

  #write(message) {
    if (this.#socket?.readyState === 1) this.#socket.send(JSON.stringify(message))
  }

  // From a tab.

  #send(tab, data, number) {
    if (!tab.hello) {
      tab.hello = data
      if (this.#welcome) this.#admit(tab)
      else if (tab === this.#opener) this.#socket.send(data)
      return
    }
    if (!tab.isReady) {
      if (tab === this.#opener) this.#socket.send(data)
      return
    }
    const [type, payload, stamp] = JSON.parse(data)
    if (number && this.#socket.readyState === 1) tab.post({ taken: number })
    if (!stamp) this.#socket.send(data)
    else if (type === '~wse:response' || type === '~wse:response-err') this.#answer(tab, type, payload, stamp)
    else {
      this.#calls.set(++this.#stamp, { tab, stamp })
      this.#write([type, payload, this.#stamp])
    }
  }

  #answer(tab, type, payload, stamp) {
    const call = this.#asked.get(stamp)
    if (call?.asked !== tab) return
    const isMissing = type === '~wse:response-err' && payload.code === 'wse.server.rp.not-registered'
    if (isMissing && this.#ask(call, stamp)) return
    this.#asked.delete(stamp)
    this.#write([type, payload, stamp])
  }

  // From the server.

  #receive(data) {
    if (!this.#opener?.isReady && !this.#welcome) {
      const [type] = JSON.parse(data)
      if (type === '~wse:welcome') this.#opener.isReady = true
      this.#opener.post({ data })
      return
    }
    const [type, payload, stamp] = JSON.parse(data)
    const ready = [...this.#tabs].filter((tab) => tab.isReady)
    if (!stamp) {
      // One identity answers for all.
      for (const tab of type === '~wse:auth' ? ready.slice(0, 1) : ready) tab.post({ data })
    } else if (type === '~wse:response' || type === '~wse:response-err') {
      const call = this.#calls.get(stamp)
      this.#calls.delete(stamp)
      call?.tab.post({ data: JSON.stringify([type, payload, call.stamp]) })
    } else {
      const call = { rp: type, data, left: ready }
      this.#asked.set(stamp, call)
      this.#ask(call, stamp)
    }
  }

  // Each tab has procedures of its own, so one after the other is asked until one has it.
  #ask(call, stamp) {
    const tab = call.left.shift()
    if (!tab) return false
    call.asked = tab
    if (this.#tabs.has(tab)) tab.post({ data: call.data })
    else return this.#ask(call, stamp)
    return true
  }

  #welcomed(payload) {
    this.#welcome = JSON.stringify(['~wse:welcome', payload, null])
    for (const tab of this.#tabs) if (tab.hello && !tab.isReady) this.#admit(tab)
  }

  #admit(tab) {
    tab.isReady = true
    tab.post({ data: this.#welcome })
  }
}

// Lines.

/** In a SharedWorker: a hub for each key, and a port for each socket. */
const serveWorker = () => {
  const hubs = new Map()
  globalThis.onconnect = ({ ports: [port] }) => {
    const tab = { post: (message) => port.postMessage(message) }
    port.onmessage = ({ data: { key, ...message } }) => {
      if (!hubs.has(key)) hubs.set(key, new Hub())
      hubs.get(key).receive(tab, message)
      if (hubs.get(key).isIdle) hubs.delete(key)
    }
  }
}

let hasWorkers = Boolean(globalThis.SharedWorker)
const hasChannels = Boolean(globalThis.BroadcastChannel && globalThis.navigator?.locks && globalThis.document)

const workerLine = (key, receive, changed) => {
  const worker = new SharedWorker(new URL('./wse-share.js', import.meta.url), { type: 'module', name: 'wse' })
  // A Content-Security-Policy may forbid it, which is not known before.
  worker.onerror = () => {
    hasWorkers = false
    changed()
  }
  worker.port.onmessage = ({ data }) => receive(data)
  return { post: (message) => worker.port.postMessage({ key, ...message }), end: () => {} }
}

/** In a tab that holds the lock of the key: the hub of all tabs that are on the channel. */
const lead = (key) => {
  const hub = new Hub()
  const tabs = new Map()
  const channel = new BroadcastChannel(key)
  channel.onmessage = ({ data: { from, message } }) => {
    if (!from) return
    if (!tabs.has(from)) tabs.set(from, { post: (message) => channel.postMessage({ to: from, message }) })
    hub.receive(tabs.get(from), message)
    if (message.close) tabs.delete(from)
  }
  channel.postMessage({ leads: true })
}

const candidates = new Set()

const channelLine = (key, receive, changed) => {
  if (!candidates.has(key)) {
    candidates.add(key)
    // Held as long as the page lives.
    navigator.locks.request(key, () => (lead(key), new Promise(() => {})))
  }
  const id = crypto.randomUUID()
  const channel = new BroadcastChannel(key)
  channel.onmessage = ({ data: { to, message, leads } }) => {
    if (leads) changed()
    else if (to === id) receive(message)
  }
  return {
    post: (message) => channel.postMessage({ from: id, message }),
    // What has been posted is delivered first.
    end: () => setTimeout(() => channel.close()),
    isMortal: true,
  }
}

// In a tab.

let page

/** The name of a lock that this page holds as long as it lives; null where pages have no locks. */
const pageLock = () =>
  (page ??= new Promise((resolve) => {
    if (!globalThis.navigator?.locks) return resolve(null)
    const name = `wse-page:${crypto.randomUUID()}`
    void navigator.locks.request(name, () => (resolve(name), new Promise(() => {})))
  }))

/** A WebSocket, as far as a WseClient uses one. */
class VirtualSocket {
  readyState = 0
  joined = false
  onopen = (/** @type {any} */ event) => void event
  onmessage = this.onopen
  onclose = this.onopen
  #url
  #protocol
  #key
  #makeLine
  #line
  #leave = () => this.close(1001)
  // Messages, by number, that the hub has not taken. It may end with its tab, and then the next one gets them.
  #untaken = new Map()
  #number = 0

  constructor(url, protocol, { before, ...user }) {
    this.#url = String(url)
    this.#protocol = protocol
    this.#key = `wse:${userOf(user)}:${this.#url}`
    if (before instanceof VirtualSocket) [this.#untaken, this.#number] = [before.#untaken, before.#number]
    this.#open()
    addEventListener('pagehide', this.#leave)
  }

  send(data) {
    if (this.readyState !== 1) return
    const number = this.#line.isMortal && !data.startsWith('["~wse:') ? ++this.#number : 0
    if (number) this.#untaken.set(number, data)
    this.#line.post({ data, number })
  }

  /** Whether a call has not left yet, and will with the socket that replaces this one. */
  holds(stamp) {
    return [...this.#untaken.values()].some((data) => JSON.parse(data)[2] === stamp)
  }

  close(code = 1000, reason = '') {
    if (this.readyState > 1) return
    this.#untaken.clear()
    this.#line.post({ close: [code, reason] })
    queueMicrotask(() => this.#gone(code, reason))
  }

  /** The client has checked the welcome, and this is the application's part of it. */
  finished(payload) {
    if (!this.joined) this.#line.post({ welcome: [payload] })
    for (const [number, data] of this.#untaken) this.#line.post({ data, number })
  }

  #open() {
    const makeLine = hasWorkers ? workerLine : channelLine
    if (makeLine !== this.#makeLine) {
      this.#makeLine = makeLine
      this.#line = makeLine(this.#key, (message) => this.#receive(message), () => this.#changed())
    }
    const line = this.#line
    void pageLock().then((lock) => {
      if (this.readyState === 0 && line === this.#line) line.post({ open: [this.#url, this.#protocol], lock })
    })
  }

  /** The hub is another one, which does not know us: a client reconnects at once after 4000. */
  #changed() {
    if (this.readyState === 1) this.#gone(4000, 'wse.moved')
    else if (this.readyState === 0 && (hasWorkers || hasChannels)) this.#open()
    else this.#gone(1006, '')
  }

  #receive({ joined, data, taken, close }) {
    if (this.readyState > 1) return
    if (taken) this.#untaken.delete(taken)
    else if (close) this.#gone(...close)
    else if (data) this.onmessage({ data })
    else {
      // Again when another tab had begun the handshake, and has left.
      this.joined = joined
      if (this.readyState === 1) return
      this.readyState = 1
      this.onopen({ type: 'open' })
    }
  }

  #gone(code, reason) {
    if (this.readyState > 2) return
    this.readyState = 3
    removeEventListener('pagehide', this.#leave)
    this.#line.end()
    this.onclose({ code, reason })
  }
}

/** The user that a connection belongs to. If the identity is a function, it is not known here, and an empty string. */
const userOf = (/** @type {any} */ { share, identity }) => {
  if (typeof share === 'string') return share
  return JSON.stringify(identity?.scram ? /n=[^,]*/.exec(identity.scram) : identity)
}

/** Called with `new`, like the class WebSocket. */
function Shared(url, protocol, user) {
  const address = new URL(url, globalThis.location?.href)
  address.protocol = address.protocol.replace('http', 'ws')
  if (protocol === JSON_PROTOCOL) {
    try {
      if (hasWorkers) return new VirtualSocket(address, protocol, user)
    } catch {
      hasWorkers = false // The module is from another origin.
    }
    if (hasChannels) return new VirtualSocket(address, protocol, user)
  }
  return new WebSocket(address, protocol)
}

/** Takes the place of the WebSocket class; undefined where tabs cannot share. */
export const SharedSocket = hasWorkers || hasChannels ? Shared : undefined

if (isWorker) serveWorker()
