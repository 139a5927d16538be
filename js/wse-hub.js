// The hub of tabs that share a connection, see wse-share.js. MIT licence.

import { Ledger } from './wse-resume.js'

const JSON_PROTOCOL = {
  extensions: { ack: '~wse:ack', ask: '~wse:ask', gap: '~wse:gap' },
  pack: ({ type, payload, stamp }) => JSON.stringify([type, payload, stamp]),
  unpack: JSON.parse,
}
// The messages of a call that runs, beside its answer: from the side that answers, and from the one that has called.
const OF_ANSWER = ['~wse:item', '~wse:progress', '~wse:want']
const OF_CALL = ['~wse:more', '~wse:put', '~wse:end', '~wse:cancel']
const RESPONSES = ['~wse:response', '~wse:response-err']
// What may wait for a tab that has not come to the new hub yet.
const MOST_WAITING = 1000

/**
 * The connection of one user to one server, and the tabs that share it.
 *
 * A tab is `{ post(message) }`. It sends `{ open: [url, protocol], id, lock }`, `{ data, number }`, `{ welcome }` and `{ close:
 * [code, reason] }`, and gets `{ open: true, joined }`, `{ data, isResumed }`, `{ taken: number }` and `{ close: [code, reason] }`.
 */
export class Hub {
  // In the order in which they came; the first one that has not been welcomed shakes hands with the server.
  #tabs = new Set()
  #socket = /** @type {any} */ (null)
  #opener = /** @type {any} */ (null)
  #welcome = /** @type {any} */ (null)
  // The message that tells the tabs what the server has said about calls, if it has.
  #terms = ''
  #stamp = 0
  // By the stamp on the wire: the tab that called, and its stamp.
  #calls = new Map()
  // By the server's stamp: the tab that has been asked to answer its call, and those that are left.
  #asked = new Map()
  // Of a session that may move to another hub.
  #isMovable
  #ledger = /** @type {any} */ (null)
  #isClaimed = false
  #answer
  // Messages for tabs of the hub before that have not come yet, by tab.
  #absent = new Map()

  /** @param isMovable whether the session shall outlive this hub */
  constructor(isMovable = false) {
    this.#isMovable = isMovable
  }

  get isIdle() {
    return !this.#tabs.size
  }

