// Who a client says it is, and refusals.
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { WSE_ERROR, WSE_REASON } from '../wse.js'
import { failure, fakeClient, pass, settled, welcome, withTimers } from './support/fake.js'

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
    assert.deepEqual(Socket.last.read()[0][1].ext.auth, {})
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
    assert.deepEqual(Socket.last.read()[0][1].ext.limits, { message_size: 4096 })
    void client.close()
  })
})
