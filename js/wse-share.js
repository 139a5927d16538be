// One connection for the tabs of a browser: `new WseClient({ url, share: true })` of wse.js loads this. MIT licence.
//
//   tab: WseClient, SharedSocket ── line ──┐
//   tab: WseClient, SharedSocket ── line ──┤ Hub ── WebSocket ── server
//
// A SharedSocket looks like a WebSocket to the client of its tab. The hub (wse-hub.js) opens one WebSocket for all of them. It
// lives in a SharedWorker; where there is none, in the tab that holds a Web Lock, and lines are a BroadcastChannel. Where neither
// exists, or the protocol is not JSON, each tab has a connection of its own.
//
// A leading tab takes its connection with it. Before it ends it tells the others what a hub needs to go on with the session,
// and the next one claims the session from the server (the extension `resume`), so nothing is lost on the way.

import { Hub } from './wse-hub.js'

const isWorker = typeof globalThis.SharedWorkerGlobalScope === 'function' && globalThis instanceof globalThis.SharedWorkerGlobalScope

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
const lead = (key, release) => {
  const hub = new Hub(true)
  const tabs = new Map()
  const channel = new BroadcastChannel(key)
  let ownLock
  void pageLock().then((name) => (ownLock = name))
  const inherit = (heritage) => {
    hub.inherit(heritage)
    channel.postMessage({ isTaken: true })
  }
  channel.onmessage = ({ data: { from, message } }) => {
    if (!from) return
    if (!tabs.has(from)) tabs.set(from, { post: (message) => channel.postMessage({ to: from, message }) })
    hub.receive(tabs.get(from), message)
    if (message.close) tabs.delete(from)
  }
  leaders.set(key, inherit)
  if (heritages.has(key)) inherit(heritages.get(key))
  channel.postMessage({ leads: true })
  const end = () => {
    const heritage = hub.handOver(ownLock)
    if (heritage) channel.postMessage({ heritage })
    channel.close()
    leaders.delete(key)
    candidates.delete(key)
    release()
  }
  addEventListener('pagehide', end, { once: true })
}

const candidates = new Set()
// By key: how the leader in this page inherits.
const leaders = new Map()
// By key: what the last leader has left, until the next one has taken it.
const heritages = new Map()

