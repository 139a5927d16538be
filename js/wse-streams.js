// Calls that take more than one answer: `client.stream()`, uploads, progress, and procedures that yield. wse.js loads this when
// one of them is used. MIT licence.
//
// The sender of items has credit, which the receiver grants: a window at first, and half of it again whenever the application
// has taken as many. So what is on its way, or waits for the application, is never more than a window.

// Items for which this side takes credit, and a peer that says nothing else.
const MOST = 256

// A receiver that holds more than these bytes grants nothing.
const MOST_HELD = 256 * 1024

// Items of an upload that may be on their way.
const UPLOAD_WINDOW = 32

// Streams and uploads of the server that run at a time.
const MOST_STREAMS = 100

// Seconds between looks at a socket that is full, since those of browsers do not tell when they have room.
const POLL = 0.02

// The sender has had no credit.
const EXCEEDED = { code: 'wse.limit-exceeded', details: { limit: 'stream_window', allowed: MOST } }
const TOO_MANY = { code: EXCEEDED.code, details: { limit: 'streams', allowed: MOST_STREAMS } }

const NOT_A_STREAM = { code: 'wse.rp.not-a-stream', details: {} }
const IS_A_STREAM = { code: 'wse.rp.is-a-stream', details: {} }

const isCount = (value) => Number.isInteger(value) && value > 0
const isIterator = (value) => typeof value?.next === 'function'
const sizeOf = (data) => data.length ?? data.byteLength
const windowOf = ({ window }) => (isCount(window) ? Math.min(window, MOST) : MOST)
const later = (fn, seconds) => setTimeout(fn, Math.min(seconds * 1000, 2 ** 31 - 1))
const done = () => ({ value: undefined, done: true })

/** The receiving end: items that have come, and the application has not taken. */
class Inflow {
  #half = 1
  // Items that the sender may still send.
  #room = 0
  #items = /** @type {{ item: any, size: number }[]} */ ([])
  #held = 0
  #taken = 0
  #waiting = /** @type {{ resolve: (result: any) => void, reject: (error: any) => void }[]} */ ([])
  #isOver = false
  // What is thrown after the last item, once.
  #errors = /** @type {any[]} */ ([])
  #grant = (/** @type {number} */ count) => void count
  #timer
  #patience
  #expired

  /**
   * @param {number} [patience] seconds that the application waits for an item, 0 for ever
   * @param {() => void} [expired] called after that time
   */
  constructor(patience = 0, expired = () => {}) {
    this.#patience = patience
    this.#expired = expired
  }

  /** Items may come, `window` of them at first; that function grants more. */
  open(window, grant) {
    this.#room = window
    this.#half = Math.max(1, window >> 1)
    this.#grant = grant
  }

