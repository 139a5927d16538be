// Rooms that a client enters, and presence in them, against the real Python server.
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import * as msgpack from '@msgpack/msgpack'
import * as ws from 'ws'
import { WSE_ERROR, WseClient, WseMsgpack } from '../wse.js'
import { breakingProxy } from './support/proxy.js'
import { startServers } from './support/server.js'

// Node 22 has its own; here and there an application passes one.
const WebSocket = globalThis.WebSocket ?? ws.WebSocket

let servers
before(async () => (servers = await startServers()))
after(() => servers.stop())

/** A client of that user that is connected, and what it sees of the room, without the names of devices. */
const connect = async (t, user, options = {}, url = servers.rooms) => {
  const client = new WseClient({ url, WebSocket, rooms: true, backoff: { base: 0.01, cap: 0.05 }, ...options })
  t.after(() => client.close())
  client.when.error(() => {}) // attempts that will be repeated
  await client.connect(user)
  const room = client.room('doc')
  const states = () => Object.fromEntries(Object.entries(room.presence.members).map(([name, devices]) => [name, Object.values(devices).sort()]))
  const sees = async (expected) => {
    for (;;) {
      const changed = room.presence.when.changed.wait()
      try {
        return assert.deepEqual(states(), expected)
      } catch (error) {
        await Promise.race([changed, new Promise((_, reject) => setTimeout(() => reject(error), 10_000).unref())])
      }
    }
  }
  return { client, room, states, sees }
}

const member = async (t, user, options, url) => {
  const one = await connect(t, user, options, url)
  await one.room.join()
  return one
}

test('members see what others show, and that they leave', async (t) => {
  const ann = await member(t, 'ann')
  ann.room.presence.set({ cursor: [3, 9] })
  await ann.sees({ ann: [{ cursor: [3, 9] }] })
  const bob = await member(t, 'bob', { protocol: new WseMsgpack(msgpack) })
  assert.deepEqual(bob.room.presence.members, { ann: { [ann.room.presence.device]: { cursor: [3, 9] } } }) // when `join` returns
  const told = []
  const off = bob.room.presence.when.changed((changes) => told.push(changes))
  ann.room.presence.set('there')
  await bob.sees({ ann: ['there'] })
  assert.deepEqual(told, [{ ann: { [ann.room.presence.device]: 'there' } }])
  off()
  bob.room.presence.set('typing', { ttl: 0.1 })
  await ann.sees({ ann: ['there'], bob: ['typing'] })
  await ann.sees({ ann: ['there'] })
  ann.room.presence.clear()
  await bob.sees({})
  ann.room.presence.set('again')
  await bob.sees({ ann: ['again'] })
  await ann.room.leave()
  assert.deepEqual(ann.states(), {})
  await bob.sees({})
  assert.equal(told.length, 1)
})

test('the guard refuses, and what is said in the room comes only to members', async (t) => {
  const { client, room } = await connect(t, 'ann')
  for (const [name, code] of [['secret', 'app.secret'], ['closed', WSE_ERROR.NOT_AUTHORIZED], ['', WSE_ERROR.INVALID_PAYLOAD]]) {
    await assert.rejects(client.room(name).join(), { code })
  }
  const heard = []
  client.channel.on('said', (payload) => heard.push(payload))
  await client.call('say', 1)
  await room.join()
  await client.call('say', 2)
  await room.leave()
  await client.call('say', 3)
  assert.deepEqual(heard, [2])
  assert.throws(() => room.presence.set('x'), { code: WSE_ERROR.CLIENT_NOT_READY })
  await client.room('plain').join()
  assert.throws(() => client.room('plain').presence.set('x'), { code: WSE_ERROR.UNSUPPORTED })
  for (const state of [null, undefined]) assert.throws(() => room.presence.set(state), TypeError)
  await room.join()
  for (const ttl of [0, -1, NaN, Infinity, '1']) assert.throws(() => room.presence.set('x', { ttl }), RangeError)
  assert.throws(() => room.presence.set('x'.repeat(5000)), { code: WSE_ERROR.LIMIT_EXCEEDED })
})

for (const resume of [false, true]) {
  test(`a client that loses its connection is in the room again, and shows its state${resume ? ', with a session that goes on' : ''}`, async (t) => {
    const proxy = await breakingProxy(servers.rooms)
    t.after(() => proxy.close())
    const ann = await member(t, 'ann', { reconnect: true, resume }, proxy.url)
    const bob = await member(t, 'bob')
    ann.room.presence.set('before')
    await bob.sees({ ann: ['before'] })
    const { device } = ann.room.presence
    const back = new Promise((resolve) => ann.client.when[resume ? 'resumed' : 'ready'](() => ann.client.status === 'READY' && proxy.cuts && resolve(0)))
    const closed = ann.client.when.closed.wait()
    proxy.cutAfter(0)
    bob.room.presence.set('cuts')
    await closed
    ann.room.presence.set('meanwhile')
    await back
    await bob.sees({ ann: ['meanwhile'], bob: ['cuts'] })
    await ann.sees({ ann: ['meanwhile'], bob: ['cuts'] })
    assert.equal(ann.client.recovered, resume)
    assert.equal(ann.room.presence.device === device, resume)
    await ann.client.close() // while it can tell the server
  })
}

test('a client that the server adds or removes knows', async (t) => {
  const ann = await connect(t, 'ann')
  const bob = await member(t, 'bob')
  bob.room.presence.set('here')
  await ann.client.call('add')
  await ann.sees({ bob: ['here'] })
  ann.room.presence.set('as well')
  await bob.sees({ bob: ['here'], ann: ['as well'] })
  await ann.client.call('remove')
  assert.deepEqual(ann.states(), {})
  await bob.sees({ bob: ['here'] })
  assert.throws(() => ann.room.presence.set('x'), { code: WSE_ERROR.CLIENT_NOT_READY })
})

test('a client that the application has closed is in no room when it connects again', async (t) => {
  const ann = await member(t, 'ann')
  ann.room.presence.set('here')
  await ann.sees({ ann: ['here'] })
  await ann.client.close()
  assert.deepEqual(ann.states(), {})
  await ann.client.connect('ann')
  assert.throws(() => ann.room.presence.set('x'), { code: WSE_ERROR.CLIENT_NOT_READY })
  await ann.room.join()
  assert.deepEqual(ann.states(), {})
})

test('a client that leaves while it enters is out in the end', async (t) => {
  const { room } = await connect(t, 'ann')
  await Promise.all([room.join(), room.leave()])
  assert.throws(() => room.presence.set('x'), { code: WSE_ERROR.CLIENT_NOT_READY })
})

test('a server that knows no rooms', async (t) => {
  const { client } = await connect(t, 'ann', { protocol: { ...new WseMsgpack(msgpack), extensions: undefined } })
  await assert.rejects(client.room('doc').join(), { code: WSE_ERROR.UNSUPPORTED })
})

test('an inbox beside it', async (t) => {
  const client = new WseClient({ url: servers.inbox, WebSocket, rooms: true, inbox: 'phone' })
  t.after(() => client.close())
  const heard = new Promise((resolve) => client.channel.on('note', (payload) => resolve([client.kept.n, payload])))
  await client.connect('zoe')
  await client.call('keep', 'hello')
  assert.deepEqual(await heard, [1, 'hello'])
  await assert.rejects(client.room('doc').join(), { code: WSE_ERROR.NOT_AUTHORIZED })
})
