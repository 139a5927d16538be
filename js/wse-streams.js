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

// Seconds between looks at a socket that is full, since those of browsers do not tell when they have room.
const POLL = 0.02

const isCount = (value) => Number.isInteger(value) && value > 0
const isFunction = (value) => typeof value === 'function'
const sizeOf = (data) => data.length ?? data.byteLength
const later = (fn, seconds) => setTimeout(fn, Math.min(seconds * 1000, 2 ** 31 - 1))
const done = () => ({ value: undefined, done: true })

/** The receiving end: items that have come, and the application has not taken. */
class Inflow {
  #half
  // Items that the sender may still send.
  #room
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
   * @param {number} window items that may be on their way
   * @param {number} [patience] seconds that the application waits for an item, 0 for ever
   * @param {() => void} [expired] called after that time
   */
  constructor(window, patience = 0, expired = () => {}) {
    this.#room = window
    this.#half = Math.max(1, window >> 1)
    this.#patience = patience
    this.#expired = expired
  }

  /** From now on, credit is granted with that function, to a sender that takes no more than `most`. */
  open(grant, most = MOST) {
    this.#grant = grant
    if (isCount(most)) this.#half = Math.max(1, Math.min(this.#half, most >> 1))
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

  /** Forget the items that wait here. */
  drop() {
    this.#items = []
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
    this.drop()
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
  #iterator
  #credit = 0
  #write
  #isFull
  #failed
  #isStopped = false
  #wake = () => {}

  /**
   * @param {any} items an iterable or an iterator, async or not
   * @param {(item: any) => void} write sends an item; it may throw
   * @param {() => boolean} isFull whether the socket has no room
   * @param {(cause: any) => void} failed is told why the iterator could not be closed
   */
  constructor(items, write, isFull, failed) {
    this.#iterator = (items[Symbol.asyncIterator] ?? items[Symbol.iterator])?.call(items) ?? items
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

  /** Send all items, as fast as the receiver takes them. Resolves with false if it has been stopped before. */
  async run() {
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
    // It may be the iterator that stops us, and a generator that runs cannot be closed.
    Promise.resolve().then(() => this.#iterator.return?.()).catch(this.#failed)
  }
}

// Calls of ours.

/**
 * Make a call that takes progress, uploads, or is a stream. `make` is the client's; `start` is given its `tell` and what the
 * server has announced, and returns what to do with more messages of the server.
 */
export const call = (make, /** @type {any} */ { signal, upload, onProgress, ...options }, isFull, extra = {}, start = /** @type {any} */ (() => {})) => {
  const controller = new AbortController()
  const abort = () => controller.abort(signal.reason)
  if (signal?.aborted) abort()
  signal?.addEventListener('abort', abort)
  let outflow
  const frames = (tell, failed, peer) => {
    if (upload) {
      outflow = new Outflow(upload, (item) => tell('put', item), isFull, failed)
      outflow.run().then((isDone) => isDone && tell('end', null), (cause) => controller.abort(cause))
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
      ...start(tell, peer),
    }
  }
  const end = () => {
    signal?.removeEventListener('abort', abort)
    outflow?.stop()
  }
  const result = make({ ...options, signal: controller.signal, extra: { ...extra, ...(onProgress && { p: 1 }), ...(upload && { up: 1 }) }, frames })
  result.then(end, end)
  return result
}

/** The items of a procedure that yields. The call is made when the first one is asked for. */
export class Stream {
  #inflow
  #begin
  #controller = new AbortController()

  constructor(make, rp, { signal, window = 32, timeout = 0, deadline = 0, ...options }, isFull, WseError) {
    const n = Math.max(1, Math.min(Math.floor(window), MOST)) || 1
    const leave = (code, details) => this.#controller.abort(new WseError(code, { rp, ...details }))
    const inflow = (this.#inflow = new Inflow(n, timeout, () => leave('wse.client.rp.timeout', { timeout })))
    const abort = () => {
      inflow.drop()
      this.#controller.abort(signal.reason)
    }
    const start = (tell, { window }) => {
      inflow.open((count) => tell('more', count), window)
      return { item: (item, data) => inflow.put(item, sizeOf(data)) || leave('wse.limit-exceeded') }
    }
    this.#begin = () => {
      this.#begin = () => {}
      if (signal?.aborted) abort()
      signal?.addEventListener('abort', abort)
      const end = (...errors) => {
        signal?.removeEventListener('abort', abort)
        inflow.end(...errors)
      }
      call(make, { ...options, timeout: deadline, signal: this.#controller.signal }, isFull, { n }, start).then(() => end(), end)
    }
  }

  next() {
    this.#begin()
    return this.#inflow.next()
  }

  return() {
    this.#begin = () => {}
    const closed = this.#inflow.return()
    this.#controller.abort()
    return closed
  }
}

// Calls of the server.

/** Answer a call with options. Resolves with the result, null for a stream; rejects with what the caller shall get. */
export const serve = async (fn, payload, context, running, { n, p, up }, tell, isFull, peer) => {
  const { signal } = context
  if (signal.aborted) return
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
  if (up) {
    const inflow = new Inflow(UPLOAD_WINDOW)
    inflow.open((count) => isOver || tell('want', count), peer?.window)
    signal.addEventListener('abort', () => inflow.end(signal.reason))
    running.put = (item, data) => {
      if (inflow.put(item, sizeOf(data))) return
      running.failed({ code: 'wse.limit-exceeded', details: {} })
      running.cancel()
    }
    running.end = () => inflow.end()
    context.items = inflow
    tell('want', UPLOAD_WINDOW)
  }
  try {
    const result = await fn(payload, context)
    if (!n) return result
    if (!isFunction(result?.next)) throw { code: 'wse.rp.not-a-stream', details: {} }
    const outflow = new Outflow(result, (item) => tell('item', item), isFull, running.failed)
    signal.addEventListener('abort', () => outflow.stop())
    if (signal.aborted) outflow.stop()
    running.more = (count) => outflow.grant(count)
    outflow.grant(n)
    await outflow.run()
    return null
  } finally {
    isOver = true
    clearTimeout(timer)
  }
}
