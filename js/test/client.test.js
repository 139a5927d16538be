// The client on fake sockets: what the vectors do not say.
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { WSE_ERROR, WSE_REASON, WSE_STATUS, WseClient, WseError, WseJSON, WseMsgpack } from '../wse.js'
import { FakeWebSocket, failure, fakeClient, readyClient, settled } from './support/fake.js'

const codes = (errors) => errors.map((error) => error.code)
const withTimers = (t) => t.mock.timers.enable({ apis: ['setTimeout'] })
const statuses = (events) => events.filter(([name]) => name === 'updated').map(([, status]) => status)

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
    assert.deepEqual(Socket.last.read(), [['~wse:hi', { identity: 'me', meta: { m: 1 }, ext: { auth: {} } }, null]])
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

describe('reconnecting', () => {
  test('waits grow to the cap, and start again when a connection has lasted', async (t) => {
    withTimers(t)
    const { client, Socket, socket, events, errors } = await readyClient({ re: true, backoff: { base: 1, cap: 5, random: () => 1 } })
    socket.gone(1006)
    for (const wait of [1, 2, 4, 5, 5]) {
      const before = Socket.all.length
      t.mock.timers.tick(wait * 1000 - 1)
      assert.equal(Socket.all.length, before)
      t.mock.timers.tick(1)
      assert.equal(Socket.all.length, before + 1)
      Socket.last.gone()
    }
    t.mock.timers.tick(5000)
    Socket.last.open()
    Socket.last.receive(['~wse:welcome', 2])
    assert.equal(client.status, 'READY')
    assert.deepEqual(codes(errors), Array(5).fill(WSE_ERROR.WS_CLIENT_ERROR))
    assert.deepEqual(statuses(events), ['OFFLINE', 'RE_CONNECTING', 'READY'])
    const comesBackAfter = (seconds) => {
      Socket.last.gone(1012)
      const before = Socket.all.length
      t.mock.timers.tick(seconds * 1000 - 1)
      assert.equal(Socket.all.length, before)
      t.mock.timers.tick(1)
      assert.equal(Socket.all.length, before + 1)
      Socket.last.open()
      Socket.last.receive(['~wse:welcome', 3])
    }
    t.mock.timers.tick(9_999)
    comesBackAfter(5)
    t.mock.timers.tick(10_000)
    comesBackAfter(1)
  })

  test('connect goes on until it succeeds', async (t) => {
    withTimers(t)
    const { client, Socket } = fakeClient({ re: true })
    const connecting = client.connect()
    Socket.last.gone()
    assert.equal((await failure(client.connect())).code, WSE_ERROR.CLIENT_ALREADY_CONNECTED)
    t.mock.timers.tick(1000)
    Socket.last.open()
    Socket.last.gone(1013)
    t.mock.timers.tick(2000)
    Socket.last.open()
    Socket.last.receive(['~wse:welcome', 'at last'])
    assert.equal(await connecting, 'at last')
  })

  test('a refusal in the background ends it, and is reported', async (t) => {
    withTimers(t)
    const { client, Socket, socket, errors } = await readyClient({ re: true })
    socket.gone(1006)
    t.mock.timers.tick(1000)
    Socket.last.open()
    Socket.last.gone(1000, WSE_REASON.NOT_AUTHORIZED)
    assert.equal(client.status, 'OFFLINE')
    assert.deepEqual(codes(errors), [WSE_ERROR.NOT_AUTHORIZED])
    t.mock.timers.tick(1e6)
    assert.equal(Socket.all.length, 2)
  })

  test('4000 is at once the first time, then it waits', async (t) => {
    withTimers(t)
    const { Socket, socket } = await readyClient()
    socket.gone(4000, 'jump')
    t.mock.timers.tick(1)
    assert.equal(Socket.all.length, 2)
    Socket.last.open()
    Socket.last.gone(4000, 'jump')
    t.mock.timers.tick(1)
    assert.equal(Socket.all.length, 2)
    t.mock.timers.tick(2000)
    assert.equal(Socket.all.length, 3)
  })

  test('close ends it', async (t) => {
    withTimers(t)
    const { client, Socket, socket, errors } = await readyClient({ re: true })
    socket.gone(1006)
    assert.equal(client.status, 'RE_CONNECTING')
    await client.close()
    assert.equal(client.status, 'OFFLINE')
    t.mock.timers.tick(1e6)
    assert.equal(Socket.all.length, 1)
    assert.deepEqual(errors, [])
  })

  for (const name of ['closed', 'updated']) {
    test(`a listener of ${name} that closes is obeyed`, async (t) => {
      withTimers(t)
      const { client, Socket, socket } = await readyClient({ re: true })
      client.when[name](() => void client.close())
      socket.gone(1006)
      t.mock.timers.tick(1e6)
      assert.deepEqual([client.status, Socket.all.length], ['OFFLINE', 1])
    })
  }

  test('a listener of closed that connects is obeyed', async (t) => {
    withTimers(t)
    const { client, Socket, socket } = await readyClient({ re: true })
    client.when.closed(() => void client.connect('other'))
    socket.gone(1006)
    t.mock.timers.tick(1e6)
    assert.equal(Socket.all.length, 2)
  })
})

