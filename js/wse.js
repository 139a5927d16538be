// The WSE client. MIT licence. Documented in wse.d.ts and README.md.

/** @typedef {(...args: any[]) => any} Fn */

export const WSE_ERROR = Object.freeze({
  INVALID_CRA_HANDLER: 'wse.client.invalid-cra-handler',
  RP_TIMEOUT: 'wse.client.rp.timeout',
  RP_DISCONNECT: 'wse.client.rp.disconnect',
  RP_SEND_FAILED: 'wse.client.rp.send-failed',
  CLIENT_ALREADY_CONNECTED: 'wse.client.already-connected',
  WS_CLIENT_ERROR: 'wse.client.ws-error',
  NOT_AUTHORIZED: 'wse.not-authorized',
  CLIENT_NOT_READY: 'wse.client.not-ready',
  CONNECTION_CLOSED: 'wse.client.connection-closed',
  CONNECTION_MISSING: 'wse.server.client.connection-missing',
  IDENTIFY_HANDLER_MISSING: 'wse.server.auth.identify-handler-missing',
  INVALID_CRA_GENERATOR: 'wse.server.auth.invalid-cra-generator',
  RP_EXECUTION_FAILED: 'wse.server.rp.failed',
  RP_NOT_REGISTERED: 'wse.server.rp.not-registered',
  RP_ALREADY_REGISTERED: 'wse.server.rp.already-registered',
  PROTOCOL_VIOLATION: 'wse.server.protocol-violation',
  CONNECTION_ERROR: 'wse.server.connection-error',
  MSG_PROCESSING_ERROR: 'wse.server.msg-processing-error',
})

export const WSE_REASON = Object.freeze({
  NO_REASON: '',
  CLIENTS_CONCURRENCY: 'wse.clients-concurrency',
  NOT_AUTHORIZED: 'wse.not-authorized',
  AUTH_TIMEOUT: 'wse.auth-timeout',
  PROTOCOL_ERROR: 'wse.protocol-error',
  BY_CLIENT: 'wse.by-client',
  BY_SERVER: 'wse.by-server',
})

export const WSE_STATUS = Object.freeze({
  IDLE: 'IDLE',
  CONNECTING: 'CONNECTING',
  READY: 'READY',
  OFFLINE: 'OFFLINE',
  RE_CONNECTING: 'RE_CONNECTING',
})

const RETRIED = [1005, 1006, 1011, 1012, 1013, 1014]
const JUMP = 4000

const internal_types = {
  hi: '~wse:hi',
  challenge: '~wse:challenge',
  welcome: '~wse:welcome',
  call: '~wse:call',
  response: '~wse:response',
  response_error: '~wse:response-err',
}

/** @type {Fn} */
const isFunction = (value) => typeof value === 'function'
/** @type {Fn} */
const isObject = (value) => typeof value === 'object' && value !== null
/** @type {Fn} */
const isText = (value) => typeof value === 'string' && value
/** @type {Fn} */
const check = (fn, what = 'handler') => {
  if (!isFunction(fn)) throw new TypeError(`no ${what} function`)
}
/** @type {Fn} setTimeout takes 31 bits */
const later = (fn, seconds) => setTimeout(fn, Math.min(seconds * 1e3, 2 ** 31 - 1))

/** @type {Fn} */
const run = (fn, args, failed) => {
  try {
    const result = fn(...args)
    if (isFunction(result?.then)) result.then(null, failed)
  } catch (cause) {
    failed(cause)
  }
}

export class WseError extends Error {
  /** @param {string} code @param {any} [details] @param {any} [message] @param {unknown} [cause] */
  constructor(code, details, message, cause) {
    const origin = details?.origin
    super(isText(message) || (isObject(origin) ? `${origin.name}: ${origin.message}` : code), { cause })
    this.name = 'WseError'
    this.code = code
    this.details = isObject(details) && !Array.isArray(details) ? details : {}
  }
}

/** @type {Fn} */
const toMessage = (message) => {
  if (!Array.isArray(message) || !message.length) throw new TypeError('not a message')
  const [type, payload, stamp] = message
  return { type, payload, stamp }
}

export class WseJSON {
  name = 'wse-default-json'
  internal_types = internal_types

  /** @type {Fn} */
  pack = ({ type, payload, stamp }) => JSON.stringify([type, payload, stamp])

