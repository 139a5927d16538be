// MIT licence.

const named = (prefix, words) => /** @type {any} */ (Object.fromEntries(words.split(' ').map((word) => [word.toUpperCase().replace(/\W/g, '_'), prefix + word])))

export const WSE_ERROR = Object.freeze({
  ...named('wse.', 'not-authorized limit-exceeded slow-receiver session-expired session-lost unsupported wrong-thread invalid-payload rp.is-a-stream rp.not-a-stream'),
  ...named('wse.client.', 'invalid-cra-handler rp.timeout rp.disconnect rp.send-failed connection-closed'),
  ...named('wse.server.', 'rp.not-registered rp.already-registered protocol-violation connection-error msg-processing-error not-started handler-blocked handler-cancelled broker-unavailable broker-deaf broker-lost-messages lifespan-failed'),
  ...named('wse.server.auth.', 'identify-handler-missing invalid-cra-generator'),
  CLIENT_ALREADY_CONNECTED: 'wse.client.already-connected',
  WS_CLIENT_ERROR: 'wse.client.ws-error',
  CLIENT_NOT_READY: 'wse.client.not-ready',
  CONNECTION_NOT_READY: 'wse.client.not-ready',
  CONNECTION_MISSING: 'wse.server.client.connection-missing',
  NO_CLIENT_CONNECTION: 'wse.server.client.connection-missing',
  RP_EXECUTION_FAILED: 'wse.server.rp.failed',
  MESSAGE_PROCESSING_ERROR: 'wse.server.msg-processing-error',
})

export const WSE_REASON = Object.freeze({
  ...named('wse.', 'clients-concurrency not-authorized auth-timeout protocol-error by-client by-server session-expired resumed-elsewhere moved slow-receiver'),
  ...named('wse.', 'limit.message-size limit.handshake-size limit.nesting limit.handlers limit.message-rate limit.byte-rate limit.connections limit.connections-per-address limit.unauthenticated'),
  NO_REASON: '',
  PROTOCOL_ERR: 'wse.protocol-error',
})

export const WSE_STATUS = Object.freeze(named('', 'IDLE CONNECTING READY OFFLINE RE_CONNECTING'))

const isFinal = (code) => /^(100[023789]|1010|[34]\d{3})$/.test(code)
const JUMP = 4000

const internal_types = {
  hi: '~wse:hi',
  challenge: '~wse:challenge',
  welcome: '~wse:welcome',
  call: '~wse:call',
  response: '~wse:response',
  response_error: '~wse:response-err',
}
const frames = 'item progress want more put end cancel'.split(' ')
/** @type {any} */
const extensions = Object.fromEntries([...'ext auth refused ask ack gap kept seen join leave set presence'.split(' '), ...frames].map((kind) => [kind, '~wse:' + kind]))

const none = /** @type {any} */ (null)
const isFunction = (value) => typeof value === 'function'
const isObject = (value) => typeof value === 'object' && value !== null
const isRecord = (value) => isObject(value) && !Array.isArray(value)
const isText = (value) => typeof value === 'string' && value
const check = (fn) => {
  if (!isFunction(fn)) throw new TypeError('not a function')
}
const utf8 = (text) => new TextEncoder().encode(text)
// setTimeout takes 31 bits.
const later = (fn, seconds) => setTimeout(fn, Math.min(seconds * 1e3, 2 ** 31 - 1))

let loaded
const streams = () => (loaded ??= import('./wse-streams.js'))

const finite = (seconds) => (Number.isFinite(seconds) ? Math.max(seconds, 0) : 0)
const isCount = (value) => Number.isInteger(value) && value > 0

const quietly = (fn, seconds) => {
  const timer = later(fn, seconds)
  timer['unref']?.()
  return timer
}

const soon = (fn) => {
  if (globalThis['setImmediate']) return void globalThis['setImmediate'](fn)
  const { port1, port2 } = new MessageChannel()
  port1.onmessage = () => {
    port1.close()
    fn()
  }
  port2.postMessage(0)
}

// `start` returns what undoes it.
const expiring = (timeout, start, expired = () => /** @type {any} */ (new DOMException('timeout', 'TimeoutError'))) =>
  new Promise((resolve, reject) => {
    const settled = (settle) => (value) => {
      clearTimeout(timer)
      undo?.()
      settle(value)
    }
    const undo = start(settled(resolve), settled(reject))
    const timer = timeout && later(() => settled(reject)(expired()), timeout)
  })

const listenTo = (how, fn) => 'online pageshow visibilitychange pagehide'.split(' ').forEach((type) => (type[0] === 'v' ? globalThis.document : globalThis)?.[how]?.(type, fn))

const run = (fn, args, failed) => {
  try {
    const result = fn(...args)
    if (isFunction(result?.then)) result.then(null, failed)
  } catch (cause) {
    failed(cause)
  }
}

export class WseError extends Error {
  constructor(code, details, message, cause) {
    const origin = details?.origin
    super(isText(message) || (isObject(origin) ? `${origin.name}: ${origin.message}` : code), { cause })
    this.name = 'WseError'
    this.code = code
    this.details = isRecord(details) ? details : {}
  }