describe('jump', () => {
  test('on an idle client it is connect', async () => {
    const { client, Socket, events } = fakeClient()
    const jumping = client.jump('ws://b', 'me')
    Socket.last.open()
    Socket.last.receive(['~wse:welcome', 1])
    assert.equal(await jumping, 1)
    assert.deepEqual(statuses(events), ['CONNECTING', 'READY'])
    assert.equal(Socket.last.url, 'ws://b')
  })

  test('it closes, connects and keeps who we are', async (t) => {
    withTimers(t)
    const { client, Socket, socket, events, errors } = await readyClient()
    const call = failure(client.call('slow'))
    const jumping = client.jump('ws://b')
    assert.deepEqual(socket.closed, [4000, 'jump'])
    assert.deepEqual((await call).details, { rp: 'slow', disconnected: [4000, 'jump'] })
    t.mock.timers.tick(1)
    Socket.last.open()
    Socket.last.receive(['~wse:welcome', 'b'])
    socket.gone(4000, 'jump')
    assert.equal(await jumping, 'b')
    assert.deepEqual(statuses(events), ['OFFLINE', 'RE_CONNECTING', 'READY'])
    assert.deepEqual([client.status, errors], ['READY', []])
  })

  test('one that fails fails, without reconnection', async (t) => {
    withTimers(t)
    const { client, Socket } = await readyClient()
    const jumping = failure(client.jump('ws://b'))
    t.mock.timers.tick(1)
    Socket.last.gone()
    assert.equal((await jumping).code, WSE_ERROR.WS_CLIENT_ERROR)
    assert.equal(client.status, 'OFFLINE')
  })

  test('while it waits to reconnect it goes at once', async (t) => {
    withTimers(t)
    const { client, Socket, socket } = await readyClient({ re: true })
    socket.gone(1006)
    client.jump('ws://b').catch(() => {})
    assert.deepEqual([Socket.all.length, Socket.last.url], [2, 'ws://b'])
    t.mock.timers.tick(1e4)
    assert.equal(Socket.all.length, 2)
  })
})

describe('closing', () => {
  test('an idle client stays idle', async () => {
    const { client } = fakeClient()
    await client.close()
    assert.equal(client.status, 'IDLE')
  })

  test('it ends at once, and resolves when the socket has closed', async () => {
    const { client, socket, take } = await readyClient()
    let done = false
    const closing = client.close('bye').then(() => (done = true))
    assert.deepEqual(socket.closed, [1000, 'bye'])
    assert.deepEqual(take(), [['closed', 1000, 'bye']])
    socket.receive(['chat', 1])
    await settled()
    assert.deepEqual([done, take()], [false, []])
    socket.gone(1000, 'bye')
    await closing
    assert.deepEqual(take(), [])
  })

  test('a reason that is too long changes nothing', async () => {
    const { client, socket } = await readyClient()
    assert.ok((await failure(client.close('ü'.repeat(62)))) instanceof RangeError)
    assert.deepEqual([client.status, socket.closed], ['READY', null])
  })

  test('before the welcome it fails the connect', async () => {
    const { client, Socket, errors } = fakeClient({ re: true })
    const connecting = failure(client.connect())
    Socket.last.open()
    void client.close()
    const error = await connecting
    assert.deepEqual([error.code, error.details], [WSE_ERROR.CONNECTION_CLOSED, { code: 1000, reason: WSE_REASON.BY_CLIENT }])
    Socket.last.receive(['~wse:welcome'])
    assert.deepEqual([client.status, errors], ['OFFLINE', []])
  })
})

