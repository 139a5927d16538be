// Rooms that a client enters, and presence in them: `new WseClient({ url, rooms: true })` of wse.js loads this. MIT licence.
//
// The server tells what the members of a room show: everything when the client enters, then what changes. After a reconnect with a
// new session, the client enters its rooms again, and shows its states again. The newest state is all that waits for a connection.

const isObject = (value) => typeof value === 'object' && value !== null
const isText = (value) => typeof value === 'string'
const isSame = (one, other) => JSON.stringify(one) === JSON.stringify(other)

// Why a call fails if the connection ends meanwhile: the next one tries again.
const isAway = (/** @type {any} */ { code }) => ['wse.client.rp.disconnect', 'wse.client.not-ready'].includes(code)

// `__proto__` is a user like any other.
const toObject = (states) => Object.fromEntries([...states].map(([user, devices]) => [user, Object.fromEntries(devices)]))

const put = (states, user, device, state) => {
  const devices = states.get(user) ?? new Map()
  states.set(user, devices.set(device, state))
}

class Room {
  #rooms
  #name
  #listeners
  #failed
  #states = new Map()
  #isIn = false
  // The server has been asked, and may let the client in later.
  #mayBeIn = false
  // To be entered again after a reconnect.
  #isWanted = false
  #joining = 0
  #turn = Promise.resolve()
  #hasPresence = true
  // What is shown, until when, and whether the server knows.
  #shown = /** @type {any} */ (null)

  /**
   * @param {Rooms} rooms all rooms of the client
   * @param {any} name
   * @param {any} listeners an emitter of our own
   * @param {any} failed takes the error of a listener
   */
  constructor(rooms, name, listeners, failed) {
    this.#rooms = rooms
    this.#name = name
    this.#listeners = listeners
    this.#failed = failed
    const on = (fn, once) => listeners.add('changed', fn, once)
    const changed = Object.assign((fn) => on(fn, false), {
      once: (fn) => on(fn, true),
      off: (fn) => listeners.off('changed', fn),
      wait: () => new Promise((resolve) => on(resolve, true)),
    })
    const getMembers = () => toObject(this.#states)
    /** What the application sees. */
    this.face = Object.freeze({
      name,
      join: () => this.join(),
      leave: () => this.#inTurn(() => this.#leave()),
      presence: Object.freeze({
        set: (state, { ttl = null } = /** @type {any} */ ({})) => this.#set(state, ttl),
        clear: () => this.#clear(),
        get members() {
          return getMembers()
        },
        get device() {
          return rooms.device
        },
        when: Object.freeze({ changed }),
      }),
    })
  }

  // Entering and leaving follow each other.
  #inTurn(fn) {
    const result = this.#turn.then(fn)
    this.#turn = result.catch(() => {})
    return result
  }