  static [Symbol.hasInstance](error) {
    return Function.prototype[Symbol.hasInstance].call(this, error) || (this === WseError && error?.name === 'WseError' && error instanceof TypeError)
  }
}

const toMessage = (message) => {
  if (!Array.isArray(message) || !message.length) throw new TypeError('not a message')
  const [type, payload, stamp] = message
  return Object.assign(message, { type, payload, stamp })
}

const isLost = (value) => (typeof value === 'number' ? !isFinite(value) : !value?.toJSON && !/t (Object|Array|String|Boolean|BigInt|Null|Undefined)]/.test({}.toString.call(value)))

export class WseJSON {
  name = 'wse-default-json'
  internal_types = internal_types
  extensions = extensions

  /** @param {any} message */
  pack({ type, payload, stamp }) {
    if (isLost(payload)) throw new TypeError('JSON has no such payload')
    return JSON.stringify([type, payload, stamp])
  }

  unpack(data) {
    const text = isObject(data) ? new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(data) : data
    const message = JSON.parse(text)
    // Half a character becomes U+FFFD.
    const whole = /\\ud/i.test(text) ? JSON.stringify(message).replace(/\\(ud...|.)/g, (all) => (all[2] ? '\ufffd' : all)) : ''
    return toMessage(whole ? JSON.parse(whole) : message)
  }
}

export class WseMsgpack {
  name = 'wse-msgpack'
  internal_types = internal_types
  extensions = extensions

  constructor({ encode, decode }) {
    check(encode)
    check(decode)
    this.pack = (/** @type {any} */ { type, payload, stamp }) => encode([type, payload, stamp])
    this.unpack = (data) => toMessage(isObject(data) && decode(new Uint8Array(data)))
  }
}

/** @this {any} */
function asText() {
  return new TextDecoder().decode(this)
}

class Emitter {
  /** @type {Map<any, any>} */
  all = new Map()

  of = (name) => this.all.get(name) ?? []

  add(name, fn, once, called = fn) {
    check(fn)
    const listener = { fn, called, once, old: false }
    this.all.set(name, [...this.of(name), listener])
    return () => this.#remove(name, listener)
  }

  off = (name, fn) => this.#remove(name, this.of(name).findLast((listener) => listener.fn === fn))

  #remove(name, listener) {
    const left = this.of(name).filter((other) => other !== listener)
    if (left.length) this.all.set(name, left)
    else this.all.delete(name)
  }

  age(name) {
    for (const listener of this.of(name)) listener.old = true
  }

  emit(name, args, failed, isForNew = false, call = run) {
    for (const listener of this.of(name)) {
      if (!this.of(name).includes(listener) || (isForNew && listener.old)) continue
      if (listener.once) this.#remove(name, listener)
      call(listener.called, args, failed)
    }
  }
}

let isWarned = false

export class WseClient {
  gaveUp = none
  recovered = false
  kept = none
  room = none
  #options
  #identity = /** @type {any} */ ('')
  #meta = {}
  #status = /** @type {any} */ (WSE_STATUS.IDLE)
  #procedures = new Map()
  #messages = new Emitter()
  #signals = new Emitter()
  #challenge
  #session
  #Ledger
  #ledger = none
  #more = none
  #before
  #calls = new Map()
  #stamp = 0
  #served = new Map()
  #peer = none
  #turn = Promise.resolve()
  #welcome
  #socketClosed
  #waiter
  #isLive = false
  #timer
  #failures = 0
  #isRefused = false
  #epoch = 0