describe('calls', () => {
  test('a timeout leaves nothing behind, and a late answer does nothing', async (t) => {
    withTimers(t)
    const { client, socket, errors } = await readyClient({ tO: 2 })
    const first = failure(client.call('a'))
    const second = failure(client.call('b', null, { tO: 5 }))
    t.mock.timers.tick(2000)
    assert.deepEqual((await first).details, { rp: 'a', timeout: 2 })
    t.mock.timers.tick(3000)
    assert.equal((await second).code, WSE_ERROR.RP_TIMEOUT)
    socket.receive(['~wse:response', 1, 1])
    socket.receive(['~wse:response', 1, 1])
    assert.deepEqual(errors, [])
  })

  test('one that cannot be encoded fails, and the next one works', async () => {
    const { client, socket } = await readyClient()
    const error = await failure(client.call('a', 1n))
    assert.deepEqual([error.code, error.details], [WSE_ERROR.RP_SEND_FAILED, { rp: 'a' }])
    assert.throws(() => client.send('a', 1n), { code: WSE_ERROR.MSG_PROCESSING_ERROR })
    assert.deepEqual(socket.read(), [])
  })

  test('an answer on another connection never settles a call', async (t) => {
    withTimers(t)
    const { client, Socket, socket } = await readyClient({ re: true })
    const lost = failure(client.call('a'))
    socket.gone(1006)
    assert.equal((await lost).code, WSE_ERROR.RP_DISCONNECT)
    t.mock.timers.tick(1000)
    Socket.last.open()
    Socket.last.receive(['~wse:welcome'])
    const call = client.call('b')
    assert.equal(Socket.last.read().at(-1)[2], 1)
    Socket.last.receive(['~wse:response', 'right', 1])
    assert.equal(await call, 'right')
  })

  test('async procedures answer when they are done, and not after the end', async () => {
    const { client, socket, errors } = await readyClient()
    const finish = []
    client.register('slow', (payload) => new Promise((resolve) => finish.push(() => resolve(payload))))
    socket.receive(['slow', 'a', 1])
    socket.receive(['slow', 'b', 2])
    finish[1]()
    await settled()
    assert.deepEqual(socket.read(), [['~wse:response', 'b', 2]])
    socket.gone(1006)
    finish[0]()
    await settled()
    assert.deepEqual([socket.read(), errors], [[], []])
  })

  test('what cannot be encoded is answered with an error', async () => {
    const { client, socket, errors } = await readyClient()
    client.register('big', () => 1n)
    client.register('later', async () => 1n)
    client.register('error', () => {
      throw new WseError('app', { big: 1n, small: 1 })
    })
    client.register('odd', () => {
      throw Object.create(null)
    })
    client.register('text', () => {
      throw 'oops'
    })
    for (const name of ['big', 'later', 'error', 'odd', 'text']) socket.receive([name, null, name])
    await settled()
    const answers = Object.fromEntries(socket.read().map(([, payload, stamp]) => [stamp, payload]))
    assert.equal(answers.big.details.origin.name, 'TypeError')
    assert.equal(answers.later.details.origin.name, 'TypeError')
    assert.deepEqual(answers.error, { code: 'app', details: { small: 1, rp: 'error', rpc: 'error' } })
    assert.equal(answers.odd.code, WSE_ERROR.RP_EXECUTION_FAILED)
    assert.deepEqual(answers.text.details.origin, { name: 'string', message: 'oops' })
    assert.deepEqual(codes(errors), Array(5).fill(WSE_ERROR.RP_EXECUTION_FAILED))
    assert.ok(errors.every((error) => error.details.rp && error.details.stamp))
  })

  test('stack traces travel in debug mode only', async () => {
    for (const debug of [true, false]) {
      const { client, socket } = await readyClient({ debug })
      client.register('fail', () => {
        throw new Error('x')
      })
      socket.receive(['fail', null, 1])
      assert.equal('stack' in socket.read()[0][1].details.origin, debug)
    }
  })

  test('registering', () => {
    const { client } = fakeClient()
    client.register('a', () => {})
    assert.throws(() => client.register('a', () => {}), { code: WSE_ERROR.RP_ALREADY_REGISTERED })
    client.unregister('a')
    assert.throws(() => client.unregister('a'), { code: WSE_ERROR.RP_NOT_REGISTERED })
    assert.throws(() => client.register('a', 5), TypeError)
    for (const type of [null, undefined, '', {}, [], '~wse:x']) {
      assert.throws(() => client.register(type, () => {}), { code: WSE_ERROR.PROTOCOL_VIOLATION })
    }
  })
})

