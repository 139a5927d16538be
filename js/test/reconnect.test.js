// What happens after a lost connection, and when the client gives up.
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { WSE_ERROR, WSE_REASON, WseClient } from '../wse.js'
import { codes, failure, fakeClient, pass, readyClient, statuses, welcome, withTimers } from './support/fake.js'

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