  /** An item has come, in a message of that size. Returns whether the sender had credit for it. */
  put(item, size) {
    if (!this.#room) return false
    this.#room--
    if (this.#isOver) return true
    const waiter = this.#waiting.shift()
    if (waiter) {
      this.#watch()
      waiter.resolve({ value: item, done: false })
      this.#took()
    } else {
      this.#held += size
      this.#items.push({ item, size })
    }
    return true
  }

  /** No more items come. After those that wait here, the error is thrown, if there is one. */
  end(...errors) {
    if (this.#isOver) return
    this.#isOver = true
    this.#errors = errors
    for (const waiter of this.#waiting.splice(0)) this.#finish(waiter)
    this.#watch()
  }

  /** Forget the items that wait here, and what came after them: this is thrown instead. */
  abort(reason) {
    this.#items = []
    this.#isOver = false
    this.end(reason)
  }

  next() {
    return new Promise((resolve, reject) => {
      const entry = this.#items.shift()
      if (entry) {
        this.#held -= entry.size
        resolve({ value: entry.item, done: false })
        this.#took()
      } else if (this.#isOver) this.#finish({ resolve, reject })
      else {
        this.#waiting.push({ resolve, reject })
        this.#watch()
      }
    })
  }

  async return() {
    this.#items = []
    this.end()
    this.#errors = []
    return done()
  }

  [Symbol.asyncIterator]() {
    return this
  }

  #finish({ resolve, reject }) {
    if (this.#errors.length) reject(this.#errors.pop())
    else resolve(done())
  }

  #took() {
    if (++this.#taken < this.#half || this.#held > MOST_HELD || this.#isOver) return
    this.#room += this.#taken
    this.#grant(this.#taken)
    this.#taken = 0
  }

  #watch() {
    clearTimeout(this.#timer)
    if (this.#patience && this.#waiting.length) this.#timer = later(this.#expired, this.#patience)
  }
}

/** The sending end. */
class Outflow {
  #iterator = /** @type {any} */ (null)
  #credit = 0
  #write
  #isFull
  #failed
  #isStopped = false
  #wake = () => {}

  /**
   * @param {(item: any) => void} write sends an item; it may throw
   * @param {() => boolean} isFull whether the socket has no room
   * @param {(cause: any) => void} failed is told why the iterator could not be closed
   */
  constructor(write, isFull, failed) {
    this.#write = write
    this.#isFull = isFull
    this.#failed = failed
  }

  /** The receiver takes that many more; a number that makes no sense is ignored. */
  grant(count) {
    if (!isCount(count)) return
    this.#credit = Math.min(this.#credit + count, MOST)
    this.#wake()
  }

  /**
   * Send all items of an iterable or an iterator, async or not, as fast as the receiver takes them. Resolves with false if it
   * has been stopped before.
   */
  async run(items) {
    this.#iterator = (items[Symbol.asyncIterator] ?? items[Symbol.iterator])?.call(items) ?? items
    if (this.#isStopped) this.#close()
    for (;;) {
      while (!this.#isStopped && !this.#credit) await new Promise((wake) => (this.#wake = () => wake(0)))
      while (!this.#isStopped && this.#isFull()) await new Promise((resolve) => later(resolve, POLL))
      if (this.#isStopped) return false
      const { done, value } = await this.#iterator.next()
      if (this.#isStopped) return false
      if (done) return (this.#isStopped = true)
      this.#credit--
      try {
        this.#write(value)
      } catch (cause) {
        this.stop()
        throw cause
      }
    }
  }

  /** Send no more, and close the iterator. One that is busy may take its time, or never close: nobody waits for it. */
  stop() {
    if (this.#isStopped) return
    this.#isStopped = true
    this.#wake()
    this.#close()
  }

  #close() {
    // It may be the iterator that stops us, and a generator that runs cannot be closed.
    Promise.resolve().then(() => this.#iterator?.return?.()).catch(this.#failed)
  }
}

// Calls of ours.

/**
 * Make a call that takes progress, uploads, or is a stream of which `window` items may be on their way. `make` is the client's;
 * `start` is given its `tell` and the window that the server allows, and returns what to do with more messages of the server.
 */
export const call = (make, /** @type {any} */ { signal, upload, onProgress, ...options }, isFull, window = 0, start = /** @type {any} */ (() => {})) => {
  const controller = new AbortController()
  const abort = () => controller.abort(signal.reason)
  if (signal?.aborted) abort()
  signal?.addEventListener('abort', abort)
  let outflow
  const extra = (peer) => ({ ...(window && { n: Math.min(window, windowOf(peer)) }), ...(onProgress && { p: 1 }), ...(upload && { up: 1 }) })
  const frames = (tell, failed, { n }) => {
    if (upload) {
      outflow = new Outflow((item) => tell('put', item), isFull, failed)
      outflow.run(upload).then((isDone) => isDone && tell('end', null), (cause) => controller.abort(cause))
    }
    return {
      want: (count) => outflow?.grant(count),
      progress: async (value) => {
        try {
          await onProgress?.(value)
        } catch (cause) {
          failed(cause)
        }
      },
      ...start(tell, n),
    }
  }
  const end = () => {
    signal?.removeEventListener('abort', abort)
    outflow?.stop()
  }
  const result = make({ ...options, signal: controller.signal, extra, frames })
  result.then(end, end)
  return result
}

/** The items of a procedure that yields. The call is made when the first one is asked for. */
export class Stream {
  #inflow
  #begin
  // The application has had the end.
  #finish
  #controller = new AbortController()

  constructor(make, rp, { signal, window = 32, timeout = 0, deadline = 0, ...options }, isFull, WseError) {
    const n = Math.max(1, Math.min(Math.floor(window), MOST)) || 1
    const leave = (code, details) => this.#controller.abort(new WseError(code, { rp, ...details }))
    const inflow = (this.#inflow = new Inflow(timeout, () => leave('wse.client.rp.timeout', { timeout, at: 'caller' })))
    // Also when the call is over: there may be items that the application has not taken.
    const abort = () => {
      inflow.abort(signal.reason)
      this.#controller.abort(signal.reason)
    }
    this.#finish = () => signal?.removeEventListener('abort', abort)
    const start = (tell, allowed) => {
      inflow.open(allowed, (count) => tell('more', count))
      return { item: (item, data) => inflow.put(item, sizeOf(data)) || leave(EXCEEDED.code, EXCEEDED.details) }
    }
    this.#begin = () => {
      this.#begin = () => {}
      if (signal?.aborted) abort()
      signal?.addEventListener('abort', abort)
      const end = (...errors) => inflow.end(...errors)
      call(make, { ...options, timeout: deadline, signal: this.#controller.signal }, isFull, n, start).then(() => end(), end)
    }
  }

  async next() {
    this.#begin()
    let isDone = true
    try {
      const result = await this.#inflow.next()
      isDone = Boolean(result.done)
      return result
    } finally {
      if (isDone) this.#finish()
    }
  }

  return() {
    this.#begin = () => {}
    this.#finish()
    const closed = this.#inflow.return()
    this.#controller.abort()
    return closed
  }
}

// Calls of the server.

/** Answer a call with options. Resolves with the result, null for a stream; rejects with what the caller shall get. */
export const serve = async (fn, payload, context, running, { n, p, up }, tell, isFull, peer, served) => {
  const { signal } = context
  if (signal.aborted) return
  running.isStream = n || up
  if (running.isStream && [...served.values()].filter(({ isStream }) => isStream).length > MOST_STREAMS) throw TOO_MANY
  let isOver = false
  let timer
  if (p) {
    // Only the newest while the socket is full.
    context.progress = (value) => {
      clearTimeout(timer)
      if (isOver) return
      if (isFull()) timer = later(() => context.progress(value), POLL)
      else tell('progress', value)
    }
  }
  const window = Math.min(UPLOAD_WINDOW, windowOf(peer))
  if (up) {
    const inflow = new Inflow()
    inflow.open(window, (count) => isOver || tell('want', count))
    signal.addEventListener('abort', () => inflow.end(signal.reason))
    running.put = (item, data) => {
      if (inflow.put(item, sizeOf(data))) return
      running.failed(EXCEEDED)
      running.cancel()
    }
    running.end = () => inflow.end()
    context.items = inflow
  }
  const outflow = new Outflow((item) => tell('item', item), isFull, running.failed)
  if (n) {
    outflow.grant(n)
    running.more = (count) => outflow.grant(count)
    signal.addEventListener('abort', () => outflow.stop())
  }
  try {
    const result = fn(payload, context)
    if (up && !n && isIterator(result)) throw IS_A_STREAM
    if (up && n && !isIterator(result)) throw NOT_A_STREAM
    if (up) tell('want', window)
    const items = await result
    if (!n) return items
    if (!isIterator(items)) throw NOT_A_STREAM
    await outflow.run(items)
    return null
  } finally {
    isOver = true
    clearTimeout(timer)
  }
}