describe('listeners', () => {
  test('on, once, off', async () => {
    const { client, socket, take } = await readyClient()
    const seen = []
    const fn = (payload) => seen.push(['on', payload])
    client.channel
      .on('a', fn)
      .once('a', (payload) => {
        seen.push(['once', payload])
        socket.receive(['a', 'inner'])
      })
      .on('a', () => client.channel.off('a', fn))
    socket.receive(['a', 1])
    socket.receive(['a', 2])
    assert.deepEqual(seen, [['on', 1], ['once', 1], ['on', 'inner']])
    client.channel.off('a')
    socket.receive(['a', 3])
    assert.deepEqual(take(), [['ignored', 'a', 3, null]])
    assert.throws(() => client.channel.on('a', null), TypeError)
  })

  test('a signal returns what unsubscribes', async () => {
    const { client, socket } = await readyClient()
    const seen = []
    const off = client.when.ignored((...args) => seen.push(args))
    socket.receive(['x', 1])
    off()
    socket.receive(['x', 2])
    assert.deepEqual(seen, [['x', 1, null]])
  })

  test('what they throw is reported, and the others are called', async () => {
    const { client, socket, errors } = await readyClient()
    const seen = []
    client.channel.on('a', () => {
      throw new Error('sync')
    })
    client.channel.on('a', async () => {
      throw new Error('async')
    })
    client.channel.on('a', (payload) => seen.push(payload))
    client.when.closed(() => {
      throw new Error('closed')
    })
    socket.receive(['a', 1])
    await settled()
    socket.gone(1000)
    assert.deepEqual(seen, [1])
    assert.deepEqual(codes(errors), Array(3).fill(WSE_ERROR.MSG_PROCESSING_ERROR))
    assert.deepEqual(errors.map((error) => error.cause.message), ['sync', 'async', 'closed'])
  })

  test('errors that nobody listens to, and those of error listeners, go to the console', async (t) => {
    const logged = t.mock.method(console, 'error', () => {})
    const client = new WseClient({ url: 'ws://x', WebSocket: FakeWebSocket })
    const fails = () => {
      client.connect().catch(() => {})
      FakeWebSocket.last.open()
      FakeWebSocket.last.receive('{')
    }
    fails()
    assert.equal(logged.mock.calls[0].arguments[0].code, WSE_ERROR.MSG_PROCESSING_ERROR)
    client.when.error(() => {
      throw new Error('again')
    })
    fails()
    assert.equal(logged.mock.calls[1].arguments[0].message, 'again')
  })

  test('not ready is thrown, and told nobody else', async (t) => {
    const logged = t.mock.method(console, 'error', () => {})
    const { client, errors } = fakeClient()
    assert.throws(() => client.send('a'), { code: WSE_ERROR.CLIENT_NOT_READY })
    assert.equal((await failure(client.call('a'))).details.status, 'IDLE')
    assert.deepEqual([errors, logged.mock.callCount()], [[], 0])
  })

  test('a socket that is closing is not ready', async () => {
    const { client, socket } = await readyClient()
    socket.readyState = 2
    assert.throws(() => client.send('a'), { code: WSE_ERROR.CLIENT_NOT_READY })
    assert.equal((await failure(client.call('a'))).code, WSE_ERROR.CLIENT_NOT_READY)
  })
})