  async join() {
    this.#joining++
    try {
      await this.#inTurn(async () => {
        this.#mayBeIn = true
        try {
          this.#hasPresence = (await this.#rooms.call('join', this.#name)) !== false
        } catch (/** @type {any} */ error) {
          this.#mayBeIn = this.#isIn || error.code === 'wse.client.rp.timeout'
          throw error
        }
        this.#isWanted = this.#isIn = true
      })
    } finally {
      this.#joining--
    }
    this.#show()
  }

  async #leave() {
    const wasIn = this.#isIn || this.#mayBeIn
    this.#isIn = this.#mayBeIn = this.#isWanted = false
    this.#shown = null
    try {
      if (wasIn) await this.#rooms.call('leave', this.#name)
    } catch (error) {
      if (!isAway(error)) throw error
    } finally {
      // The server may have added it meanwhile.
      if (!this.#isIn) this.#take([], true)
    }
  }

  #set(state, ttl) {
    if (state === null || state === undefined) throw new TypeError('a state is not null: clear() takes it away')
    if (ttl !== null && !(Number.isFinite(ttl) && ttl > 0)) throw new RangeError('ttl is in seconds, more than 0')
    const details = { room: this.#name }
    if (!this.#isIn && !this.#isWanted && !this.#joining) throw this.#rooms.error('client.not-ready', details, 'the client is not in the room: join it first')
    if (!this.#hasPresence) throw this.#rooms.error('unsupported', details, 'the room has no presence')
    this.#rooms.checkSize(state)
    this.#shown = { state, until: ttl && Date.now() + ttl * 1000 }
    if (this.#isIn) this.#show()
  }

  #clear() {
    const wasShown = this.#shown
    this.#shown = wasShown && { state: null, until: null }
    if (wasShown && this.#isIn) this.#show()
  }

  // Tell what is shown, unless the server knows.
  #show() {
    const shown = this.#shown
    if (!shown || shown.isTold) return
    const ttl = shown.until && (shown.until - Date.now()) / 1000
    shown.isTold = (ttl !== null && ttl <= 0) || this.#rooms.tell(this.#name, shown.state, ttl)
  }

  /** The client is connected. A session that goes on knows what it has been told. */
  welcomed(isResumed) {
    if (isResumed) return this.#isIn && this.#show()
    if (this.#shown) this.#shown.isTold = false
    this.#isIn = this.#mayBeIn = false
    if (!this.#isWanted) return this.out()
    this.join().catch((error) => {
      if (isAway(error)) return
      this.out()
      this.#rooms.complain(error)
    })
  }

  /** The client is another user, who has shown nothing. */
  forget() {
    this.#shown = null
  }

  /** The client is not in the room, and does not enter it again by itself. */
  out() {
    this.#isIn = this.#mayBeIn = this.#isWanted = false
    this.#shown = null
    this.#take([], true)
  }

  told(entries, isWhole) {
    if (isWhole) this.#isIn = true
    if (this.#isIn) this.#take(entries, isWhole)
  }

  #take(entries, isWhole) {
    const changes = new Map()
    const states = this.#states
    const told = [...entries]
    if (isWhole) {
      const all = new Map()
      for (const [user, device] of entries) put(all, user, device, true)
      for (const [user, devices] of states) for (const device of devices.keys()) if (!all.get(user)?.has(device)) told.push([user, device, null])
    }
    for (const [user, device, state] of told) {
      if (isSame(states.get(user)?.get(device) ?? null, state)) continue
      put(changes, user, device, state)
      put(states, user, device, state)
      if (state === null) states.get(user).delete(device)
      if (!states.get(user).size) states.delete(user)
    }
    if (changes.size) this.#listeners.emit('changed', [toObject(changes)], this.#failed)
  }
}

export class Rooms {
  device = ''
  #client
  #inner
  #WseError
  #rooms = /** @type {Map<any, Room>} */ (new Map())
  #session = /** @type {any} */ (null)
  #identity = /** @type {any} */ (null)
  #size = Infinity
  // Whether the server knows rooms, and when that is known.
  #isKnown = true
  #answered = Promise.resolve()
  #answer = () => {}
  #reportError

  /**
   * @param {any} client gets the method `room`
   * @param {any} options
   * @param {any} messages the listeners of messages, whose class ours have
   * @param {any} emit
   * @param {any} failed makes what takes the error of a listener
   * @param {any} report takes an error that nobody awaits
   * @param {any} WseError the class of errors
   * @param {any} inner another module that hears of connections and messages
   */
  constructor(client, options, messages, emit, failed, report, WseError, inner) {
    this.#client = client
    this.#inner = inner
    this.#WseError = WseError
    this.#reportError = report
    client.room = (name) => {
      if (!this.#rooms.has(name)) this.#rooms.set(name, new Room(this, name, new messages.constructor(), failed('changed')))
      return this.#rooms.get(name)?.face
    }
    // A client that connects again is not offline by the end of this task.
    const ended = () => client.status === 'OFFLINE' && this.#each((room) => room.out())
    client.when.updated((status) => status === 'OFFLINE' && queueMicrotask(ended))
  }

  #each(fn) {
    for (const room of [...this.#rooms.values()]) fn(room)
  }

  complain(error) {
    this.#reportError(error)
  }

  error(code, details, message) {
    return new this.#WseError('wse.' + code, details, message)
  }

  checkSize(state) {
    const size = new TextEncoder().encode(JSON.stringify(state)).length
    if (size > this.#size) throw this.error('limit-exceeded', { limit: 'state_size', allowed: this.#size, size })
  }

  async call(what, name) {
    const client = this.#client
    if (client.status === 'READY') await this.#answered
    if (!this.#isKnown) throw this.error('unsupported', { extension: 'rooms' }, 'the server knows no rooms')
    return client.call(client.protocol.extensions[what], name, { own: true })
  }

  /** Tell the server what this device shows. Returns whether that was possible. */
  tell(name, state, ttl) {
    const { protocol } = this.#client
    const { ended, ledger, ws } = this.#session ?? {}
    if (!ws || ended || ws.readyState !== 1) return false
    const data = protocol.pack({ type: protocol.extensions.set, payload: [name, state, ttl], stamp: null })
    if (ledger) ledger.send(data)
    else ws.send(data)
    return true
  }

  // From connection to connection.

  offer(identity) {
    if (this.#identity && identity !== this.#identity[0]) this.#each((room) => room.forget())
    this.#identity = [identity]
    this.#session = null
    this.#answered = new Promise((resolve) => (this.#answer = () => resolve()))
    return { ...this.#inner?.offer(identity), ...(this.#client.protocol.extensions?.presence && { rooms: {} }) }
  }

  welcomed(session) {
    this.#inner?.welcomed(session)
    if (session.ended) return this.#answer()
    this.#session = session
    const { recovered } = this.#client
    if (!recovered) {
      const { device, state } = Object(session.answer?.rooms)
      this.#isKnown = session.answer?.rooms !== undefined && Boolean(this.#client.protocol.extensions?.presence)
      this.device = isText(device) ? device : ''
      this.#size = Number.isInteger(state) ? state : Infinity
    }
    this.#answer()
    this.#each((room) => room.welcomed(recovered))
  }

  /** A message has come. Returns whether it was one of presence; throws a RangeError for one that makes no sense. */
  receive(type, message) {
    if (this.#inner?.receive(type, message)) return true
    if (!this.#isKnown || type !== this.#client.protocol.extensions?.presence) return false
    const [name, entries, isWhole] = Array.isArray(message) ? message : []
    const isEntry = (entry) => Array.isArray(entry) && entry.length === 3 && (!isObject(entry[0]) || Array.isArray(entry[0])) && isText(entry[1])
    if (isObject(name) || name === undefined || !(entries === null || (Array.isArray(entries) && entries.every(isEntry)))) throw new RangeError('presence')
    this.#client.room(name)
    const room = this.#rooms.get(name)
    if (entries === null) room?.out()
    else room?.told(entries.map(([user, ...rest]) => [isObject(user) ? JSON.stringify(user) : user, ...rest]), Boolean(isWhole)) // a tuple in Python
    return true
  }

  bind(fn, args) {
    return this.#inner?.bind(fn, args)
  }

  get settle() {
    return this.#inner?.settle
  }

  /** The connection is about to end. */
  report() {
    this.#inner?.report()
  }
}
