// A WebSocket class without a network. The test plays the peer: it opens, sends and closes.
import { WseClient } from '../../wse.js'

export class FakeWebSocket {
  /** @type {FakeWebSocket[]} */
  static all = []
  static get last() {
    return this.all.at(-1)
  }

  readyState = 0
  sent = []
  closed = null
  onopen = null
  onmessage = null
  onclose = null
  onerror = null

  constructor(url, protocol) {
    if (String(url).startsWith('bad:')) throw new SyntaxError('no WebSocket URL')
    this.url = url
    this.protocol = protocol
    this.constructor.all.push(this)
  }

  // What the client calls, as RFC 6455 and the WebSocket standard have it.

  send(data) {
    if (this.readyState === 0) throw new Error('InvalidStateError')
    if (this.readyState === 1) this.sent.push(data)
  }

  close(code, reason = '') {
    if (code !== undefined && code !== 1000 && !(code >= 3000 && code <= 4999)) throw new Error(`InvalidAccessError: ${code}`)
    if (Buffer.byteLength(reason) > 123) throw new SyntaxError('the reason is too long')
    if (this.readyState >= 2) return
    this.readyState = 2
    this.closed = [code, reason]
  }

  // What the test calls.

  open() {
    this.readyState = 1
    this.onopen({ type: 'open' })
  }

  /** A message `[type, payload, stamp]`, or raw data. */
  receive(message) {
    this.onmessage({ data: Array.isArray(message) ? JSON.stringify(message) : message })
  }

  /** The socket has closed. */
  gone(code = 1006, reason = '') {
    if (this.readyState === 0) this.onerror({ type: 'error' })
    this.readyState = 3
    this.onclose({ code, reason })
  }

  /** What has been sent since the last look, decoded. */
  read() {
    return this.sent.splice(0).map((data) => JSON.parse(data))
  }
}

/** A client on a class of fake sockets of its own, with a record of what it tells. */
export const fakeClient = (options = {}) => {
  class Socket extends FakeWebSocket {
    static all = []
  }
  const client = new WseClient({ url: 'ws://server.test', WebSocket: Socket, backoff: { random: () => 1 }, ...options })
  const events = []
  const errors = []
  for (const name of ['connected', 'ready', 'closed', 'ignored', 'updated']) {
    client.when[name]((...args) => events.push([name, ...args]))
  }
  client.when.error((error) => errors.push(error))
  return { client, events, errors, Socket, take: () => events.splice(0).filter(([name]) => name !== 'updated') }
}

/** The same, connected and welcomed, with what that told already taken away; `calls` is the server's answer to that extension. */
export const readyClient = async ({ calls, ...options } = /** @type {any} */ ({}), welcome = null, identity = undefined) => {
  const all = fakeClient(options)
  const connected = all.client.connect(identity)
  const socket = all.Socket.last
  socket.open()
  if (calls) socket.receive(['~wse:ext', { calls }, null])
  socket.receive(['~wse:welcome', welcome, null])
  await connected
  await settled() // messages are delivered from the next macrotask on
  socket.read()
  all.events.length = 0
  return { ...all, socket }
}

/** The server on a fake socket welcomes. */
export const welcome = (Socket, payload = null) => {
  Socket.last.open()
  Socket.last.receive(['~wse:welcome', payload])
}

/** Time is the test's: `pass` moves it. */
export const withTimers = (t) => t.mock.timers.enable({ apis: ['setTimeout'] })
export const pass = async (t, seconds) => {
  t.mock.timers.tick(seconds * 1000)
  await settled()
}

export const codes = (errors) => errors.map((error) => error.code)
export const statuses = (events) => events.filter(([name]) => name === 'updated').map(([, status]) => status)

/** Let everything that waits for a promise run. */
export const settled = () => new Promise((resolve) => setImmediate(resolve))

/** Wait for a condition, in turns of the loop. */
export const until = async (condition) => {
  for (let turn = 0; turn < 1_000_000; turn++) {
    if (condition()) return
    await settled()
  }
  throw new Error(`it has not come true: ${condition}`)
}

/** The error that a promise is rejected with. */
export const failure = (promise) =>
  promise.then(
    (value) => {
      throw new Error(`it did not fail, but gave ${JSON.stringify(value)}`)
    },
    (error) => error,
  )
