// The books of a session that outlives its connection: `new WseClient({ url, resume: true })` of wse.js loads this. MIT licence.
//
// Both sides number the messages of each direction by counting, from 1 after the welcome; no message carries its number. The
// ledger stands between a client and its sockets, and everything passes through it. It counts what comes, and confirms it now
// and then; it keeps what goes until the server has confirmed it, and sends the rest again over the next socket. Only its own
// messages (ack, ask, gap) are not counted.

// Messages after which an ack is sent at once; fewer are confirmed after a while, or when the server asks.
const BATCH = 64
const ACK_AFTER = 2000

// Bytes that a kept message takes beside its payload.
const OVERHEAD = 56

// A proxy may break every connection that carries a certain message.
const STUCK_AFTER = 5
const STUCK_WITHIN = 5000

const isCount = (value) => Number.isSafeInteger(value) && value >= 0
const sizeOf = ({ data }) => OVERHEAD + (data === null ? 0 : (data.length ?? data.byteLength))

export class Ledger {
  /** The code and reason of the last close. */
  closed = [1006, '']
  /** Whether every return so far has broken at the same message. */
  isStuck = false

  #id
  #key
  #bounds
  #protocol
  #socket
  // Messages that the server has not confirmed, in order: `{ data }`, of which null must not be delivered any more.
  #ring = /** @type {{ data: any }[]} */ ([])
  #base = 1
  #size = 0
  // The number of the last message that a socket has had; the rest of the ring waits for one.
  #written = 0
  #heard = 0
  #got = 0
  #acked = 0
  #timer
  #isAsked = false
  #flushes = /** @type {{ number: number, done: (isHandled: boolean) => void }[]} */ ([])
  #attachedAt = 0
  #first = 0
  #returns = 0
  #isEnded = false

  /**
   * @param {any} answer what the server has said about the session
   * @param {any} socket the first socket
   * @param {any} bounds the client's own `bytes` and `messages`, if it has any
   * @param {any} protocol the message protocol
   */
  constructor({ id, key, bytes, messages }, socket, bounds, protocol) {
    this.#id = id
    this.#key = key
    this.#bounds = { bytes, messages, ...bounds }
    this.#socket = socket
    this.#protocol = protocol
  }

