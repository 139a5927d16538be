// Connecting, until the welcome: on fake sockets, what the vectors do not say.
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { WSE_ERROR, WSE_REASON, WSE_STATUS, WseClient, WseError } from '../wse.js'
import { FakeWebSocket, failure, fakeClient, pass, readyClient, settled, welcome, withTimers } from './support/fake.js'

describe('connecting', () => {
  test('without a WebSocket class everything works until connect', async (t) => {
    const original = globalThis.WebSocket
    t.after(() => (globalThis.WebSocket = original))
    globalThis.WebSocket = undefined
    const client = new WseClient({ url: 'ws://x', re: true })
    client.channel.on('chat', () => {})
    assert.equal(client.status, WSE_STATUS.IDLE)
    const error = await failure(client.connect())
    assert.equal(error.code, WSE_ERROR.WS_CLIENT_ERROR)
    assert.match(error.cause.message, /WebSocket/)
    globalThis.WebSocket = FakeWebSocket // the global one of now, not of then
    void client.connect()
    FakeWebSocket.last.open()
    FakeWebSocket.last.receive(['~wse:welcome'])
    assert.equal(client.status, WSE_STATUS.READY)
    FakeWebSocket.last.gone(1000)
  })

  test('the status walks, and is new before updated fires', async () => {
    const { client, Socket, events } = fakeClient()
    const seen = []
    client.when.updated((status) => seen.push(status === client.status))
    const connecting = client.connect('me', { m: 1 })
    assert.equal(Socket.last.protocol, 'wse-default-json')
    assert.equal(Socket.last.binaryType, 'arraybuffer')
    Socket.last.open()
    assert.deepEqual(Socket.last.read(), [['~wse:hi', { identity: 'me', meta: { m: 1 }, ext: { auth: {}, calls: { timeout: 20 } } }, null]])
    Socket.last.receive(['~wse:welcome', 5])
    assert.equal(await connecting, 5)
    Socket.last.gone(1000, 'bye')
    assert.deepEqual(events, [
      ['updated', 'CONNECTING'],
      ['connected'],
      ['updated', 'READY'],
      ['ready', 5],
      ['updated', 'OFFLINE'],
      ['closed', 1000, 'bye'],
    ])
    assert.deepEqual(seen, [true, true, true])
  })

  test('what is not given is as before, but a new identity brings its own meta', async () => {
    const { client, Socket } = fakeClient()
    const hello = async (...args) => {
      const connecting = client.connect(...args)
      Socket.last.open()
      Socket.last.receive(['~wse:welcome'])
      await connecting
      Socket.last.gone(1000)
      const { identity, meta } = Socket.last.read()[0][1]
      return { identity, meta }
    }
    assert.deepEqual(await hello(), { identity: '', meta: {} })
    assert.deepEqual(await hello('a', { b: 1 }), { identity: 'a', meta: { b: 1 } })
    assert.deepEqual(await hello(), { identity: 'a', meta: { b: 1 } })
    assert.deepEqual(await hello('c'), { identity: 'c', meta: {} })
    assert.deepEqual(await hello(undefined, { d: 1 }), { identity: 'c', meta: { d: 1 } })
    for (const meta of [null, 0, '', false]) assert.deepEqual(await hello(null, meta), { identity: null, meta: {} })
  })

  test('connecting twice', async () => {
    const { client, Socket } = fakeClient()
    const first = client.connect()
    assert.equal((await failure(client.connect())).code, WSE_ERROR.CLIENT_ALREADY_CONNECTED)
    assert.equal((await failure(client.jump('ws://b'))).code, WSE_ERROR.CLIENT_ALREADY_CONNECTED)
    Socket.last.open()
    Socket.last.receive(['~wse:welcome'])
    await first
    assert.equal((await failure(client.connect())).code, WSE_ERROR.CLIENT_ALREADY_CONNECTED)
    assert.equal(client.url, 'ws://server.test')
  })

  test('a URL that is none, and an identity that cannot be encoded, are not tried again', async () => {
    const { client, errors } = fakeClient({ url: 'bad:', re: true })
    const error = await failure(client.connect())
    assert.equal(error.code, WSE_ERROR.WS_CLIENT_ERROR)
    assert.ok(error.cause instanceof SyntaxError)
    assert.equal(client.status, 'OFFLINE')
    assert.equal((await failure(client.connect(1n))).code, WSE_ERROR.MSG_PROCESSING_ERROR)
    assert.deepEqual(errors, [])
  })

  test('a socket that does not open in time', async (t) => {
    withTimers(t)
    const { client, Socket, take } = fakeClient({ tO: 3 })
    const connecting = failure(client.connect())
    t.mock.timers.tick(3000)
    assert.equal((await connecting).code, WSE_ERROR.WS_CLIENT_ERROR)
    assert.ok(Socket.last.closed)
    Socket.last.gone()
    assert.deepEqual(take(), [])
  })

  test('a socket that tells an error inside of close, as in Node 22', async () => {
    class Telling extends FakeWebSocket {
      static all = []
      close(...args) {
        super.close(...args)
        this.onerror({ type: 'error' })
      }
    }
    const { client, errors, take } = fakeClient({ WebSocket: Telling })
    const failing = failure(client.connect())
    Telling.last.onerror({ type: 'error' })
    assert.equal((await failing).code, WSE_ERROR.WS_CLIENT_ERROR)
    const closing = failure(client.connect())
    await client.close()
    assert.equal((await closing).code, WSE_ERROR.CONNECTION_CLOSED)
    assert.deepEqual([client.status, errors, take()], ['OFFLINE', [], []])
  })

  test('with tO of 0 it waits for ever', async (t) => {
    withTimers(t)
    const { client } = fakeClient({ tO: 0 })
    const connecting = failure(client.connect())
    t.mock.timers.tick(1e9)
    assert.equal(client.status, 'CONNECTING')
    void client.close()
    assert.equal((await connecting).code, WSE_ERROR.CONNECTION_CLOSED)
  })

  test('a late ready listener gets the last welcome', async () => {
    const { client } = await readyClient({}, { hello: 1 })
    const seen = []
    client.when.ready((welcome) => seen.push(welcome))
    assert.deepEqual(seen, [{ hello: 1 }])
  })

  test('solving twice sends once, and late solving nothing', async () => {
    const { client, Socket } = fakeClient()
    let solve
    client.challenge((quest, solver) => (solve = solver))
    const connecting = failure(client.connect())
    Socket.last.open()
    Socket.last.read()
    Socket.last.receive(['~wse:challenge', 1])
    solve('a')
    solve('b')
    assert.deepEqual(Socket.last.read(), [['~wse:challenge', 'a', null]])
    Socket.last.gone(1000)
    await connecting
    solve('c')
    assert.throws(() => client.challenge(5), { code: WSE_ERROR.INVALID_CRA_HANDLER })
  })

  test('an async challenge handler that fails', async () => {
    const { client, Socket } = fakeClient()
    client.challenge(async () => {
      throw new Error('no')
    })
    const connecting = failure(client.connect())
    Socket.last.open()
    Socket.last.receive(['~wse:challenge', 1])
    const error = await connecting
    assert.deepEqual([error.code, error.cause.message], [WSE_ERROR.INVALID_CRA_HANDLER, 'no'])
    assert.deepEqual(Socket.last.closed, [1000, WSE_REASON.BY_CLIENT])
  })
})

test('a challenge of no function is a WseError and a TypeError', () => {
  const { client } = fakeClient()
  for (const handler of [undefined, null, 5, {}]) {
    try {
      client.challenge(handler)
      assert.fail('it was taken')
    } catch (error) {
      assert.deepEqual([error instanceof WseError, error instanceof TypeError, error.code, error.name], [true, true, WSE_ERROR.INVALID_CRA_HANDLER, 'WseError'])
    }
  }
  class AppError extends WseError {}
  assert.ok(new AppError('a') instanceof WseError)
  assert.ok(!(new WseError('a') instanceof AppError) && !(new TypeError('a') instanceof WseError))
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
