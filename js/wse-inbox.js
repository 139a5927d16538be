// Messages that the server keeps: `new WseClient({ url, inbox: 'phone' })` of wse.js loads this. MIT licence.
//
// The server numbers what it keeps for a user. The inbox hands each message to its listeners once, in order, and reports how far
// they have come: the end of the unbroken row of messages whose listeners have returned, or resolved, without an error. It never
// reports a message that lies beyond one that has failed, so that one comes again when the page is loaded anew.

// Messages after which it is reported how far the listeners have come; fewer are reported after a while, in milliseconds.
const REPORT_EVERY = 64
const REPORT_AFTER = 2000

// Async listeners of kept messages that run at a time. More messages wait for them.
const MOST_AT_A_TIME = 100

// Messages that wait, after which the server is asked for no more until half of them have been handled.
const ENOUGH = 256

// How long a client that closes waits for listeners that run, in milliseconds.
const GRACE = 1000

const isNumber = (value) => Number.isSafeInteger(value) && value >= 0
const isObject = (value) => typeof value === 'object' && value !== null

export class Inbox {
  #client
  #device
  #messages
  #emit
  #failed
  #unsupported
  // The last message that has come, or that the server shall not send; null if only the server knows.
  #after
  // The name of its row of numbers: a store that has lost the inbox begins another one.
  #epoch
  #offered
  #identity
  // Messages with listeners that have not returned, in order.
  #open = /** @type {Set<{ n: number, left: number }>} */ (new Set())
  #waiting = /** @type {any[]} */ ([])
  #running = 0
  #hasEnough = false
  #isClosing = false
  #idle = /** @type {any} */ (null)
  #reported = 0
  // Where to report; null until the server has answered.
  #session = /** @type {any} */ (null)
  #isKnown = false
  #timer

  /**
   * @param {any} client its `kept` is set while listeners are called
   * @param {any} options `inbox`, the name of the device, and `after`, the last message that the application has, or its number
   * @param {any} messages the listeners
   * @param {any} emit tells the application something
   * @param {any} failed makes what takes the error of a listener
   * @param {any} report takes an error that nobody awaits
   * @param {any} WseError the class of that error
   */
  constructor(client, { inbox, after = null }, messages, emit, failed, report, WseError) {
    this.#client = client
    this.#device = inbox
    this.#after = isObject(after) ? after.n : after
    this.#epoch = after?.epoch
    this.#messages = messages
    this.#emit = emit
    this.#failed = failed
    this.#unsupported = () => report(new WseError('wse.unsupported', { extension: 'inbox' }, 'the server has no inboxes'))
  }

  // From connection to connection.

