// Servers that are silent, and pages that come back.
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { WSE_ERROR } from '../wse.js'
import { failure, fakeClient, pass, readyClient, welcome, withTimers } from './support/fake.js'

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
