// How long a client holds on, and when it lets go: on fake sockets.
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { WSE_ERROR, WSE_REASON, WseClient, WseError } from '../wse.js'
import { FakeWebSocket, failure, fakeClient, readyClient, settled } from './support/fake.js'

const withTimers = (t) => t.mock.timers.enable({ apis: ['setTimeout'] })
const statuses = (events) => events.filter(([name]) => name === 'updated').map(([, status]) => status)
const welcome = (Socket, payload = null) => {
  Socket.last.open()
  Socket.last.receive(['~wse:welcome', payload])
}
const pass = async (t, seconds) => {
  t.mock.timers.tick(seconds * 1000)
  await settled()
}

describe('the rule of retries', () => {
  test('retry replaces it, but not for 4000', async (t) => {
    withTimers(t)
    const asked = []
    const retry = (code, reason) => asked.push([code, reason]) && code === 3001
    for (const [code, retried] of [[1006, false], [1000, false], [3001, true], [4000, true]]) {
      const { client, socket } = await readyClient({ re: true, retry })
      socket.gone(code, 'why')
      assert.equal(client.status, retried ? 'RE_CONNECTING' : 'OFFLINE', String(code))
      await client.close()
    }
    assert.deepEqual(asked, [[1006, 'why'], [1000, 'why'], [3001, 'why']])
  })

  test('retry is not asked after close, nor without reconnection', async () => {
    const retry = () => assert.fail('it was asked')
    const one = await readyClient({ re: true, retry })
    void one.client.close()
    one.socket.gone(1006)
    const other = await readyClient({ retry })
    other.socket.gone(1006)
    assert.deepEqual([one.client.status, other.client.status], ['OFFLINE', 'OFFLINE'])
  })

  test('if retry throws, that is reported and the rule holds', async () => {
    const { client, socket, errors } = await readyClient({
      re: true,
      retry: () => {
        throw new Error('oops')
      },
    })
    socket.gone(1001)
    assert.deepEqual([client.status, errors[0].cause.message], ['RE_CONNECTING', 'oops'])
    await client.close()
    assert.throws(() => new WseClient({ url: '', retry: true }), TypeError)
  })

  test('4000 after each welcome waits longer each time', async (t) => {
    withTimers(t)
    const { client, Socket } = await readyClient({ backoff: { base: 1, random: () => 1 } })
    Socket.last.gone(4000, 'jump')
    for (const wait of [0, 2, 4]) {
      const before = Socket.all.length
      if (wait) t.mock.timers.tick(wait * 1000 - 2)
      assert.equal(Socket.all.length, before)
      t.mock.timers.tick(2)
      assert.equal(Socket.all.length, before + 1)
      welcome(Socket)
      Socket.last.gone(4000, 'jump')
    }
    void client.close()
  })
})