  constructor(/** @type {any} */ { protocol = WseJSON, backoff, heartbeat, re, reconnect = re, tO = 20, timeout = tO, ...options }) {
    this.#options = { base: 1, cap: 30, factor: 2, random: Math.random, ...backoff, ...options, reconnect, timeout, heartbeat: { interval: 20, timeout: 20, ...heartbeat } }
    if (options.retry) check(options.retry)
    /** @type {any} */
    this.protocol = isFunction(protocol) ? new protocol() : protocol

    const messages = this.#messages
    /** @type {any} */
    const channel = {
      on: (type, fn, { ordered, once } = /** @type {any} */ ({})) => {
        this.#checkType(type)
        messages.add(type, fn, once, ordered ? this.#inTurn(fn) : fn)
        return channel
      },
      once: (type, fn) => channel.on(type, fn, { once: true }),
      off: (type, fn) => {
        if (fn) messages.off(type, fn)
        else messages.all.delete(type)
        return channel
      },
      removeAll: (...types) => {
        for (const type of types.length ? types : messages.all.keys()) channel.off(type)
        return channel
      },
      listenerCount: (type) => messages.of(type).length,
    }
    this.channel = Object.assign(channel, { removeListener: channel.off, removeAllListeners: channel.removeAll })

    const signal = (name, /** @type {any} */ present = () => null) => {
      const on = (fn, once) => {
        const off = this.#signals.add(name, fn, once)
        const args = present()
        if (args && once) off()
        if (args) run(fn, args, this.#failed(name))
        return off
      }
      return Object.assign((fn) => on(fn), {
        once: (fn) => on(fn, true),
        off: (fn) => this.#signals.off(name, fn),
        wait: async (timeout) => (name === 'ready' && present()) || expiring(timeout, (resolve) => this.#signals.add(name, (...args) => resolve(args), true)),
      })
    }
    const when = (this.when = /** @type {any} */ ({}))
    for (const name of 'connected resumed lost inboxLost closed error ignored'.split(' ')) when[name] = signal(name)
    when.ready = signal('ready', () => this.#welcome)
    when.updated = signal('updated', () => this.#status !== WSE_STATUS.IDLE && [this.#status])
    when.gaveUp = when.gave_up = signal('gaveUp', () => this.gaveUp && [this.gaveUp])
  }

  get url() {
    return this.#options.url
  }

  get status() {
    return this.#status
  }

  send(type, payload) {
    const out = this.#ready()
    this.#checkType(type)
    out.send(this.#encode(type, payload))
  }

  async call(rp, payload, options = /** @type {any} */ ({})) {
    const call = (options) => this.#call(rp, payload, options)
    return options.upload || options.onProgress ? (await streams()).call(call, options, this.#isFull) : call(options)
  }

  stream(rp, payload, options = /** @type {any} */ ({})) {
    const stream = streams().then(({ Stream }) => new Stream((more) => this.#call(rp, payload, more), rp, options, this.#isFull, WseError))
    return {
      next: async () => (await stream).next(),
      return: async () => (await stream).return(),
      [Symbol.asyncIterator]() {
        return this
      },
    }
  }

  async #call(rp, payload, { tO = this.#options.timeout, timeout = tO, signal, extra, frames, own }) {
    signal?.throwIfAborted()
    const out = this.#ready()
    if (!own) this.#checkType(rp)
    const peer = this.#peer
    if (extra && !peer) throw new WseError(WSE_ERROR.UNSUPPORTED, { rp, extension: 'calls' })
    const more = extra?.(peer)
    const given = { ...(timeout !== (more?.n ? 0 : this.#options.timeout) && { t: finite(timeout) }), ...more }
    const stamp = ++this.#stamp
    const tell = (kind, value) => peer && out.send(this.#pack(this.protocol.extensions[kind], value, stamp))
    let sent
    try {
      const data = this.#pack(rp, payload, stamp)
      sent = out.send(peer && Object.keys(given).length ? this.#pack(this.protocol.internal_types.call, [rp, payload, given], stamp) : data)
    } catch (cause) {
      throw new WseError(WSE_ERROR.RP_SEND_FAILED, { rp }, '', cause)
    }
    const left = (reason) => {
      const arrived = sent && out.withdraw(sent)
      if (sent && reason instanceof WseError) reason.details.arrived = arrived
      if (arrived !== false) tell('cancel')
      return reason
    }
    const wait = (resolve, reject) => {
      const abort = () => reject(left(signal.reason))
      signal?.addEventListener('abort', abort)
      this.#calls.set(stamp, { rp, sent, resolve, reject, ...frames?.(tell, this.#failed(rp), more) })
      return () => {
        signal?.removeEventListener('abort', abort)
        this.#calls.delete(stamp)
      }
    }
    return expiring(timeout, wait, () => left(new WseError(WSE_ERROR.RP_TIMEOUT, { rp, timeout, at: 'caller' })))
  }

  async flush(timeout) {
    const ledger = this.#ledger
    if (!ledger) throw new WseError(WSE_ERROR.UNSUPPORTED, { extension: 'resume' })
    return expiring(timeout, (resolve, reject) => {
      ledger.flush().then((isHandled) => (isHandled ? resolve() : reject(new WseError(WSE_ERROR.SESSION_LOST))))
    })
  }

  register(rp, fn, { upload, ordered } = /** @type {any} */ ({})) {
    this.#checkType(rp)
    check(fn)
    if (ordered && (upload || /Generator/.test(fn.constructor.name))) throw new TypeError('a stream in order')
    if (this.#procedures.has(rp)) throw new WseError(WSE_ERROR.RP_ALREADY_REGISTERED, { rp })
    this.#procedures.set(rp, { fn: ordered ? this.#inTurn(fn) : fn, upload })
  }

  #inTurn = (fn) => (...args) => {
    const begin = this.#more?.bind(fn, args) ?? (() => fn(...args))
    return (this.#turn = this.#turn.then(begin, begin))
  }

  unregister(rp) {
    if (!this.#procedures.delete(rp)) throw new WseError(WSE_ERROR.RP_NOT_REGISTERED, { rp })
  }

  challenge(fn) {
    if (!isFunction(fn)) throw Object.assign(new TypeError('not a function'), { name: 'WseError', code: WSE_ERROR.INVALID_CRA_HANDLER, details: {} })
    this.#challenge = fn
  }

  async connect(identity, meta) {
    if (this.#status === WSE_STATUS.READY || this.#status === WSE_STATUS.RE_CONNECTING) throw new WseError(WSE_ERROR.CLIENT_ALREADY_CONNECTED)
    return this.jump(this.url, identity, meta)
  }

  async jump(url, identity, meta) {
    if (this.#waiter) throw new WseError(WSE_ERROR.CLIENT_ALREADY_CONNECTED)
    this.#options.url = url
    // Meta is of one identity.
    if (identity !== undefined || meta !== undefined) this.#meta = meta || {}
    if (identity !== undefined) {
      this.#identity = identity
      this.#ledger?.detach(JUMP, 'jump')
      this.#lose()
    }
    this.#forgive()
    this.gaveUp = null
    this.#isLive = true
    listenTo('addEventListener', this.#wake)
    clearTimeout(this.#timer)
    const epoch = ++this.#epoch
    return new Promise((resolve, reject) => {
      this.#waiter = { resolve, reject }
      if (this.#session) this.#leave(this.#session, JUMP, 'jump')
      else {
        this.#disconnect(JUMP, 'jump')
        if (this.#status !== WSE_STATUS.RE_CONNECTING) this.#update(WSE_STATUS.CONNECTING)
        if (epoch === this.#epoch) this.#attempt()
      }
    })
  }

  async close(reason = WSE_REASON.BY_CLIENT) {
    if (utf8(reason).length > 123) throw new RangeError('too long')
    if (this.#more?.settle) {
      const epoch = this.#epoch
      await this.#more.settle()
      if (epoch !== this.#epoch) return
    }
    const error = new WseError(WSE_ERROR.CONNECTION_CLOSED, { code: 1000, reason })
    this.gaveUp = null
    this.#epoch++
    clearTimeout(this.#timer)
    if (this.#session) this.#leave(this.#session, 1000, reason, error, 'own')
    else {
      this.#end(error)
      this.#settle(error)
      if (this.#status !== WSE_STATUS.IDLE) this.#update(WSE_STATUS.OFFLINE)
    }
    await this.#untilSocketClosed()
  }

  async waitReady(timeout) {
    if (this.#welcome) return this.#welcome[0]
    if (!this.#isLive && this.#status !== WSE_STATUS.IDLE) throw this.gaveUp ?? new WseError(WSE_ERROR.CLIENT_NOT_READY, { status: this.#status })
    return expiring(timeout, (resolve, reject) => {
      const offs = [this.#signals.add('ready', resolve), this.#signals.add('ended', reject)]
      return () => offs.forEach((off) => off())
    })
  }

  async waitClosed(timeout) {
    if (this.#isLive) await expiring(timeout, (resolve) => this.#signals.add('ended', resolve))
    await this.#untilSocketClosed()
    return this.gaveUp
  }

  #forgive = () => {
    this.#failures = 0
    this.#isRefused = false
  }

  #end(error) {
    this.#isLive = false
    listenTo('removeEventListener', this.#wake)
    this.#disconnect(1000, error.details.reason)
    this.#lose()
    this.#emit('ended', error)
  }

  // `before` holds what comes.
  #disconnect(code, reason, before, got) {
    this.#before = before
    for (const [stamp, { rp, sent, reject }] of this.#calls) {
      const arrived = sent && { arrived: this.#ledger.hasArrived(sent, got) }
      if (!before?.holds?.(stamp)) reject(new WseError(WSE_ERROR.RP_DISCONNECT, { rp, disconnected: [code, reason], ...arrived }))
    }
    if (before?.holds) return
    for (const { cancel } of this.#served.values()) cancel()
    this.#turn = Promise.resolve()
    if (!this.#calls.size) this.#stamp = 0
  }

  #lose(lost = { why: 'ended' }) {
    const ledger = this.#ledger
    if (!ledger) return
    this.#disconnect(...ledger.closed, null, lost.got)
    this.#ledger = null
    return ledger.end(lost, (type, payload) => this.send(type, payload))
  }

  #settle(error, welcome) {
    const waiter = this.#waiter
    this.#waiter = null
    if (error) waiter?.reject(error)
    else waiter?.resolve(welcome)
    return waiter
  }

  #wake = ({ type, persisted }) => {
    // It does not come back.
    if (type === 'pagehide') {
      this.#more?.report()
      if (!persisted && this.#ledger) this.#session?.ws?.close(1000, WSE_REASON.BY_CLIENT)
      return
    }
    if (type === 'visibilitychange' && globalThis.document?.hidden) return
    const session = this.#session
    if (session?.valid && this.#options.heartbeat.interval) this.#ask(session, 5)
    if (session) return
    clearTimeout(this.#timer)
    this.#attempt()
  }

  #untilSocketClosed() {
    return Promise.race([this.#socketClosed, new Promise((resolve) => quietly(resolve, 5))])
  }

  #attempt = () => {
    const { url, timeout, share, resume, inbox, rooms } = this.#options
    /** @type {any} */
    const session = (this.#session = {})
    if (timeout) session.timer = later(() => this.#leave(session, 1006, ''), timeout)
    const open = (value) => session.ended || this.#open(session, value)
    const failed = (cause) => this.#leave(session, 1006, '', new WseError(WSE_ERROR.WS_CLIENT_ERROR, { url }, 'no identity', cause))
    let identity = this.#identity
    try {
      if (isFunction(identity)) identity = identity()
      const modules = share ? [import('./wse-share.js')] : [resume && this.protocol.extensions?.ack && import('./wse-resume.js'), inbox && import('./wse-inbox.js'), rooms && import('./wse-rooms.js')]
      if (modules.some(Boolean)) identity = Promise.all([identity, ...modules]).then(([value, ...modules]) => {
        const { SharedSocket, Ledger, Inbox, Rooms } = Object.assign({}, ...modules)
        if (SharedSocket) this.#options.WebSocket = SharedSocket
        this.#Ledger = Ledger
        if (!this.#more) for (const More of [Inbox, Rooms]) if (More) this.#more = new More(this, this.#options, this.#messages, this.#emit, this.#failed, this.#report, WseError, this.#more)
        return value
      })
    } catch (cause) {
      return failed(cause)
    }
    if (isFunction(identity?.then)) identity.then(open, failed)
    else open(identity)
  }

  #open(session, identity) {
    const { url, share, resume, timeout, messageSize, WebSocket = globalThis.WebSocket } = this.#options
    const { hi, challenge, welcome } = this.protocol.internal_types
    const { refused, ext, cancel } = this.protocol.extensions ?? {}
    const offers = { auth: {}, ...(cancel && { calls: { timeout: finite(timeout) } }), ...(messageSize && { limits: { message_size: messageSize } }), ...(this.#Ledger && { resume: { ...(resume.window && { window: resume.window }), ...this.#ledger?.claim() } }), ...this.#more?.offer(this.#identity) }
    const scram = identity?.respond && identity
    const fail = (code, cause, reason) => {
      this.#leave(session, 1000, reason ?? WSE_REASON.BY_CLIENT, cause instanceof WseError ? cause : new WseError(code, { url }, '', cause), 'final')
    }
    let hello = ''
    try {
      const shown = scram ? scram.start() : identity
      hello = this.#encode(hi, { identity: shown, meta: this.#meta, ...(refused && { ext: offers }) })
      session.ws = new WebSocket(url, this.protocol.name, share && { share, identity: isFunction(this.#identity) ? '' : shown, before: this.#before })
    } catch (cause) {
      return fail(WSE_ERROR.WS_CLIENT_ERROR, cause)
    }
    const { ws } = session
    const solve = (response) => {
      if (session.ended || session.solved) return
      ws.send(this.#encode(challenge, response))
      session.solved = true
    }

    ws.binaryType = 'arraybuffer'
    ws.onopen = () => {
      if (session.ended) return
      session.opened = true
      ws.send(hello)
      this.#emit('connected')
    }
    this.#socketClosed = new Promise((resolve) => {
      ws.onclose = ({ code, reason = '' }) => {
        resolve(0)
        const leave = () => (session.backlog?.length ? session.backlog.push(leave) : this.#leave(session, session.opened ? code : 1006, reason))
        leave()
      }
      ws.onerror = (event) => session.opened || ws.onclose(event)
    })
    ws.onmessage = ({ data }) => {
      if (session.ended) return
      session.heard = true
      let type, payload, stamp
      try {
        if (isObject(data)) data.toString = asText // as of Node's Buffer
        const message = this.protocol.unpack(data)
        ;({ type, payload = null, stamp = null } = Array.isArray(message) ? toMessage(message) : message)
      } catch (cause) {
        return this.#violation(session, cause, WSE_ERROR.MSG_PROCESSING_ERROR)
      }
      if (refused && type === refused) session.refusal = Object(payload)
      else if (ext && type === ext && !session.valid) session.answer = Object(payload)
      else if (session.valid) this.#receive(session, type, payload, stamp, data)
      else if (type === challenge) {
        const respond = scram ? async () => solve(await scram.respond(payload)) : this.#challenge
        if (respond) run(respond, [payload, solve], (cause) => fail(WSE_ERROR.INVALID_CRA_HANDLER, cause))
      } else if (type === welcome) {
        try {
          if (scram && !ws.joined) payload = scram.finish(payload)
          if (ws.finished?.(payload)) for (const { cancel } of this.#served.values()) cancel()
        } catch (cause) {
          return fail(WSE_ERROR.NOT_AUTHORIZED, cause, WSE_REASON.NOT_AUTHORIZED)
        }
        try {
          this.#welcomed(session, payload)
        } catch (cause) {
          const loss = this.#lose({ why: 'mismatch' })
          this.#violation(session, cause)
          if (loss) this.#emit('lost', loss)
        }
      }
    }
  }

  #welcomed(session, welcome) {
    const { answer: { resume, calls } = /** @type {any} */ ({}), ws } = session
    const answer = this.#Ledger && resume
    const old = this.#ledger
    const lost = old?.lost(answer)
    const isResumed = Boolean(old && !lost)
    const loss = isResumed ? old.resume(answer, ws) : this.#lose(lost)
    if (answer && !isResumed) this.#ledger = new this.#Ledger(answer, ws, this.#options.resume, this.protocol)
    session.ledger = this.#ledger
    this.#peer = calls !== undefined && Object(calls)
    clearTimeout(session.timer)
    session.valid = true
    session.timer = quietly(this.#forgive, 10)
    this.#watch(session)
    this.#hold(session, new Promise(soon), () => this.#more?.welcomed(session))
    this.recovered = isResumed
    this.#settle(null, welcome)
    this.#update(WSE_STATUS.READY)
    if (session.ended) return
    this.#welcome = [welcome]
    if (isResumed) this.#emit('resumed', welcome)
    if (loss) this.#emit('lost', loss)
    if (!session.ended) this.#signals.emit('ready', [welcome], this.#failed('ready'), isResumed)
  }

  #hold(session, until, then) {
    const result = until.then(then)
    const backlog = (session.backlog = [])
    const release = () => {
      session.backlog = null
      for (const again of backlog) again()
    }
    until.then(release, release)
    return result
  }

  // `how`: 'own', 'final' or ''.
  #leave(session, code, reason, error, how = '') {
    const { ws, opened, valid, timer, pulse, refusal, ended } = session
    if (ended) return
    this.#more?.report()
    session.ended = true // Node 22 tells an error in close()
    try {
      // A session outlives a close without a code.
      if (code === 1006 && this.#ledger) ws?.close()
      else ws?.close(code === JUMP ? code : 1000, reason)
    } catch {
      // closed
    }
    this.#session = this.#welcome = null
    clearTimeout(timer)
    clearTimeout(pulse)

    if (!opened) error ??= new WseError(WSE_ERROR.WS_CLIENT_ERROR, { url: this.url })
    else if (reason === WSE_REASON.NOT_AUTHORIZED) error ??= new WseError(WSE_ERROR.NOT_AUTHORIZED, { code, reason, ...refusal })
    else error ??= new WseError(WSE_ERROR.CONNECTION_CLOSED, { code, reason })
    if (reason === WSE_REASON.CLIENTS_CONCURRENCY) this.#warn()

    const epoch = this.#epoch
    const isObeyed = () => epoch !== this.#epoch
    const again = !how && this.#isRetried(code, reason, refusal)
    this.#ledger?.detach(code, reason)
    if (valid) this.#signals.age('ready')
    this.#disconnect(code, reason, again && !isObeyed() && (this.#ledger ?? ws ?? this.#before))
    if (isObeyed()) return
    let told = valid || how === 'own'
    const loss = again ? null : this.#lose()
    if (!again) {
      if (how !== 'own') this.gaveUp = error
      this.#end(error)
      told = this.#settle(error) || told
    }
    const wasReady = this.#status === WSE_STATUS.READY
    if (wasReady || !again) this.#update(WSE_STATUS.OFFLINE)
    if (opened) this.#emit('closed', code, reason)
    if (loss && how !== 'own' && !isObeyed()) this.#emit('lost', loss)
    if (!told && !isObeyed()) this.#report(error)
    if (this.gaveUp && !isObeyed()) this.#emit('gaveUp', error)
    if (!again || isObeyed()) return
    this.#update(WSE_STATUS.RE_CONNECTING)
    if (isObeyed()) return
    const { base, cap, factor, random } = this.#options
    const wait = Math.min(cap, base * factor ** this.#failures++) * random()
    this.#timer = later(this.#attempt, again === 'at once' ? 0 : wait)
  }

  #isRetried(code, reason, refusal) {
    const { reconnect, retry } = this.#options
    if (code === JUMP) return this.#failures ? true : 'at once'
    try {
      if (reconnect && retry) return retry(code, reason) === true
    } catch (cause) {
      this.#failed('retry')(cause)
      return !isFinal(code)
    }
    if (reason !== WSE_REASON.NOT_AUTHORIZED) return reconnect && !isFinal(code)
    if (reconnect && refusal?.retry === true) return true
    const isRenewed = isFunction(this.#identity) && !this.#isRefused
    this.#isRefused = true
    return isRenewed && 'at once'
  }

  #watch(session) {
    const { interval, timeout } = this.#options.heartbeat
    session.heard = false
    if (interval && !session.ended) session.pulse = quietly(() => (session.heard ? this.#watch(session) : this.#ask(session, timeout)), interval)
  }

  #ask(session, seconds) {
    const { call } = this.protocol.internal_types
    clearTimeout(session.pulse)
    session.heard = false
    try {
      if (session.ledger) session.ledger.ask()
      else session.ws.send(this.#pack(isText(call) ? '~wse:ping' : call, null, ++this.#stamp))
    } catch (cause) {
      return this.#failed('heartbeat')(cause)
    }
    session.pulse = quietly(() => soon(() => (session.heard ? this.#watch(session) : this.#leave(session, 1006, ''))), seconds)
  }

  #receive(session, type, payload, stamp, data) {
    if (session.ended) return
    if (session.backlog) return session.backlog.push(() => this.#receive(session, type, payload, stamp, data))
    const { call, response, response_error } = this.protocol.internal_types
    const { code, details, message } = Object(payload)
    const { extensions = {} } = this.protocol
    const kind = Object.keys(extensions).find((kind) => extensions[kind] === type) ?? ''
    try {
      if (session.ledger?.receive(type, payload) || this.#more?.receive(type, payload)) return
    } catch (cause) {
      return this.#violation(session, cause)
    }
    if (isObject(type)) {
      this.#violation(session)
    } else if (kind === 'auth') {
      this.#renew(session, type).catch(this.#failed(type))
    } else if (this.#peer && type === call) {
      const [rp, argument, options] = Array.isArray(payload) ? payload : []
      const { t, n } = Object(options)
      const isSensible = isRecord(options) && stamp && !isObject(rp) && !isObject(stamp) && (t ?? finite(t)) === finite(t) && isCount(n ?? 1)
      if (isSensible && !this.#served.has(stamp)) this.#answer(session, rp, argument, stamp, options)
      else this.#violation(session)
    } else if (this.#peer && frames.includes(kind)) {
      for (const calls of [this.#calls, this.#served]) calls.get(stamp)?.[kind]?.(payload, data)
    } else if (!stamp) {
      if (this.#messages.of(type).length) this.#messages.emit(type, [payload], this.#failed(type))
      else this.#emit('ignored', type, payload, stamp)
    } else if (type === response) {
      this.#calls.get(stamp)?.resolve(payload)
    } else if (type === response_error) {
      this.#calls.get(stamp)?.reject(new WseError(isText(code) ? code : WSE_ERROR.RP_EXECUTION_FAILED, details, message))
    } else {
      this.#answer(session, type, payload, stamp)
    }
  }

  async #renew(session, auth) {
    const identity = await (isFunction(this.#identity) ? this.#identity() : this.#identity)
    // Credentials take a handshake.
    if (!session.ended && !identity?.respond) (session.ledger ?? session.ws).send(this.#encode(auth, identity))
  }

  #answer(session, rp, payload, stamp, options = /** @type {any} */ ({})) {
    const { response, response_error } = this.protocol.internal_types
    const { n, p, up } = options
    const t = options.t ?? (n ? 0 : this.#peer.timeout)
    const { fn, upload } = this.#procedures.get(rp) ?? {}
    const controller = new AbortController()
    const { signal } = controller
    const write = (type, value) => {
      const data = this.#pack(type, value, stamp)
      if (!signal.aborted) (session.ledger ?? session.ws).send(data)
    }
    const isPackable = (value) => {
      try {
        return this.#pack(rp, value)
      } catch {
        return false
      }
    }
    const end = () => {
      clearTimeout(timer)
      this.#served.delete(key)
    }
    const failed = (cause) => {
      const { code, message, details } = toAnswer(cause, this.#options.debug)
      const all = { rp, rpc: rp, ...(payload !== null && sizeOf(isPackable(payload)) <= 1024 && { payload }), ...details }
      const packable = Object.fromEntries(Object.entries(all).filter(([key, value]) => isPackable({ [key]: value })))
      run(write, [response_error, { code, message, details: packable }], this.#failed(rp))
      end()
      if (fn && !/^wse\.rp/.test(code) && !(signal.aborted && cause?.name === 'AbortError')) this.#report(new WseError(code === WSE_ERROR.LIMIT_EXCEEDED ? code : WSE_ERROR.RP_EXECUTION_FAILED, { rp, rpc: rp, type: rp, payload, stamp }, '', cause))
    }
    const respond = (result) => {
      if (isFunction(result?.next)) throw new WseError(WSE_ERROR.RP_IS_A_STREAM)
      write(response, result)
      end()
    }
    const call = {
      failed,
      cancel: () => {
        end()
        controller.abort()
      },
    }
    const context = { signal, deadline: Date.now() + (finite(t) || Infinity) * 1e3, progress() {} }
    const answer = () => {
      if (!fn) throw new WseError(WSE_ERROR.RP_NOT_REGISTERED)
      if (!up !== !upload) throw new WseError(up ? WSE_ERROR.RP_NOT_A_STREAM : WSE_ERROR.RP_IS_A_STREAM)
      const serve = (module) => module.serve(fn, payload, context, call, options, (kind, value) => write(this.protocol.extensions[kind], value), this.#isFull, this.#peer, this.#served)
      const result = n || p || up ? this.#hold(session, streams(), serve) : fn(payload, context)
      return isFunction(result?.then) ? result.then(respond) : respond(result)
    }
    const timer = finite(t) && quietly(call.cancel, t)
    const key = this.#served.has(stamp) ? {} : stamp
    this.#served.set(key, call)
    run(answer, [], failed)
  }

  #isFull = () => this.#status !== WSE_STATUS.READY || this.#session?.ws.bufferedAmount > 65536

  #ready() {
    if (this.#ledger?.hasRoom) return this.#ledger
    const session = this.#session
    if (this.#status === WSE_STATUS.READY && session && !(session.ws.readyState > 1)) return session.ws
    throw new WseError(WSE_ERROR.CLIENT_NOT_READY, { status: this.#status })
  }

  #checkType(type) {
    if (type == null || type === '' || isObject(type) || /^~wse:/.test(type) || Object.values(this.protocol.internal_types).includes(type)) throw new WseError(WSE_ERROR.PROTOCOL_VIOLATION, { type })
  }

  #pack = (type, payload = none, stamp = none) => this.protocol.pack({ type, payload, stamp })

  #encode(type, payload) {
    try {
      return this.#pack(type, payload)
    } catch (cause) {
      throw new WseError(WSE_ERROR.MSG_PROCESSING_ERROR, { type }, '', cause)
    }
  }

  #violation(session, cause, code = WSE_ERROR.PROTOCOL_VIOLATION) {
    const reason = WSE_REASON.PROTOCOL_ERROR
    this.#report(new WseError(code, { close: [1000, reason] }, '', cause))
    this.#leave(session, 1000, reason)
  }

  #update(status) {
    if (status === this.#status) return
    this.#status = status
    this.#emit('updated', status)
  }

  #emit = (name, ...args) => this.#signals.emit(name, args, this.#failed(name))

  #failed = (type) => (cause) => this.#report(new WseError(WSE_ERROR.MSG_PROCESSING_ERROR, { type }, '', cause))

  #report = (error) => {
    if (this.#signals.of('error').length) this.#signals.emit('error', [error], console.error)
    else console.error(error)
  }

  #warn() {
    if (isWarned || this.#options.share) return
    isWarned = true
    console.warn('wse: replaced by a newer connection of this user; see conns_per_user, and share: true for tabs')
  }
}

const sizeOf = (data) => (typeof data === 'string' ? utf8(data) : data).byteLength

const toAnswer = (cause, debug) => {
  const { name = typeof cause, message = '', stack, code, details } = Object(cause)
  const text = isText(message) && message !== code ? message : undefined
  const isError = cause instanceof Error || message || stack
  if (isText(code) && (isObject(details) || !isError)) return { code, message: text, details }
  if (isObject(cause) && !isError) return { code: WSE_ERROR.RP_EXECUTION_FAILED, details: { ...cause } }
  const origin = { name, message: isObject(cause) ? message : String(cause), ...(debug && { stack }) }
  return { code: WSE_ERROR.RP_EXECUTION_FAILED, message: origin.message, details: { origin } }
}

const base64 = (bytes) => btoa(String.fromCharCode(...bytes))
const hmac = async (key, text) => {
  const { subtle } = crypto
  const imported = await subtle.importKey('raw', key, { name: 'HMAC', hash: 'SHA-256' }, false, ['sign'])
  return new Uint8Array(await subtle.sign('HMAC', imported, utf8(text)))
}

// SASLprep without its bidi rules.
const prepare = (text) => {
  const prepared = text
    .replace(/[\u00AD\u034F\u1806\u180B-\u180D\u200B-\u200D\u2060\uFE00-\uFE0F\uFEFF]/g, '')
    .replace(/\p{Zs}/gu, ' ')
    .normalize('NFKC')
  if (/[\p{C}\u2028\u2029\u2FF0-\u2FFB\uFFFC\uFFFD]/u.test(prepared)) throw new TypeError('forbidden by SASLprep')
  return prepared
}

export class Scram {
  #name
  #password
  #nonce = ''
  #first = ''
  #final = ''

  constructor(username, password) {
    this.#name = prepare(username).replace(/=/g, '=3D').replace(/,/g, '=2C')
    this.#password = utf8(prepare(password))
    if (!this.#name) throw new TypeError('no name')
    if (!globalThis.crypto?.subtle) throw new TypeError('WebCrypto needs https: or localhost')
  }

  start() {
    this.#nonce = base64(crypto.getRandomValues(new Uint8Array(24)))
    this.#first = `n=${this.#name},r=${this.#nonce}`
    this.#final = ''
    return { scram: 'n,,' + this.#first }
  }

  async respond(quest) {
    const { subtle } = crypto
    const first = this.#first
    const message = quest?.scram
    const [, nonce = '', salt = '', count] = /^r=([^,]+),s=([^,]+),i=(\d+)(,|$)/.exec(message) ?? []
    const iterations = +count
    if (!first || !nonce.startsWith(this.#nonce) || nonce === this.#nonce || iterations < 4096 || iterations > 1e7) throw new WseError(WSE_ERROR.INVALID_CRA_HANDLER)
    this.#first = '' // one answer for each start
    const password = await subtle.importKey('raw', this.#password, 'PBKDF2', false, ['deriveBits'])
    const salted = await subtle.deriveBits({ name: 'PBKDF2', hash: 'SHA-256', salt: Uint8Array.from(atob(salt), (char) => char.charCodeAt(0)), iterations }, password, 256)
    const key = await hmac(salted, 'Client Key')
    const last = 'c=biws,r=' + nonce
    const auth = [first, message, last].join()
    const signature = await hmac(await subtle.digest('SHA-256', key), auth)
    this.#final = 'v=' + base64(await hmac(await hmac(salted, 'Server Key'), auth))
    return { scram: `${last},p=${base64(key.map((byte, at) => byte ^ signature[at]))}` }
  }

  finish(welcome) {
    if (!this.#final || welcome?.scram?.split(',')[0] !== this.#final) throw new WseError(WSE_ERROR.NOT_AUTHORIZED)
    return welcome.welcome
  }
}