  /** @type {Fn} */
  unpack = (data) => {
    const text = isObject(data) ? new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(data) : data
    const message = JSON.parse(text)
    // Half a character becomes U+FFFD, as in UTF-8.
    const whole = /\\ud/i.test(text) ? JSON.stringify(message).replace(/\\(ud...|.)/g, (all) => (all[2] ? '\ufffd' : all)) : ''
    return toMessage(whole ? JSON.parse(whole) : message)
  }
}

export class WseMsgpack {
  name = 'wse-msgpack'
  internal_types = internal_types

  /** @param {any} codec */
  constructor({ encode, decode }) {
    check(encode)
    check(decode)
    /** @type {Fn} */
    this.pack = ({ type, payload, stamp }) => encode([type, payload, stamp])
    /** @type {Fn} */
    this.unpack = (data) => toMessage(isObject(data) && decode(new Uint8Array(data)))
  }
}

class Emitter {
  /** @type {Map<any, any>} */
  all = new Map()

  /** @type {Fn} */
  of = (name) => this.all.get(name) ?? []

  /** @type {Fn} */
  add = (name, fn, once) => {
    check(fn)
    this.all.set(name, [...this.of(name), { fn, once }])
  }

  /** @type {Fn} */
  off = (name, fn) => {
    const left = this.of(name).filter(/** @type {Fn} */ (listener) => fn && listener.fn !== fn && listener !== fn)
    if (left.length) this.all.set(name, left)
    else this.all.delete(name)
  }

  /** @type {Fn} */
  emit = (name, args, failed) => {
    for (const listener of this.of(name)) {
      if (listener.gone) continue
      if (listener.once) {
        listener.gone = true
        this.off(name, listener)
      }
      run(listener.fn, args, failed)
    }
  }
}

export class WseClient {
  /** @type {any} */ #options
  /** @type {any} */ #identity = ''
  /** @type {any} */ #meta = {}
  /** @type {import('wse').WseStatus} */ #status = WSE_STATUS.IDLE
  #procedures = new Map()
  #messages = new Emitter()
  #signals = new Emitter()
  /** @type {any} */ #welcome
  /** @type {any} */ #challenge
  /** @type {any} */ #session
  /** @type {any} */ #waiter
  /** @type {any} */ #gone
  /** @type {any} */ #timer
  #failures = 0
  // Grows with each connect, jump and close.
  #epoch = 0