describe('a silent server', () => {
  test('is asked after an interval without a message, and given up without an answer', async (t) => {
    withTimers(t)
    const { client, Socket, socket, events } = await readyClient({ re: true, heartbeat: { interval: 7, timeout: 3 } })
    const call = failure(client.call('slow', null, { timeout: 0 }))
    socket.read()
    await pass(t, 7)
    const [[type, payload, stamp]] = socket.read()
    assert.deepEqual([type, payload], ['~wse:ping', null])
    assert.ok(stamp, 'a call, which every server answers')
    await pass(t, 2.999)
    assert.equal(client.status, 'READY')
    await pass(t, 0.001)
    assert.deepEqual(events, [['updated', 'OFFLINE'], ['closed', 1006, ''], ['updated', 'RE_CONNECTING']])
    assert.deepEqual((await call).details.disconnected, [1006, ''])
    assert.ok(socket.closed, 'closing it was tried')
    socket.receive(['chat', 1])
    socket.gone(1000)
    assert.equal(events.length, 3)
    await pass(t, 1)
    assert.equal(Socket.all.length, 2)
    void client.close()
  })

  test('any message keeps it alive, the answer that there is no such procedure among them', async (t) => {
    withTimers(t)
    const { client, socket, errors, take } = await readyClient({ heartbeat: { interval: 7, timeout: 3 } })
    for (let round = 0; round < 3; round++) {
      await pass(t, 7)
      const [[type, , stamp]] = socket.read()
      await pass(t, 2)
      socket.receive(['~wse:response-err', { code: WSE_ERROR.RP_NOT_REGISTERED, details: { rp: type } }, stamp])
      await pass(t, 1)
    }
    await pass(t, 6)
    socket.receive(['chat', 1])
    await pass(t, 1)
    assert.deepEqual(socket.read(), [], 'it was heard within the interval')
    assert.deepEqual([client.status, errors, take().length], ['READY', [], 1])
  })

  test('is not asked with an interval of 0', async (t) => {
    withTimers(t)
    const { client, socket } = await readyClient({ heartbeat: { interval: 0 } })
    await pass(t, 1e6)
    assert.deepEqual([client.status, socket.read()], ['READY', []])
  })

  test('a protocol of integers asks for its reserved procedure', async (t) => {
    withTimers(t)
    const internal_types = { hi: 1, challenge: 2, welcome: 3, call: 4, response: 5, response_error: 6 }
    const protocol = { name: 'small', internal_types, pack: ({ type, payload, stamp }) => JSON.stringify([type, payload, stamp]), unpack: JSON.parse }
    const { client, Socket } = fakeClient({ protocol })
    const connecting = client.connect('me')
    Socket.last.open()
    assert.deepEqual(Socket.last.read(), [[1, { identity: 'me', meta: {} }, null]], 'and offers no extensions')
    Socket.last.receive([3])
    await connecting
    await pass(t, 20)
    assert.equal(Socket.last.read()[0][0], 4)
  })
})

describe('back online, or visible again', () => {
  const page = (t) => {
    const events = new EventTarget()
    const document = Object.assign(new EventTarget(), { hidden: false })
    const globals = { document, addEventListener: events.addEventListener.bind(events), removeEventListener: events.removeEventListener.bind(events) }
    Object.assign(globalThis, globals)
    t.after(() => Object.keys(globals).forEach((name) => delete globalThis[name]))
    return {
      document,
      fire: (type) => (type === 'visibilitychange' ? document : events).dispatchEvent(new Event(type)),
    }
  }

  for (const type of ['online', 'visibilitychange', 'pageshow']) {
    test(`${type}: a client that waits tries at once, and one that is READY asks`, async (t) => {
      withTimers(t)
      const { fire } = page(t)
      const { client, Socket, socket } = await readyClient({ re: true })
      fire(type)
      assert.equal(socket.read()[0][0], '~wse:ping')
      await pass(t, 5)
      assert.equal(client.status, 'RE_CONNECTING')
      fire(type)
      assert.equal(Socket.all.length, 2)
      fire(type)
      assert.equal(Socket.all.length, 2, 'an attempt goes on')
      welcome(Socket)
      void client.close()
      fire(type)
      await pass(t, 100)
      assert.deepEqual([client.status, Socket.all.length], ['OFFLINE', 2])
    })
  }

  test('becoming hidden is no reason', async (t) => {
    const { fire, document } = page(t)
    document.hidden = true
    const { client, socket } = await readyClient()
    fire('visibilitychange')
    assert.deepEqual(socket.read(), [])
    socket.gone(1000)
    assert.equal(client.status, 'OFFLINE')
  })
})