describe('violations', () => {
  for (const message of [[['chat'], 1], [{ a: 1 }, 1, 's']]) {
    test(JSON.stringify(message), async () => {
      const { client, socket, errors } = await readyClient({ re: true })
      const call = failure(client.call('a'))
      socket.receive(message)
      assert.deepEqual(codes(errors), [WSE_ERROR.PROTOCOL_VIOLATION])
      assert.deepEqual(socket.closed, [1000, WSE_REASON.PROTOCOL_ERROR])
      assert.equal((await call).code, WSE_ERROR.RP_DISCONNECT)
      assert.equal(client.status, 'OFFLINE')
    })
  }

  test('a text message for MessagePack', async () => {
    const protocol = new WseMsgpack({ encode: (value) => new TextEncoder().encode(JSON.stringify(value)), decode: (data) => JSON.parse(new TextDecoder().decode(data)) })
    const { client, Socket, errors } = fakeClient({ protocol })
    const connecting = failure(client.connect())
    Socket.last.open()
    Socket.last.receive('["~wse:welcome"]')
    assert.equal((await connecting).code, WSE_ERROR.CONNECTION_CLOSED)
    assert.equal(errors[0].code, WSE_ERROR.MSG_PROCESSING_ERROR)
    assert.throws(() => new WseMsgpack({ encode() {} }), TypeError)
  })
})

test('a custom protocol with integer types', async () => {
  class Small extends WseJSON {
    name = 'small'
    internal_types = { hi: 1, challenge: 2, welcome: 3, call: 4, response: 5, response_error: 6 }
  }
  const { client, Socket } = fakeClient({ protocol: Small })
  const connecting = client.connect()
  Socket.last.open()
  assert.equal(Socket.last.protocol, 'small')
  assert.equal(Socket.last.read()[0][0], 1)
  Socket.last.receive([3, 'hello'])
  assert.equal(await connecting, 'hello')
  assert.throws(() => client.send(5), { code: WSE_ERROR.PROTOCOL_VIOLATION })
  const seen = []
  client.channel.on(0, (payload) => seen.push(payload))
  Socket.last.receive([0, 'zero'])
  const call = client.call(10)
  Socket.last.receive([5, 'answer', 1])
  assert.equal(await call, 'answer')
  assert.deepEqual(seen, ['zero'])
})

test('WseError', () => {
  assert.equal(new WseError('app.x').message, 'app.x')
  assert.deepEqual(new WseError('app.x', null).details, {})
  assert.equal(new WseError('app.x', { origin: { name: 'KeyError', message: 'k' } }).message, 'KeyError: k')
  const error = new WseError('app.x', { a: 1 }, 'text', 'why')
  assert.deepEqual([error.name, error.code, error.details, error.message, error.cause], ['WseError', 'app.x', { a: 1 }, 'text', 'why'])
})

