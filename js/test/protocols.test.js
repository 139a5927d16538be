// Message protocols, payloads, and peers that break the protocol.
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { WSE_ERROR, WSE_REASON, WseError, WseJSON, WseMsgpack } from '../wse.js'
import { codes, failure, fakeClient, readyClient, settled } from './support/fake.js'

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