describe('deadlines', () => {
  for (const [step, reach] of Object.entries({
    'the identity': () => {},
    'the socket': (Socket, give) => give(),
    'the welcome': (Socket, give) => give() ?? Socket.last.open(),
    'the welcome after a quest': (Socket, give) => {
      give()
      Socket.last.open()
      Socket.last.receive(['~wse:challenge', 1])
    },
  })) {
    test(`one attempt's covers ${step}`, async (t) => {
      withTimers(t)
      const { client, Socket } = fakeClient({ timeout: 3 })
      let give
      const connecting = failure(client.connect({ then: (resolve) => (give = () => void resolve('me')) }))
      reach(Socket, () => give())
      await settled()
      await pass(t, 2.999)
      assert.equal(client.status, 'CONNECTING')
      await pass(t, 0.001)
      assert.ok((await connecting) instanceof WseError)
      assert.equal(client.status, 'OFFLINE')
    })
  }

  test('with reconnection the next attempt follows', async (t) => {
    withTimers(t)
    const { client, Socket } = fakeClient({ tO: 3, re: true })
    const connecting = client.connect()
    Socket.last.open()
    await pass(t, 3)
    await pass(t, 1)
    welcome(Socket, 'second')
    assert.equal(await connecting, 'second')
    await pass(t, 3)
    assert.equal(client.status, 'READY', 'the deadline has ended')
  })

  test('close resolves within 5 seconds', async (t) => {
    withTimers(t)
    const { client } = await readyClient()
    let done = false
    void client.close().then(() => (done = true))
    await pass(t, 4.999)
    assert.equal(done, false)
    await pass(t, 0.001)
    assert.equal(done, true)
  })
})

describe('an identity that is a function', () => {
  const identityOf = (Socket) => {
    Socket.last.open()
    return Socket.last.read()[0][1].identity
  }

  for (const [kind, wrap] of [['sync', (value) => value], ['async', async (value) => value]]) {
    test(`a ${kind} one is asked at every attempt`, async (t) => {
      withTimers(t)
      let count = 0
      const { client, Socket } = fakeClient({ re: true })
      void client.connect(() => wrap(`token-${++count}`))
      for (const expected of ['token-1', 'token-2', 'token-3']) {
        await settled()
        assert.equal(identityOf(Socket), expected)
        Socket.last.receive(['~wse:welcome'])
        Socket.last.gone(1006)
        t.mock.timers.tick(10_000)
      }
      void client.close()
    })
  }

  test('one that fails is retried like an unreachable server', async (t) => {
    withTimers(t)
    let count = 0
    const { client, Socket, errors } = fakeClient({ re: true })
    const connecting = client.connect(() => {
      count++
      if (count === 1) throw new Error('no network')
      return count === 2 ? Promise.reject(new Error('still none')) : 'token'
    })
    await pass(t, 1)
    await pass(t, 2)
    assert.equal(identityOf(Socket), 'token')
    Socket.last.receive(['~wse:welcome', 1])
    assert.equal(await connecting, 1)
    assert.deepEqual(errors.map(({ code, cause }) => [code, cause.message]), [[WSE_ERROR.WS_CLIENT_ERROR, 'no network'], [WSE_ERROR.WS_CLIENT_ERROR, 'still none']])
    const other = await failure(fakeClient().client.connect(() => Promise.reject(new Error('no'))))
    assert.deepEqual([other.code, other.cause.message], [WSE_ERROR.WS_CLIENT_ERROR, 'no'])
  })

  for (const re of [true, false]) {
    test(`a refusal is followed by one more attempt at once, ${re ? 'with' : 'without'} reconnection`, async (t) => {
      withTimers(t)
      let count = 0
      const { client, Socket } = fakeClient({ re })
      const connecting = failure(client.connect(() => ++count))
      assert.equal(identityOf(Socket), 1)
      Socket.last.gone(1000, WSE_REASON.NOT_AUTHORIZED)
      await pass(t, 0.001)
      assert.equal(identityOf(Socket), 2)
      Socket.last.gone(1000, WSE_REASON.NOT_AUTHORIZED)
      await pass(t, 100)
      assert.equal(Socket.all.length, 2)
      assert.equal((await connecting).code, WSE_ERROR.NOT_AUTHORIZED)
    })
  }

  test('an attempt that was given up does not go on when the identity comes', async () => {
    const { client, Socket } = fakeClient()
    let give
    const connecting = failure(client.connect(() => new Promise((resolve) => (give = resolve))))
    await client.close()
    give('late')
    await settled()
    assert.equal((await connecting).code, WSE_ERROR.CONNECTION_CLOSED)
    assert.deepEqual(Socket.all, [])
  })

  test('the server may ask for a fresh one in between', async () => {
    let count = 0
    const { client, Socket, errors, take } = fakeClient()
    void client.connect(async () => {
      if (++count === 3) throw new Error('no')
      return `token-${count}`
    })
    await settled()
    welcome(Socket)
    await settled()
    Socket.last.read()
    take()
    for (let round = 0; round < 2; round++) Socket.last.receive(['~wse:auth', null, null])
    await settled()
    assert.deepEqual(Socket.last.read(), [['~wse:auth', 'token-2', null]])
    assert.deepEqual([errors.map(({ cause }) => cause.message), take(), client.status], [['no'], [], 'READY'])
  })

  test('a plain identity is sent again then, and credentials are not', async () => {
    const scram = { start: () => 1, respond: async () => 2, finish: (welcome) => welcome }
    for (const [identity, sent] of [['me', [['~wse:auth', 'me', null]]], [scram, []]]) {
      const { client, Socket } = fakeClient()
      void client.connect(identity)
      welcome(Socket)
      await settled()
      Socket.last.read()
      Socket.last.receive(['~wse:auth', null, null])
      await settled()
      assert.deepEqual(Socket.last.read(), sent)
    }
  })
})