describe('registrations', () => {
  test('one unsubscribe removes one registration', async () => {
    const { client, socket } = await readyClient()
    const seen = []
    const fn = (...args) => seen.push(args)
    const offs = [client.when.ignored(fn), client.when.ignored(fn), client.when.ignored(fn)]
    client.channel.on('a', fn).on('a', fn).once('a', fn)
    assert.equal(client.channel.listenerCount('a'), 3)
    offs[0]()
    offs[0]()
    client.when.ignored.off(fn)
    client.channel.off('a', fn)
    socket.receive(['x'])
    socket.receive(['a', 1])
    socket.receive(['a', 2])
    assert.deepEqual(seen, [['x', null, null], [1], [1], [2], [2]])
    offs[1]()
    offs[2]()
    client.channel.removeListener('a', fn).off('a', fn).off('a', fn)
    assert.equal(client.channel.listenerCount('a'), 0)
  })

  test('one that is removed during an emission is not called', async () => {
    const { client, socket, errors } = await readyClient()
    const seen = []
    const later = () => seen.push('later')
    client.channel.on('a', () => client.channel.off('a', later)).on('a', later)
    socket.receive(['a'])
    client.channel.on('b', () => client.channel.removeAll('b')).on('b', later)
    socket.receive(['b'])
    client.when.closed(() => off())
    const off = client.when.closed(later)
    socket.gone(1000)
    assert.deepEqual([seen, errors], [[], []])
  })

  test('all of a type, or all', () => {
    const { client } = fakeClient()
    const counts = () => ['a', 'b'].map((type) => client.channel.listenerCount(type))
    client.channel.on('a', () => {}).once('a', () => {}).on('b', () => {})
    assert.deepEqual(counts(), [2, 1])
    assert.deepEqual((client.channel.removeAll('a'), counts()), [0, 1])
    client.channel.on('a', () => {}).removeAllListeners()
    assert.deepEqual(counts(), [0, 0])
  })

  test('signals have once and wait', async () => {
    const { client, socket } = await readyClient()
    const seen = []
    client.when.ignored.once((...args) => seen.push(args))
    const waiting = client.when.ignored.wait(5)
    socket.receive(['x', 1])
    socket.receive(['x', 2])
    assert.deepEqual([seen, await waiting], [[['x', 1, null]], ['x', 1, null]])
  })
})

describe('what procedures throw', () => {
  const answerTo = async (thrown, payload = null) => {
    const { client, socket } = await readyClient()
    client.register('p', () => {
      throw thrown
    })
    socket.receive(['p', payload, 1])
    return socket.read()[0][1]
  }
  const names = { rp: 'p', rpc: 'p' }

  test('objects keep their code and details', async () => {
    const details = { why: 'closed' }
    class AppError extends Error {
      code = 'app.denied'
      details = details
    }
    for (const thrown of [{ code: 'app.denied', details }, new AppError('app.denied'), Object.assign(new Error(''), { code: 'app.denied', details })]) {
      assert.deepEqual(await answerTo(thrown), { code: 'app.denied', details: { ...details, ...names } })
    }
    assert.deepEqual(await answerTo({ code: 'app.denied' }), { code: 'app.denied', details: names })
    assert.deepEqual(await answerTo({ field: 'nope' }), { code: WSE_ERROR.RP_EXECUTION_FAILED, details: { field: 'nope', ...names } })
  })

  test('ordinary exceptions carry their text, and no code that the system gave them', async () => {
    const { code, message, details } = await answerTo(Object.assign(new RangeError('no such file'), { code: 'ENOENT' }))
    assert.deepEqual([code, message], [WSE_ERROR.RP_EXECUTION_FAILED, 'no such file'])
    assert.deepEqual(details, { ...names, origin: { name: 'RangeError', message: 'no such file' } })
  })

  test('the payload comes back if it is small', async () => {
    for (const [length, comes] of [[900, true], [1100, false]]) {
      const payload = 'ü'.repeat(length / 2)
      assert.equal('payload' in (await answerTo(new Error('x'), payload)).details, comes)
    }
  })

  test('an error answer keeps its details without a code', async () => {
    const { client, socket } = await readyClient()
    const call = failure(client.call('a'))
    socket.receive(['~wse:response-err', { message: 'text', details: { a: 1 } }, 1])
    const { code, details, message } = await call
    assert.deepEqual([code, details, message], [WSE_ERROR.RP_EXECUTION_FAILED, { a: 1 }, 'text'])
  })
})