  /** @param {any} options */
  constructor({ protocol = WseJSON, backoff, ...options }) {
    this.#options = { tO: 20, WebSocket: globalThis.WebSocket, base: 1, cap: 30, factor: 2, random: Math.random, ...backoff, ...options }
    check(this.#options.WebSocket, 'WebSocket')
    this.protocol = isFunction(protocol) ? new protocol() : protocol

    /** @type {(once: boolean) => Fn} */
    const adder = (once) => (type, fn) => {
      this.#checkType(type)
      this.#messages.add(type, fn, once)
      return this.channel
    }
    /** @type {Fn} */
    const off = (type, fn) => {
      this.#messages.off(type, fn)
      return this.channel
    }
    /** @type {any} */
    this.channel = { on: adder(false), once: adder(true), off }

    /** @type {(name: string) => Fn} */
    const signal = (name) => (fn) => {
      this.#signals.add(name, fn)
      if (name === 'ready' && this.#welcome) run(fn, this.#welcome, this.#failed(name))
      return () => this.#signals.off(name, fn)
    }
    this.when = {
      connected: signal('connected'),
      ready: signal('ready'),
      closed: signal('closed'),
      error: signal('error'),
      updated: signal('updated'),
      ignored: signal('ignored'),
    }
  }

  get url() {
    return this.#options.url
  }

  get status() {
    return this.#status
  }

  /** @param {any} type @param {any} [payload] */
  send(type, payload) {
    const { ws } = this.#ready()
    this.#checkType(type)
    ws.send(this.#encode(type, payload))
  }

  /** @param {any} rp @param {any} [payload] @param {any} [options] */
  async call(rp, payload, { tO = this.#options.tO } = {}) {
    const session = this.#ready()
    this.#checkType(rp)
    const { ws, calls } = session
    const stamp = ++session.stamp
    return new Promise((resolve, reject) => {
      try {
        ws.send(this.#pack(rp, payload, stamp))
      } catch (cause) {
        throw new WseError(WSE_ERROR.RP_SEND_FAILED, { rp }, '', cause)
      }
      /** @type {Fn} */
      const settle = (error, result) => {
        clearTimeout(timer)
        calls.delete(stamp)
        if (error) reject(error)
        else resolve(result)
      }
      const timer = tO && later(() => settle(new WseError(WSE_ERROR.RP_TIMEOUT, { rp, timeout: tO })), tO)
      calls.set(stamp, { rp, settle })
    })
  }

  /** @param {any} rp @param {Fn} fn */
  register(rp, fn) {
    this.#checkType(rp)
    check(fn)
    if (this.#procedures.has(rp)) throw new WseError(WSE_ERROR.RP_ALREADY_REGISTERED, { rp })
    this.#procedures.set(rp, fn)
  }

  /** @param {any} rp */
  unregister(rp) {
    if (!this.#procedures.delete(rp)) throw new WseError(WSE_ERROR.RP_NOT_REGISTERED, { rp })
  }

  /** @param {Fn} fn */
  challenge(fn) {
    if (!isFunction(fn)) throw new WseError(WSE_ERROR.INVALID_CRA_HANDLER)
    this.#challenge = fn
  }

  /** @param {any} [identity] @param {any} [meta] */
  async connect(identity, meta) {
    if (this.#status === WSE_STATUS.READY || this.#status === WSE_STATUS.RE_CONNECTING) throw new WseError(WSE_ERROR.CLIENT_ALREADY_CONNECTED)
    return this.jump(this.url, identity, meta)
  }

  /** @param {any} url @param {any} [identity] @param {any} [meta] */
  async jump(url, identity = this.#identity, meta = this.#meta) {
    if (this.#waiter) throw new WseError(WSE_ERROR.CLIENT_ALREADY_CONNECTED)
    this.#options.url = url
    this.#identity = identity
    this.#meta = meta
    this.#failures = 0
    clearTimeout(this.#timer)
    const epoch = ++this.#epoch
    return new Promise((resolve, reject) => {
      this.#waiter = { resolve, reject }
      if (this.#session) this.#leave(this.#session, JUMP, 'jump', null, true)
      else {
        if (this.#status !== WSE_STATUS.RE_CONNECTING) this.#update(WSE_STATUS.CONNECTING)
        if (epoch === this.#epoch) this.#attempt()
      }
    })
  }

  async close(reason = WSE_REASON.BY_CLIENT) {
    if (utf8(reason).length > 123) throw new RangeError('too long')
    const error = new WseError(WSE_ERROR.CONNECTION_CLOSED, { code: 1000, reason })
    this.#epoch++
    clearTimeout(this.#timer)
    if (this.#session) this.#leave(this.#session, 1000, reason, error, true)
    this.#settle(error)
    if (this.#status !== WSE_STATUS.IDLE) this.#update(WSE_STATUS.OFFLINE)
    await this.#gone
  }

  /** @type {Fn} */
  #settle = (error, welcome) => {
    const waiter = this.#waiter
    this.#waiter = null
    if (error) waiter?.reject(error)
    else waiter?.resolve(welcome)
    return waiter
  }

  /** @type {Fn} */
  #attempt = () => {
    const { url, tO, WebSocket } = this.#options
    const { hi, challenge, welcome } = this.protocol.internal_types
    const identity = this.#identity
    const scram = identity?.respond && identity
    /** @type {any} */
    const session = { calls: new Map(), stamp: 0 }
    /** @type {Fn} */
    const fail = (cause, code = WSE_ERROR.INVALID_CRA_HANDLER, reason = WSE_REASON.BY_CLIENT) => {
      this.#leave(session, 1000, reason, cause instanceof WseError ? cause : new WseError(code, { url }, '', cause))
    }
    let hello = ''
    try {
      hello = this.#encode(hi, { identity: scram ? scram.start() : identity, meta: this.#meta })
      session.ws = new WebSocket(url, this.protocol.name)
    } catch (cause) {
      fail(cause, WSE_ERROR.WS_CLIENT_ERROR)
      return
    }
    const { ws } = (this.#session = session)
    /** @type {Fn} */
    const solve = (response) => {
      if (session.ended || session.solved) return
      ws.send(this.#encode(challenge, response))
      session.solved = true
    }

    session.timer = tO && later(() => this.#leave(session, 1006, ''), tO)
    ws.binaryType = 'arraybuffer'
    ws.onopen = () => {
      if (session.ended) return
      clearTimeout(session.timer)
      session.opened = true
      ws.send(hello)
      this.#emit('connected')
    }
    this.#gone = new Promise((resolve) => {
      ws.onclose = /** @type {Fn} */ ({ code, reason = '' }) => {
        resolve(0)
        this.#leave(session, session.opened ? code : 1006, reason)
      }
      // Node 22 tells no close.
      ws.onerror = /** @type {Fn} */ (event) => session.opened || ws.onclose(event)
    })
    ws.onmessage = /** @type {Fn} */ ({ data }) => {
      if (session.ended) return
      let type, stamp
      /** @type {any} */
      let payload
      try {
        ;({ type, payload = null, stamp = null } = this.protocol.unpack(data))
      } catch (cause) {
        this.#violation(session, WSE_ERROR.MSG_PROCESSING_ERROR, cause)
        return
      }
      if (session.valid) this.#receive(session, type, payload, stamp)
      else if (type === challenge) {
        const respond = scram ? async () => solve(await scram.respond(payload)) : this.#challenge
        if (respond) run(respond, [payload, solve], fail)
      } else if (type === welcome) {
        try {
          if (scram) payload = scram.finish(payload)
        } catch (cause) {
          fail(cause, WSE_ERROR.NOT_AUTHORIZED, WSE_REASON.NOT_AUTHORIZED)
          return
        }
        session.valid = true
        this.#failures = 0
        this.#welcome = [payload]
        this.#settle(null, payload)
        this.#update(WSE_STATUS.READY)
        this.#emit('ready', payload)
      }
    }
  }

  /** @type {Fn} */
  #leave = (session, code, reason, error, told = session.valid) => {
    const { ws, opened, calls, timer, ended } = session
    if (ended) return
    session.ended = true // Node 22 tells an error in close()
    ws?.close(code === JUMP ? code : 1000, reason)
    this.#session = null
    clearTimeout(timer)
    for (const { rp, settle } of calls.values()) settle(new WseError(WSE_ERROR.RP_DISCONNECT, { rp, disconnected: [code, reason] }))
    const closed = reason === WSE_REASON.NOT_AUTHORIZED ? WSE_ERROR.NOT_AUTHORIZED : WSE_ERROR.CONNECTION_CLOSED
    error ??= opened ? new WseError(closed, { code, reason }) : new WseError(WSE_ERROR.WS_CLIENT_ERROR, { url: this.url })

    const { re, base, cap, factor, random } = this.#options
    const again = code === JUMP || (re && RETRIED.includes(code))
    const epoch = this.#epoch
    if (!again && this.#settle(error)) told = true
    this.#update(WSE_STATUS.OFFLINE)
    if (opened) this.#emit('closed', code, reason)
    if (!told && epoch === this.#epoch) this.#report(error)
    if (again && epoch === this.#epoch) this.#update(WSE_STATUS.RE_CONNECTING)
    if (again && epoch === this.#epoch) {
      const wait = Math.min(cap, base * factor ** this.#failures) * random()
      this.#timer = later(this.#attempt, code === JUMP && !this.#failures ? 0 : wait)
      this.#failures++
    }
  }

  /** @type {Fn} */
  #receive = (session, type, payload, stamp) => {
    const { response, response_error } = this.protocol.internal_types
    const { code, details, message } = Object(payload)
    if (isObject(type) || (!stamp && (type == null || type === ''))) {
      this.#violation(session, WSE_ERROR.PROTOCOL_VIOLATION)
    } else if (!stamp) {
      if (this.#messages.of(type).length) this.#messages.emit(type, [payload], this.#failed(type))
      else this.#emit('ignored', type, payload, stamp)
    } else if (type === response) {
      session.calls.get(stamp)?.settle(null, payload)
    } else if (type === response_error) {
      const error = isText(code) ? new WseError(code, details, message) : new WseError(WSE_ERROR.RP_EXECUTION_FAILED)
      session.calls.get(stamp)?.settle(error)
    } else {
      this.#answer(session, type, payload, stamp)
    }
  }

  /** @type {Fn} */
  #answer = (session, rp, payload, stamp) => {
    const { response, response_error } = this.protocol.internal_types
    const fn = this.#procedures.get(rp)
    /** @type {Fn} */
    const write = (type, value) => {
      const data = this.#pack(type, value, stamp)
      if (!session.ended) session.ws.send(data)
    }
    /** @type {Fn} */
    const failed = (cause) => {
      const base = { rp, rpc: rp }
      try {
        const { name = typeof cause, message = String(cause), stack } = Object(cause)
        const origin = this.#options.debug ? { name, message, stack } : { name, message }
        const { code, details } = cause instanceof WseError ? cause : { code: WSE_ERROR.RP_EXECUTION_FAILED, details: { origin } }
        write(response_error, { code, message: message === code ? undefined : message, details: { ...base, ...(payload !== null && { payload }), ...details } })
      } catch {
        run(write, [response_error, { code: WSE_ERROR.RP_EXECUTION_FAILED, details: base }], this.#failed(rp))
      }
      if (fn) this.#report(new WseError(WSE_ERROR.RP_EXECUTION_FAILED, { ...base, type: rp, payload, stamp }, '', cause))
    }
    /** @type {Fn} */
    const respond = (result) => write(response, result)
    /** @type {Fn} */
    const answer = () => {
      if (!fn) throw new WseError(WSE_ERROR.RP_NOT_REGISTERED)
      const result = fn(payload)
      return isFunction(result?.then) ? result.then(respond) : respond(result)
    }
    run(answer, [], failed)
  }

  #ready = () => {
    if (this.#status === WSE_STATUS.READY && this.#session) return this.#session
    const error = new WseError(WSE_ERROR.CLIENT_NOT_READY, { status: this.#status })
    this.#report(error)
    throw error
  }

  /** @type {Fn} */
  #checkType = (type) => {
    const own = Object.values(this.protocol.internal_types).includes(type)
    if (own || type == null || type === '' || isObject(type) || /^~wse:/.test(type)) throw new WseError(WSE_ERROR.PROTOCOL_VIOLATION, { type })
  }

  /** @type {Fn} */
  #pack = (type, payload = null, stamp = null) => this.protocol.pack({ type, payload, stamp })

  /** @type {Fn} */
  #encode = (type, payload) => {
    try {
      return this.#pack(type, payload)
    } catch (cause) {
      throw new WseError(WSE_ERROR.MSG_PROCESSING_ERROR, { type }, '', cause)
    }
  }

  /** @type {Fn} */
  #violation = (session, code, cause) => {
    const reason = WSE_REASON.PROTOCOL_ERROR
    this.#report(new WseError(code, { close: [1000, reason] }, '', cause))
    this.#leave(session, 1000, reason)
  }

  /** @type {Fn} */
  #update = (status) => {
    if (status === this.#status) return
    this.#status = status
    this.#emit('updated', status)
  }

  /** @type {Fn} */
  #emit = (name, ...args) => this.#signals.emit(name, args, this.#failed(name))

  /** @type {(type: any) => Fn} */
  #failed = (type) => (cause) => this.#report(new WseError(WSE_ERROR.MSG_PROCESSING_ERROR, { type }, '', cause))

  /** @type {Fn} */
  #report = (error) => {
    if (this.#signals.of('error').length) this.#signals.emit('error', [error], console.error)
    else console.error(error)
  }
}

/** @type {Fn} */
const utf8 = (text) => new TextEncoder().encode(text)
/** @type {Fn} */
const base64 = (bytes) => btoa(String.fromCharCode(...bytes))
/** @type {Fn} */
const hmac = async (key, text) => {
  const { subtle } = crypto
  const imported = await subtle.importKey('raw', key, { name: 'HMAC', hash: 'SHA-256' }, false, ['sign'])
  return new Uint8Array(await subtle.sign('HMAC', imported, utf8(text)))
}

/** @type {Fn} SASLprep without its bidi rules */
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

  /** @param {string} username @param {string} password */
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

  /** @param {any} quest */
  async respond(quest) {
    const { subtle } = crypto
    const first = this.#first
    const message = quest?.scram
    const [, nonce, salt, count] = /^r=([^,]+),s=([^,]+),i=(\d+)(,|$)/.exec(message) ?? [0, '', '', '']
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
    return { scram: `${last},p=${base64(key.map(/** @type {Fn} */ (byte, at) => byte ^ signature[at]))}` }
  }

  /** @param {any} welcome */
  finish(welcome) {
    if (!this.#final || welcome?.scram?.split(',')[0] !== this.#final) throw new WseError(WSE_ERROR.NOT_AUTHORIZED)
    return welcome.welcome
  }
}