describe('refusals with a reason', () => {
  test('the reason arrives, and whether it may be tried again', async () => {
    const { client, Socket, events } = fakeClient({ re: true })
    const connecting = failure(client.connect('me'))
    Socket.last.open()
    assert.deepEqual(Socket.last.read()[0][1].ext, { auth: {} })
    Socket.last.receive(['~wse:refused', { reason: 'banned', retry: false }])
    Socket.last.gone(1000, WSE_REASON.NOT_AUTHORIZED)
    const { code, details } = await connecting
    assert.deepEqual([code, details], [WSE_ERROR.NOT_AUTHORIZED, { code: 1000, reason: 'banned', retry: false }])
    assert.deepEqual(events.at(-1), ['closed', 1000, WSE_REASON.NOT_AUTHORIZED])
    assert.equal(client.status, 'OFFLINE')
  })

  test('retry lets a reconnecting client go on, and no other', async (t) => {
    withTimers(t)
    for (const re of [true, false]) {
      const { client, Socket } = fakeClient({ re })
      const connecting = client.connect('me').catch((error) => error.details)
      for (let round = 0; round < 3; round++) {
        Socket.last.open()
        Socket.last.receive(['~wse:refused', { reason: 'later', retry: true }])
        Socket.last.gone(1000, WSE_REASON.NOT_AUTHORIZED)
        if (!re) break
        await pass(t, 4)
      }
      if (re) welcome(Socket, 'in')
      assert.deepEqual(await connecting, re ? 'in' : { code: 1000, reason: 'later', retry: true })
      void client.close()
    }
  })

  test('limits are announced where they are set', () => {
    const { client, Socket } = fakeClient({ messageSize: 4096 })
    client.connect().catch(() => {})
    Socket.last.open()
    assert.deepEqual(Socket.last.read()[0][1].ext, { auth: {}, limits: { message_size: 4096 } })
    void client.close()
  })
})

