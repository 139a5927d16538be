// Names that applications know.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { WSE_ERROR, WSE_REASON, WseClient, WseError } from '../wse.js'
import { FakeWebSocket, failure, welcome, withTimers } from './support/fake.js'

test('WseError', () => {
  assert.equal(new WseError('app.x').message, 'app.x')
  assert.deepEqual(new WseError('app.x', null).details, {})
  assert.equal(new WseError('app.x', { origin: { name: 'KeyError', message: 'k' } }).message, 'KeyError: k')
  const error = new WseError('app.x', { a: 1 }, 'text', 'why')
  assert.deepEqual([error.name, error.code, error.details, error.message, error.cause], ['WseError', 'app.x', { a: 1 }, 'text', 'why'])
})

test("the names of the original's documentation", () => {
  assert.equal(WSE_ERROR.CONNECTION_NOT_READY, WSE_ERROR.CLIENT_NOT_READY)
  assert.equal(WSE_ERROR.NO_CLIENT_CONNECTION, WSE_ERROR.CONNECTION_MISSING)
  assert.equal(WSE_ERROR.MESSAGE_PROCESSING_ERROR, WSE_ERROR.MSG_PROCESSING_ERROR)
  assert.equal(WSE_REASON.PROTOCOL_ERR, WSE_REASON.PROTOCOL_ERROR)
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
    assert.deepEqual((await calls[1]).details, { rp: 'b', timeout: 1, at: 'caller' })
    t.mock.timers.tick(1000)
    assert.equal((await calls[0]).details.timeout, 2)
    Socket.last.gone(1006)
    assert.equal(client.status, 'RE_CONNECTING')
    void client.close()
  }
})