  receive(tab, { open, id, data, number, welcome, close, lock }) {
    if (open) this.#join(tab, open, id, lock)
    else if (!this.#tabs.has(tab)) return
    else if (close) this.leave(tab, ...close)
    else if (welcome) this.#welcomed(welcome[0])
    else this.#send(tab, data, number)
  }

  leave(tab, code = 1000, reason = 'wse.by-client') {
    if (!this.#tabs.delete(tab)) return
    this.#forget(tab.id)
    const isSomebodyLeft = this.#tabs.size || this.#absent.size
    if (isSomebodyLeft && tab !== this.#opener) return
    if (isSomebodyLeft && this.#welcome) {
      this.#opener = null
      return
    }
    // Nobody is left, or the handshake has lost its tab and begins anew with the next one.
    const isOver = this.#welcome || tab.isReady
    this.#drop()?.close(code === 4000 ? 4000 : 1000, reason)
    if (isOver) this.#end()
    const [next] = this.#tabs
    if (next) this.#connect(next)
  }

  /** The page with that lock, in which this hub lives, ends. Returns what another hub needs to go on, or null. */
  handOver(lock) {
    for (const tab of [...this.#tabs]) if (tab.lock === lock) this.leave(tab)
    if (!this.#ledger || !this.#welcome) return null
    const present = [...this.#tabs].filter((tab) => tab.isReady).map(({ id, lock }) => ({ id, lock }))
    const absent = [...this.#absent].map(([id, { lock, messages }]) => ({ id, lock, messages }))
    const heritage = { session: this.#ledger.export(), stamp: this.#stamp, calls: [...this.#calls], asked: [...this.#asked], tabs: [...present, ...absent] }
    this.#drop()
    return heritage
  }

  /** Go on with the session of another hub. */
  inherit({ session, stamp, calls, asked, tabs }) {
    if (this.#ledger || this.#welcome) return
    this.#ledger = Ledger.from(session, JSON_PROTOCOL)
    this.#stamp = stamp
    this.#calls = new Map(calls)
    this.#asked = new Map(asked)
    for (const { id, lock, messages = [] } of tabs) {
      this.#absent.set(id, { lock, messages })
      if (lock) globalThis.navigator?.locks?.request(lock, () => this.#absent.delete(id) && this.#absentHasGone(id))
    }
  }

  #absentHasGone(id) {
    this.#forget(id)
    if (this.#tabs.size || this.#absent.size) return
    this.#drop()?.close(1000, 'wse.by-client')
    this.#end()
  }

  #join(tab, [url, protocol], id, lock) {
    Object.assign(tab, { url, protocol, id, lock, hello: null, isReady: false })
    this.#tabs.add(tab)
    // The lock is free when the tab has gone, however it went.
    if (lock) globalThis.navigator?.locks?.request(lock, () => this.leave(tab))
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
      if (tab.hello) this.#greet(tab)
    }
    socket.onmessage = ({ data }) => {
      if (!isOurs()) return
      try {
        this.#receive(data)
      } catch {
        socket.close(1000, 'wse.protocol-error')
      }
    }
    socket.onclose = ({ code, reason }) => {
      if (!isOurs()) return
      const wasReady = this.#opener?.isReady || this.#welcome
      this.#drop()
      if (wasReady) this.#end()
      const tabs = [...this.#tabs]
      this.#tabs.clear()
      for (const each of tabs) each.post({ close: [code, reason] })
    }
  }

  #greet({ hello }) {
    if (this.#isMovable) {
      const [type, payload, stamp] = JSON.parse(hello)
      this.#isClaimed = Boolean(this.#ledger)
      hello = JSON.stringify([type, { ...payload, ext: { ...payload.ext, resume: this.#ledger?.claim() ?? {} } }, stamp])
    }
    this.#socket.send(hello)
  }

  // Without the socket.
  #drop() {
    const socket = this.#socket
    this.#socket = this.#opener = this.#welcome = this.#answer = null
    this.#terms = ''
    this.#isClaimed = false
    this.#ledger?.detach(1006, '')
    return socket
  }

  // Without the session. Returns what it leaves.
  #end(lost = { why: 'ended' }) {
    this.#calls.clear()
    this.#asked.clear()
    this.#absent.clear()
    const ledger = this.#ledger
    this.#ledger = null
    return ledger?.end(lost, (type, payload) => this.#write(JSON.stringify([type, payload, null])))
  }

  #write(data) {
    if (this.#socket?.readyState === 1) (this.#ledger ?? this.#socket).send(data)
  }

  // From a tab.

  #send(tab, data, number) {
    if (!tab.hello) {
      tab.hello = data
      if (this.#welcome) this.#enter(tab, this.#welcome)
      else if (tab === this.#opener) this.#greet(tab)
      return
    }
    if (!tab.isReady) {
      if (tab === this.#opener) this.#socket.send(data)
      return
    }
    const [type, payload, stamp] = JSON.parse(data)
    if (number && this.#socket.readyState === 1) tab.post({ taken: number })
    if (!stamp) this.#write(data)
    else if (RESPONSES.includes(type)) this.#respond(tab, type, payload, stamp)
    else if (OF_ANSWER.includes(type)) {
      if (this.#asked.get(stamp)?.asked === tab.id) this.#write(data)
    } else if (OF_CALL.includes(type)) {
      for (const [number, call] of this.#calls) if (call.id === tab.id && call.stamp === stamp) this.#tell(type, payload, number)
    } else {
      this.#calls.set(++this.#stamp, { id: tab.id, stamp })
      this.#write(JSON.stringify([type, payload, this.#stamp]))
    }
  }

  // About a call of a tab.
  #tell(type, payload, number) {
    this.#write(JSON.stringify([type, payload, number]))
    if (type === '~wse:cancel') this.#calls.delete(number)
  }

  #respond(tab, type, payload, stamp) {
    const call = this.#asked.get(stamp)
    if (call?.asked !== tab.id) return
    const isMissing = type === '~wse:response-err' && payload.code === 'wse.server.rp.not-registered'
    if (isMissing && this.#ask(call)) return
    this.#asked.delete(stamp)
    this.#write(JSON.stringify([type, payload, stamp]))
  }

  // The tab is no more.
  #forget(id) {
    for (const [number, call] of this.#calls) {
      if (call.id !== id) continue
      if (this.#terms) this.#tell('~wse:cancel', null, number)
      else this.#calls.delete(number)
    }
    for (const [stamp, { asked, rp }] of this.#asked) {
      if (asked !== id) continue
      this.#asked.delete(stamp)
      this.#write(JSON.stringify(['~wse:response-err', { code: 'wse.client.rp.disconnect', details: { rp, rpc: rp } }, stamp]))
    }
  }

  // From the server.

  #receive(data) {
    const [type, payload, stamp] = JSON.parse(data)
    if (!this.#opener?.isReady && !this.#welcome) {
      if (type === '~wse:ext') {
        this.#answer = payload.resume // no affair of the tab's
        if (payload.calls) this.#terms = JSON.stringify([type, { calls: payload.calls }, null])
      }
      else if (type === '~wse:welcome') this.#accepted(data)
      else this.#opener.post({ data })
      return
    }
    if (this.#ledger?.receive(type, payload)) return
    const ready = [...this.#tabs].filter((tab) => tab.isReady).map((tab) => tab.id)
    const all = [...ready, ...this.#absent.keys()]
    if (!stamp) {
      // One identity answers for all.
      for (const id of type === '~wse:auth' ? ready.slice(0, 1) : all) this.#post(id, data)
    } else if (RESPONSES.includes(type) || OF_ANSWER.includes(type)) {
      const call = this.#calls.get(stamp)
      if (RESPONSES.includes(type)) this.#calls.delete(stamp)
      if (call) this.#post(call.id, JSON.stringify([type, payload, call.stamp]))
    } else if (OF_CALL.includes(type)) {
      const call = this.#asked.get(stamp)
      if (type === '~wse:cancel') this.#asked.delete(stamp)
      if (call) this.#post(call.asked, data)
    } else {
      const call = { rp: type === '~wse:call' ? payload[0] : type, data, left: all }
      this.#asked.set(stamp, call)
      this.#ask(call)
    }
  }

  // To a tab, now or when it comes. Returns whether there is such a tab.
  #post(id, data) {
    const absent = this.#absent.get(id)
    if (absent?.messages.push(data) > MOST_WAITING) this.#absent.delete(id)
    const tab = absent ? null : [...this.#tabs].find((tab) => tab.isReady && tab.id === id)
    tab?.post({ data })
    return Boolean(absent || tab)
  }

  // Each tab has procedures of its own, so one after the other is asked until one has it.
  #ask(call) {
    while (call.left.length) {
      call.asked = call.left.shift()
      if (this.#post(call.asked, call.data)) return true
    }
    return false
  }

  #accepted(data) {
    const answer = this.#isMovable && this.#answer
    if (this.#isClaimed && !this.#ledger.lost(answer)) this.#ledger.resume(answer, this.#socket)
    else {
      const loss = this.#end(answer?.lost)
      if (answer) this.#ledger = new Ledger(answer, this.#socket, {}, JSON_PROTOCOL)
      loss?.resend()
    }
    this.#enter(this.#opener, data)
  }

  #welcomed(payload) {
    this.#welcome = JSON.stringify(['~wse:welcome', payload, null])
    for (const tab of this.#tabs) if (tab.hello && !tab.isReady) this.#enter(tab, this.#welcome)
  }

  #enter(tab, welcome) {
    const absent = this.#absent.get(tab.id)
    this.#absent.delete(tab.id)
    tab.isReady = true
    if (this.#terms) tab.post({ data: this.#terms })
    tab.post({ data: welcome, isResumed: Boolean(absent) })
    for (const data of absent?.messages ?? []) tab.post({ data })
  }
}