describe('giving up', () => {
  for (const [what, end] of Object.entries({
    'a lost connection without reconnection': async () => {
      const all = await readyClient()
      all.socket.gone(1006)
      return [all, WSE_ERROR.CONNECTION_CLOSED]
    },
    'a final close': async () => {
      const all = await readyClient({ re: true })
      all.socket.gone(1000, WSE_REASON.BY_SERVER)
      return [all, WSE_ERROR.CONNECTION_CLOSED]
    },
    'a refusal': async () => {
      const all = fakeClient({ re: true })
      all.client.connect().catch(() => {})
      all.Socket.last.open()
      all.Socket.last.gone(1000, WSE_REASON.NOT_AUTHORIZED)
      return [all, WSE_ERROR.NOT_AUTHORIZED]
    },
    'no server': async () => {
      const all = fakeClient()
      all.client.connect().catch(() => {})
      all.Socket.last.gone()
      return [all, WSE_ERROR.WS_CLIENT_ERROR]
    },
  })) {
    test(`${what} is told, and ends every wait`, async () => {
      const told = []
      const [{ client }, code] = await end()
      client.when.gaveUp((error) => told.push(error))
      assert.deepEqual([client.status, client.gaveUp.code], ['OFFLINE', code])
      assert.deepEqual([await failure(client.waitReady()), await client.waitClosed(), ...told], Array(3).fill(client.gaveUp))
    })
  }

  test('it is told once, after the rest', async () => {
    const { client, socket, events } = await readyClient()
    client.when.gave_up((error) => events.push(['gaveUp', error.details]))
    const ended = client.waitClosed()
    const ready = failure(client.when.gaveUp.wait().then(() => client.waitReady()))
    socket.gone(1008, 'no')
    assert.deepEqual(events, [['updated', 'OFFLINE'], ['closed', 1008, 'no'], ['gaveUp', { code: 1008, reason: 'no' }]])
    assert.equal(await ended, client.gaveUp)
    assert.equal(await ready, client.gaveUp)
  })

  test('not after close, and no more after the next connect', async () => {
    const { client, Socket, socket } = await readyClient({ re: true })
    const told = []
    client.when.gaveUp((error) => told.push(error))
    const ended = client.waitClosed()
    void client.close()
    socket.gone(1000)
    assert.deepEqual([await ended, client.gaveUp, told], [null, null, []])
    assert.equal((await failure(client.waitReady())).code, WSE_ERROR.CLIENT_NOT_READY)
    client.connect().catch(() => {})
    Socket.last.open()
    const ready = failure(client.waitReady())
    Socket.last.gone(1002)
    assert.deepEqual([told, await ready], [[client.gaveUp], client.gaveUp])
    void client.connect()
    assert.equal(client.gaveUp, null)
    welcome(Socket)
  })

  test('attempts that fail do not flicker', async (t) => {
    withTimers(t)
    const { client, Socket, events } = fakeClient({ re: true })
    void client.connect()
    for (const wait of [1, 2, 4]) {
      Socket.last.gone()
      await pass(t, wait)
    }
    welcome(Socket)
    Socket.last.gone(1006)
    for (let round = 0; round < 4; round++) {
      await pass(t, 30)
      Socket.last.gone()
    }
    await pass(t, 30)
    welcome(Socket)
    assert.deepEqual(statuses(events), ['CONNECTING', 'RE_CONNECTING', 'READY', 'OFFLINE', 'RE_CONNECTING', 'READY'])
    void client.close()
  })

  test('waits end in time, too', async (t) => {
    withTimers(t)
    const { client } = fakeClient()
    const waits = [client.waitReady(2), client.when.closed.wait(2)].map(failure)
    t.mock.timers.tick(2000)
    for (const error of await Promise.all(waits)) assert.equal(error.name, 'TimeoutError')
    assert.equal(await client.waitClosed(), null, 'an idle client is closed')
  })
})

