// Closing, by the client or by the server.
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { WSE_ERROR, WSE_REASON } from '../wse.js'
import { failure, fakeClient, readyClient, settled } from './support/fake.js'

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

  test('a client may connect while its socket still closes, and hears nothing of that one', async () => {
    const { client, socket, take, Socket, errors } = await readyClient()
    const closing = client.close()
    const connecting = client.connect('me')
    Socket.last.open()
    Socket.last.receive(['~wse:welcome', 'hello'])
    assert.equal(await connecting, 'hello')
    take()
    socket.receive(['chat', 1])
    socket.gone(1006)
    await closing
    await settled()
    assert.deepEqual([client.status, take(), errors, Socket.all.length], ['READY', [], [], 2])
    assert.equal(Socket.last.closed, null)
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