  /** What the client says. The numbers of one user mean nothing to the next one. */
  offer(identity) {
    if (this.#identity && identity !== this.#identity[0]) {
      this.#restart(null)
      this.#epoch = undefined
    }
    this.#identity = [identity]
    this.#session = null
    this.#offered = this.#after
    return { inbox: { device: this.#device, ...(this.#after !== null && { after: this.#after, ...(this.#epoch && { epoch: this.#epoch }) }) } }
  }

  /** The client is ready, and the application has had time to listen. */
  welcomed(session) {
    if (session.ended) return
    this.#isClosing = false
    const answer = session.answer?.inbox
    const { recovered, protocol } = this.#client
    this.#isKnown = recovered ? this.#isKnown : isObject(answer) && Boolean(protocol.extensions?.kept)
    if (!this.#isKnown) return this.#unsupported()
    if (!recovered) this.#hasEnough = false
    this.#session = session
    const { from, lost, epoch } = answer ?? {} // neither in a session that goes on, or from a server that does not know now
    if (isNumber(from)) {
      const before = from - 1
      // Messages that waited may have been handled meanwhile.
      const isAnother = this.#epoch && epoch !== this.#epoch
      this.#epoch = epoch
      if (isAnother) this.#restart(before)
      else if (this.#offered === null || from > this.#offered) this.#after = Math.max(before, this.#after ?? 0)
      else this.#restart(before) // the server has lost the inbox, and counts anew
      if (isNumber(lost) && lost) this.#emit('inboxLost', lost)
    }
    this.#takeWaiting()
    this.#note()
  }

  #restart(after) {
    this.#after = after
    this.#reported = 0
    this.#open.clear()
    this.#waiting = []
  }

  // Messages.

  /** A message has come. Returns whether it was a kept one; throws a RangeError for one that makes no sense. */
  receive(type, message) {
    if (!this.#session || type !== this.#client.protocol.extensions.kept) return false
    if (!Array.isArray(message) || message.length !== 4 || !isNumber(message[0]) || isObject(message[1])) throw new RangeError('a kept message')
    if (this.#running < MOST_AT_A_TIME && !this.#waiting.length && !this.#isClosing) this.#handle(message)
    else {
      this.#waiting.push(message)
      // Another node that has taken the session over does not know that this was said.
      if (this.#waiting.length >= ENOUGH && !(this.#hasEnough && this.#waiting.length % ENOUGH)) this.#want(false)
    }
    return true
  }

  /** The call of a listener that has to wait for its turn. It sees the same message then. */
  bind(fn, args) {
    const { kept } = this.#client
    return () => this.#within(kept, () => fn(...args))
  }

  #within(kept, fn) {
    this.#client.kept = kept
    try {
      return fn()
    } finally {
      this.#client.kept = null
    }
  }

  #handle(/** @type {any} */ [n, type, payload, at]) {
    const after = this.#after
    if (after !== null && n <= after) return
    this.#after = n
    if (after !== null && n > after + 1) this.#emit('inboxLost', n - after - 1)
    if (this.#messages.of(type).length) {
      const message = { n, left: 1 }
      this.#open.add(message)
      const call = (fn, args, failed) => this.#call(message, fn, args, failed)
      this.#within({ n, at, ...(this.#epoch && { epoch: this.#epoch }) }, () => this.#messages.emit(type, [payload], this.#failed(type), false, call))
      this.#returned(message)
    } else this.#emit('ignored', type, payload, null)
    this.#note()
  }

  #call(message, fn, args, failed) {
    message.left++
    let result
    try {
      result = fn(...args)
    } catch (cause) {
      return failed(cause)
    }
    if (typeof result?.then !== 'function') return this.#returned(message)
    this.#running++
    const ended = (then) => (value) => {
      this.#running--
      then(value)
      if (!this.#running) this.#idle?.resolve()
      this.#takeWaiting()
      if (this.#hasEnough && this.#waiting.length <= ENOUGH / 2) this.#want(true)
    }
    const returned = () => {
      this.#returned(message)
      this.#note()
    }
    Promise.resolve(result).then(ended(returned), ended(failed))
  }

  #takeWaiting() {
    while (this.#waiting.length && this.#running < MOST_AT_A_TIME && !this.#isClosing) this.#handle(this.#waiting.shift())
  }

  /** A listener has returned without an error. */
  #returned(message) {
    if (!--message.left) this.#open.delete(message)
  }

  // How far the listeners have come.

  get #seen() {
    const [first] = this.#open
    return first ? first.n - 1 : (this.#after ?? 0)
  }

  #note() {
    const ahead = this.#seen - this.#reported
    if (ahead >= REPORT_EVERY) this.report()
    else if (ahead > 0 && !this.#timer) {
      this.#timer = setTimeout(() => this.report(), REPORT_AFTER)
      this.#timer['unref']?.()
    }
  }

  /**
   * There while async listeners run: takes no more messages, and resolves when these have ended, so that what they have handled is
   * reported; after a while, it no longer waits.
   */
  get settle() {
    if (!this.#running || !this.#session || this.#session.ended || this.#client.kept) return undefined
    return () => {
      this.#isClosing = true
      return (this.#idle ??= this.#untilIdle()).promise // another call may wait already
    }
  }

  #untilIdle() {
    let resolve
    const promise = new Promise((settle) => {
      const timer = setTimeout(() => resolve(), GRACE)
      resolve = () => {
        clearTimeout(timer)
        this.#idle = null
        settle(undefined)
      }
    })
    return { promise, resolve: () => resolve() }
  }

  /** Tell the server how far the listeners have come. What cannot be told now is told after the next welcome. */
  report() {
    clearTimeout(this.#timer)
    this.#timer = null
    const seen = this.#seen
    if (seen > this.#reported && this.#tell('seen', seen)) this.#reported = seen
  }

  /** Tell the server whether to send more; an older one has no epoch, and does not know of this. */
  #want(wants) {
    if (this.#epoch && this.#tell('kept', wants)) this.#hasEnough = !wants
  }

  /** Send a message of this extension; returns whether that is possible now. */
  #tell(name, payload) {
    const { ended, ledger, ws } = this.#session ?? {}
    if (ended || !(ledger || ws?.readyState === 1)) return false
    const { protocol } = this.#client
    const data = protocol.pack({ type: protocol.extensions[name], payload, stamp: null })
    if (ledger) ledger.send(data)
    else ws.send(data)
    return true
  }
}