describe('the welcome', () => {
  test('messages right behind it are delivered to who awaits connect, in order, and before the close', async () => {
    const { client, Socket, take } = fakeClient()
    const connecting = client.connect()
    welcome(Socket, 'hello')
    for (const number of [1, 2, 3]) Socket.last.receive(['n', number])
    Socket.last.receive(['echo', 4, 's'])
    Socket.last.gone(1012, 'restart')
    await connecting
    const heard = []
    client.channel.on('n', (number) => heard.push(number))
    client.register('echo', (payload) => heard.push(payload))
    client.when.closed((code) => heard.push(code))
    await settled()
    assert.deepEqual(heard, [1, 2, 3, 4, 1012])
    assert.deepEqual(take(), [['connected'], ['ready', 'hello'], ['closed', 1012, 'restart']])
  })

  test('nothing fires after close', async () => {
    const { client, Socket, events, errors } = fakeClient({ re: true })
    void client.connect()
    welcome(Socket)
    Socket.last.receive(['n', 1])
    void client.close()
    events.length = 0
    Socket.last.receive(['n', 2])
    Socket.last.receive('{')
    Socket.last.gone(1006)
    await settled()
    assert.deepEqual([events, errors], [[], []])
  })

  test('a listener of updated that closes is obeyed', async () => {
    const { client, Socket, take } = fakeClient()
    client.when.updated((status) => status === 'READY' && void client.close())
    void client.connect()
    welcome(Socket)
    assert.deepEqual(take(), [['connected'], ['closed', 1000, WSE_REASON.BY_CLIENT]])
  })

  test('a ready listener added while away waits for the next one', async (t) => {
    withTimers(t)
    const { client, Socket, socket } = await readyClient({ re: true }, 'first')
    const seen = []
    client.when.ready.once((payload) => seen.push(payload))
    socket.gone(1006)
    client.when.ready((payload) => seen.push(payload))
    const waits = [client.when.ready.wait(), client.waitReady()]
    assert.deepEqual(seen, ['first'])
    await pass(t, 1)
    welcome(Socket, 'second')
    assert.deepEqual(seen, ['first', 'second'])
    assert.deepEqual(await Promise.all(waits), [['second'], 'second'])
    assert.deepEqual(await Promise.all([client.when.ready.wait(), client.waitReady()]), [['second'], 'second'])
    void client.close()
  })

  test("another identity's is never replayed", async () => {
    const { client, Socket } = await readyClient({}, 'for ada')
    const seen = []
    void client.close()
    client.when.ready((payload) => seen.push(payload))
    void client.connect('grace')
    client.when.ready((payload) => seen.push(payload))
    assert.deepEqual(seen, [])
    welcome(Socket, 'for grace')
    assert.deepEqual(seen, ['for grace', 'for grace'])
  })

  test('a listener that is added between READY and ready hears it once', async () => {
    const { client, Socket } = fakeClient()
    const seen = []
    client.when.updated((status) => status === 'READY' && client.when.ready((payload) => seen.push(payload)))
    void client.connect()
    welcome(Socket, 1)
    assert.deepEqual(seen, [1])
  })

  test('a late updated listener gets the present status, but not the first one', async () => {
    const seen = []
    const { client } = fakeClient()
    client.when.updated((status) => seen.push(status))
    const ready = await readyClient()
    ready.client.when.updated((status) => seen.push(status))
    ready.client.when.updated.once((status) => seen.push(status))
    void ready.client.close()
    assert.deepEqual(seen, ['READY', 'READY', 'OFFLINE'])
  })
})

describe('the reason given to close', () => {
  test('is the one that arrives, also while connecting', async () => {
    for (const isOpen of [true, false]) {
      const { client, Socket, take } = fakeClient()
      const connecting = failure(client.connect())
      if (isOpen) Socket.last.open()
      void client.close('tired')
      assert.deepEqual(Socket.last.closed, [1000, 'tired'])
      assert.deepEqual((await connecting).details, { code: 1000, reason: 'tired' })
      assert.deepEqual(take(), isOpen ? [['connected'], ['closed', 1000, 'tired']] : [])
    }
  })
})

test('the first clients-concurrency says what to set', async (t) => {
  const warned = t.mock.method(console, 'warn', () => {})
  for (let round = 0; round < 2; round++) (await readyClient()).socket.gone(1000, WSE_REASON.CLIENTS_CONCURRENCY)
  assert.equal(warned.mock.callCount(), 1)
  assert.match(warned.mock.calls[0].arguments[0], /conns_per_user.*share: true/)
})

test('timeout and reconnect stand beside tO and re', async (t) => {
  withTimers(t)
  class Socket extends FakeWebSocket {
    static all = []
  }
  for (const [options, call] of [[{ tO: 2, re: true }, { tO: 1 }], [{ timeout: 2, reconnect: true }, { timeout: 1 }]]) {
    const client = new WseClient({ url: 'ws://x', WebSocket: Socket, ...options })
    void client.connect()
    welcome(Socket)
    const calls = [client.call('a'), client.call('b', 1, call)].map(failure)
    t.mock.timers.tick(1000)
    assert.deepEqual((await calls[1]).details, { rp: 'b', timeout: 1 })
    t.mock.timers.tick(1000)
    assert.equal((await calls[0]).details.timeout, 2)
    Socket.last.gone(1006)
    assert.equal(client.status, 'RE_CONNECTING')
    void client.close()
  }
})