describe('payloads that JSON would lose', () => {
  const lost = {
    ArrayBuffer: new ArrayBuffer(2),
    Uint8Array: new Uint8Array(2),
    Blob: new Blob(['a']),
    Map: new Map([[1, 2]]),
    Set: new Set([1]),
    Error: new Error('a'),
    WseError: new WseError('a'),
    Promise: Promise.resolve(1),
    function: () => {},
    NaN,
    Infinity,
    symbol: Symbol('a'),
    RegExp: /a/,
  }
  for (const [name, payload] of Object.entries(lost)) {
    test(`${name} raises as the payload itself`, async () => {
      const { client, socket } = await readyClient()
      assert.throws(() => client.send('a', payload), { code: WSE_ERROR.MSG_PROCESSING_ERROR })
      assert.equal((await failure(client.call('a', payload))).code, WSE_ERROR.RP_SEND_FAILED)
      client.register('p', () => [payload])
      assert.deepEqual(socket.read(), [])
      socket.receive(['p', null, 1])
      await settled()
      assert.deepEqual(socket.read(), [['~wse:response', JSON.parse(JSON.stringify([payload])), 1]])
    })
  }

  test('plain data, and what says itself how it is written, do not', async () => {
    const { client, socket } = await readyClient()
    class Point {
      x = 1
    }
    const good = [undefined, null, 0, '', false, [NaN], { a: undefined }, new Point(), Object.create(null), new Date(0), { toJSON: () => 'own' }, new URL('ws://x')]
    for (const payload of good) client.send('a', payload)
    assert.deepEqual(socket.read().map(([, payload]) => payload), good.map((payload) => JSON.parse(JSON.stringify(payload ?? null))))
  })
})

describe('protocols as the original documents them', () => {
  class Custom {
    constructor() {
      this.name = 'custom-protocol'
      this.internal_types = Object.freeze({ ...new WseJSON().internal_types })
    }
    pack({ type, payload = undefined, stamp = undefined }) {
      return JSON.stringify([type, payload, stamp])
    }
    unpack(encoded) {
      return JSON.parse(encoded)
    }
  }
  class Binary {
    constructor() {
      this.name = 'binary-protocol'
      this.internal_types = { hi: 1, challenge: 2, welcome: 3, call: 4, response: 5, response_error: 6 }
    }
    pack(message) {
      return Buffer.from(JSON.stringify(message))
    }
    unpack(buffer) {
      const { type, payload, stamp } = JSON.parse(buffer.toString('utf8'))
      return [type, payload, stamp]
    }
  }
  class Extended extends WseJSON {
    pack({ type, payload, stamp }) {
      return super.pack({ type, payload: { wrapped: payload }, stamp })
    }
    unpack(encoded) {
      const [type, payload, stamp] = super.unpack(encoded)
      return [type, payload?.wrapped, stamp]
    }
  }
  for (const Protocol of [Custom, Binary, Extended]) {
    test(Protocol.name, async () => {
      const protocol = new Protocol()
      const { client, Socket } = fakeClient({ protocol })
      const receive = (type, payload, stamp) => {
        const data = protocol.pack({ type, payload, stamp })
        Socket.last.receive(typeof data === 'string' ? data : Uint8Array.from(data).buffer)
      }
      const { welcome, response } = protocol.internal_types
      const connecting = client.connect('me')
      Socket.last.open()
      receive(welcome, 'hello')
      assert.equal(await connecting, 'hello')
      await settled()
      const seen = []
      client.channel.on('chat', (payload) => seen.push(payload))
      receive('chat', 'grüße')
      const call = client.call('add')
      receive(response, 3, 1)
      assert.deepEqual([await call, seen], [3, ['grüße']])
    })
  }
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

test("the names of the original's documentation", () => {
  assert.equal(WSE_ERROR.CONNECTION_NOT_READY, WSE_ERROR.CLIENT_NOT_READY)
  assert.equal(WSE_ERROR.NO_CLIENT_CONNECTION, WSE_ERROR.CONNECTION_MISSING)
  assert.equal(WSE_ERROR.MESSAGE_PROCESSING_ERROR, WSE_ERROR.MSG_PROCESSING_ERROR)
  assert.equal(WSE_REASON.PROTOCOL_ERR, WSE_REASON.PROTOCOL_ERROR)
})