  /** How many messages have been numbered. */
  get #out() {
    return this.#base + this.#ring.length - 1
  }

  /** Whether a message can be sent, now or later. */
  get hasRoom() {
    const { bytes, messages } = this.#bounds
    return Boolean(this.#socket) || (this.#ring.length < messages && this.#size < bytes)
  }

  /** All calls go on. */
  holds() {
    return true
  }

  // From ledger to ledger: `wse-share.js` moves a session from one page to another.

  /** What another ledger needs to go on. */
  export() {
    const ring = this.#ring.map(({ data }) => data)
    return { id: this.#id, key: this.#key, ...this.#bounds, ring, base: this.#base, written: this.#written, heard: this.#heard, got: this.#got }
  }

  /** A ledger without a socket that goes on from what another one has exported. */
  static from(state, protocol) {
    const ledger = new Ledger(state, null, {}, protocol)
    ledger.#ring = state.ring.map((data) => ({ data }))
    ledger.#size = ledger.#ring.reduce((sum, entry) => sum + sizeOf(entry), 0)
    ledger.#base = state.base
    ledger.#written = state.written
    ledger.#heard = state.heard
    ledger.#got = ledger.#acked = state.got
    return ledger
  }

  // From socket to socket.

  /** What the client says when it comes back. */
  claim() {
    return this.isStuck ? {} : { id: this.#id, key: this.#key, got: this.#got, sent: [this.#base, this.#written] }
  }

  /** Why the session does not go on after a welcome with that answer, and how much has arrived; null if it does. */
  lost(answer) {
    if (this.isStuck) return { why: 'stuck' }
    return answer ? (answer.lost ?? null) : { why: 'off' }
  }

  /** The server goes on over another socket. */
  resume({ id, got }, socket) {
    if (!this.#couldHave(got)) throw new RangeError(`the server has got ${got} messages`)
    this.#id = id
    this.#confirm(got)
    this.#acked = this.#got
    this.#socket = socket
    this.#attachedAt = performance.now()
    this.#returns = this.#ring.length && this.#first === this.#base ? this.#returns + 1 : 1
    this.#first = this.#base
    let gap = 0
    for (const { data } of this.#ring) {
      if (data === null) gap++
      else {
        if (gap) this.#control(this.#protocol.extensions.gap, gap)
        gap = 0
        socket.send(data)
      }
    }
    if (gap) this.#control(this.#protocol.extensions.gap, gap)
    this.#written = this.#out
    if (this.#flushes.length) this.ask()
  }

  /** The socket is gone. */
  detach(code, reason) {
    if (!this.#socket) return
    this.#socket = null
    this.closed = [code, reason]
    this.#isAsked = false
    clearTimeout(this.#timer)
    this.#timer = null
    const isShort = performance.now() - this.#attachedAt < STUCK_WITHIN
    if (!isShort) this.#returns = 0
    this.isStuck = this.#ring.length > 0 && this.#returns >= STUCK_AFTER && this.#first === this.#base
  }

  /** The session has ended. Returns what the server may not have handled. */
  end({ why, got }, send) {
    this.detach(...this.closed)
    this.#isEnded = true
    for (const { done } of this.#flushes.splice(0)) done(false)
    const isKnown = this.#couldHave(got)
    if (isKnown) this.#confirm(got)
    const last = isKnown ? 0 : this.#written - this.#base + 1
    const [uncertain, unsent] = [this.#ring.slice(0, last), this.#ring.slice(last)].map((entries) => this.#messages(entries))
    const resend = (options = { uncertain: false }) => {
      for (const { type, payload } of [...(options.uncertain ? uncertain : []), ...unsent]) send(type, payload)
    }
    return { why, uncertain, unsent, resend }
  }

  // Whether that many messages may have arrived.
  #couldHave(got) {
    return isCount(got) && got >= this.#base - 1 && got <= this.#written
  }

  // Without calls, answers and WSE's own.
  #messages(entries) {
    const messages = []
    for (const { data } of entries) {
      if (data === null) continue
      const [type, payload, stamp] = this.#protocol.unpack(data)
      if (!stamp && !/^~wse:/.test(type)) messages.push({ type, payload })
    }
    return messages
  }

  // Messages to the server.

  /** Send a message, or keep it for the next socket. Returns what `withdraw` and `hasArrived` take. */
  send(data) {
    const entry = { data }
    if (this.#isEnded) return entry
    this.#socket?.send(data)
    this.#ring.push(entry)
    this.#size += sizeOf(entry)
    if (!this.#socket) return entry
    this.#written = this.#out
    const { bytes, messages } = this.#bounds
    // The server reads but does not confirm: the connection goes on, but the session may not outlive it.
    while (this.#size > bytes || this.#ring.length > messages) this.#drop(Math.ceil(this.#ring.length / 2))
    if (!this.#isAsked && (this.#size > bytes / 2 || this.#ring.length > messages / 2)) this.ask()
    return entry
  }

  /** Take back a message that must not be delivered any more. Returns whether it has arrived; null if that is not known. */
  withdraw(entry) {
    const hasArrived = this.hasArrived(entry, null)
    if (!hasArrived) {
      this.#size -= sizeOf(entry) - OVERHEAD
      entry.data = null
    }
    return hasArrived
  }

  /** Whether a message has arrived at the server, which has got `got` messages, or null if nobody knows. */
  hasArrived(entry, got) {
    const index = this.#ring.indexOf(entry)
    if (index < 0) return this.#base - 1 <= this.#heard || null
    const number = this.#base + index
    if (number > this.#written) return false
    return this.#couldHave(got) ? number <= got : null
  }

  /** Resolves with true when the server has handled everything until now, and with false when the session has ended before. */
  flush() {
    if (this.#isEnded || this.#out <= this.#heard) return Promise.resolve(!this.#isEnded)
    if (this.#socket) this.ask()
    return new Promise((done) => this.#flushes.push({ number: this.#out, done }))
  }

  /** Ask the server for an ack. */
  ask() {
    this.#isAsked = true
    this.#control(this.#protocol.extensions.ask, null)
  }

  // Messages from the server.

  /** Count a message. Returns whether it was one of the ledger's own; throws a RangeError for one that makes no sense. */
  receive(type, payload) {
    const { ack, ask, gap } = this.#protocol.extensions
    if (type === ack) {
      if (!isCount(payload) || payload < this.#heard || payload > this.#written) throw new RangeError(`an ack of ${payload}`)
      this.#confirm(payload)
    } else if (type === ask) this.#ack()
    else if (type === gap) {
      if (!isCount(payload) || !payload || !isCount(this.#got + payload)) throw new RangeError(`a gap of ${payload}`)
      this.#count(payload)
    } else {
      this.#count(1)
      return false
    }
    return true
  }

  #count(messages) {
    this.#got += messages
    if (this.#got - this.#acked >= BATCH) this.#ack()
    else if (!this.#timer) {
      this.#timer = setTimeout(() => this.#ack(), ACK_AFTER)
      this.#timer['unref']?.()
    }
  }

  #ack() {
    clearTimeout(this.#timer)
    this.#timer = null
    this.#acked = this.#got
    this.#control(this.#protocol.extensions.ack, this.#got)
  }

  #confirm(number) {
    this.#heard = number
    this.#isAsked = false
    if (number >= this.#base) this.#drop(number - this.#base + 1)
    while (this.#flushes.length && this.#flushes[0].number <= number) this.#flushes.shift()?.done(true)
    if (this.#flushes.length && this.#socket) this.ask()
  }

  #drop(count) {
    for (const entry of this.#ring.splice(0, count)) this.#size -= sizeOf(entry)
    this.#base += count
  }

  #control(type, payload) {
    this.#socket?.send(this.#protocol.pack({ type, payload, stamp: null }))
  }
}