const channelLine = (key, receive, changed, id) => {
  if (!candidates.has(key)) {
    candidates.add(key)
    // Held until the page ends.
    void navigator.locks.request(key, () => new Promise((release) => lead(key, release)))
  }
  const channel = new BroadcastChannel(key)
  channel.onmessage = ({ data: { to, message, leads, heritage, isTaken } }) => {
    if (heritage && leaders.has(key)) leaders.get(key)(heritage) // the lock was faster
    else if (heritage) heritages.set(key, heritage)
    else if (isTaken) heritages.delete(key)
    else if (leads) changed()
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

/** The call that a message is; undefined for another message. */
const callOf = (data) => {
  const [type, payload, stamp] = JSON.parse(data)
  const rp = type === '~wse:call' ? payload[0] : type
  return stamp && !String(rp).startsWith('~wse:') ? { rp, stamp } : undefined
}

/** Whether a message makes sense in its own session only: WSE's own, but for a call and its end. */
const isBound = (data) => /^\["~wse:(?!call"|cancel")/.test(data)

/** What a tab keeps over several sockets, of which each follows the one before when another hub leads. */
class Books {
  id = crypto.randomUUID()
  /** The last socket. */
  current = /** @type {VirtualSocket | null} */ (null)
  /** Another object for each session with the server. */
  session = {}
  /** Messages, by number, that no hub has taken; the next one gets them. */
  untaken = new Map()
  #number = 0
  // Calls, by stamp, that a hub has taken and that have no answer.
  #pending = new Map()

  keep(data) {
    this.untaken.set(++this.#number, data)
    if (data.startsWith('["~wse:cancel')) this.#pending.delete(JSON.parse(data)[2])
    return this.#number
  }

  taken(number) {
    const call = callOf(this.untaken.get(number) ?? '[]')
    if (call) this.#pending.set(call.stamp, call.rp)
    this.untaken.delete(number)
  }

  heard(data) {
    if (this.#pending.size && data.startsWith('["~wse:response')) this.#pending.delete(JSON.parse(data)[2])
  }

  holds(stamp) {
    return this.#pending.has(stamp) || [...this.untaken.values()].some((data) => callOf(data)?.stamp === stamp)
  }

  /** The session has ended. Returns its calls, by stamp. Messages that have not been taken may be kept, but no answers. */
  end({ isKept = false } = {}) {
    const lost = [...this.#pending]
    this.#pending.clear()
    this.session = {}
    for (const [number, data] of this.untaken) if (!isKept || isBound(data)) this.untaken.delete(number)
    return lost
  }
}

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
  // The application of a page that ends is not told; that of one that may come back is.
  #leave = ({ persisted }) => (persisted ? this.close(1001) : this.#line.post({ close: [1001, ''] }))
  #isReady = false
  #isResumed = false
  #books
  #session

  constructor(url, protocol, { before, ...user }) {
    this.#url = String(url)
    this.#protocol = protocol
    this.#key = `wse:${userOf(user)}:${this.#url}`
    this.#books = before instanceof VirtualSocket ? before.#books : new Books()
    this.#books.current = this
    this.#session = this.#books.session
    this.#open()
    addEventListener('pagehide', this.#leave)
  }

  send(data) {
    const { current, session } = this.#books
    if (!this.#isReady || !this.#line.isMortal) {
      if (this.readyState === 1) this.#line.post({ data })
    } else if (session === this.#session) current?.post(data) // the answer to a call may come after another hub leads
  }

  /** Send a message with this socket, as soon as a hub takes it. */
  post(data) {
    const number = this.#books.keep(data)
    if (this.readyState === 1 && this.#isReady) this.#line.post({ data, number })
  }

  /** Whether a call goes on with the socket that replaces this one. */
  holds(stamp) {
    return this.#books.holds(stamp)
  }

  close(code = 1000, reason = '') {
    if (this.readyState > 1) return
    this.#books.end()
    this.#line.post({ close: [code, reason] })
    queueMicrotask(() => this.#gone(code, reason))
  }

  /** The client has checked the welcome, and this is the application's part of it. Returns whether another session has begun. */
  finished(payload) {
    if (!this.joined) this.#line.post({ welcome: [payload] })
    this.#isReady = true
    if (!this.#isResumed) {
      const lost = this.#books.end({ isKept: true })
      this.#session = this.#books.session
      queueMicrotask(() => {
        for (const [stamp, rp] of lost) {
          const details = { rp, disconnected: [4000, 'wse.moved'] }
          this.onmessage({ data: JSON.stringify(['~wse:response-err', { code: 'wse.client.rp.disconnect', details }, stamp]) })
        }
      })
    }
    for (const [number, data] of this.#books.untaken) this.#line.post({ data, number })
    return !this.#isResumed
  }

  #open() {
    const makeLine = hasWorkers ? workerLine : channelLine
    if (makeLine !== this.#makeLine) {
      this.#makeLine = makeLine
      this.#line = makeLine(this.#key, (message) => this.#receive(message), () => this.#changed(), this.#books.id)
    }
    const line = this.#line
    void pageLock().then((lock) => {
      if (this.readyState === 0 && line === this.#line) line.post({ open: [this.#url, this.#protocol], id: this.#books.id, lock })
    })
  }

  /** The hub is another one, which does not know us: a client reconnects at once after 4000. */
  #changed() {
    if (this.readyState === 1) this.#gone(4000, 'wse.moved')
    else if (this.readyState === 0 && (hasWorkers || hasChannels)) this.#open()
    else this.#gone(1006, '')
  }

  #receive({ joined, data, isResumed, taken, close }) {
    if (this.readyState > 1) return
    if (taken) this.#books.taken(taken)
    else if (close) this.#gone(...close)
    else if (data) {
      if (isResumed) this.#isResumed = true
      this.#books.heard(data)
      this.onmessage({ data })
    } else {
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
  if (protocol === 'wse-default-json') {
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
