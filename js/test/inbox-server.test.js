// Messages that the server keeps, against the real Python server.
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

/** A device of that user that is connected, what it has heard, and what waits until it has heard so many. */
const device = async (t, user, options, url = servers.inbox) => {
  const client = new WseClient({ url, WebSocket, reconnect: true, backoff: { base: 0.01, cap: 0.05 }, ...options })
  t.after(() => client.close())
  client.when.error(() => {}) // attempts that will be repeated
  const heard = []
  const waiting = []
  client.channel.on('note', (payload) => {
    heard.push([client.kept.n, payload])
    for (const each of waiting) if (heard.length >= each.count) each.resolve(heard)
  })
  await client.connect(user)
  const hears = (count) => new Promise((resolve) => (heard.length >= count ? resolve(heard) : waiting.push({ count, resolve })))
  return { client, heard, hears }
}

test('each device gets what it has not seen, in order, with its numbers', async (t) => {
  const phone = await device(t, 'ann', { inbox: 'phone' })
  for (const n of [1, 2]) assert.equal(await phone.client.call('keep', n), n)
  assert.deepEqual(await phone.hears(2), [[1, 1], [2, 2]])
  await phone.client.close()

  const laptop = await device(t, 'ann', { inbox: 'laptop' })
  await laptop.client.call('keep', 3)
  assert.deepEqual(await laptop.hears(3), [[1, 1], [2, 2], [3, 3]])

  const again = await device(t, 'ann', { inbox: 'phone', protocol: new WseMsgpack(msgpack) })
  assert.deepEqual(await again.hears(1), [[3, 3]])
  const other = await device(t, 'ann', { inbox: 'tablet', after: 1 })
  assert.deepEqual(await other.hears(2), [[2, 2], [3, 3]])
})

test('a device that was away for longer than the inbox holds is told how much it has missed', async (t) => {
  const { client } = await device(t, 'bob', {})
  client.channel.removeAll()
  for (let n = 1; n <= 103; n++) await client.call('keep', n)
  await client.close()
  const told = []
  const phone = new WseClient({ url: servers.inbox, WebSocket, inbox: 'phone' })
  t.after(() => phone.close())
  phone.when.inboxLost((count) => told.push(count))
  const full = new Promise((resolve) => phone.channel.on('note', (n) => n === 103 && resolve(told)))
  await phone.connect('bob')
  assert.deepEqual(await full, [3])
})

for (const resume of [false, true]) {
  test(`nothing is missing or twice over connections that break${resume ? ', with a session that goes on' : ''}`, async (t) => {
    const writer = await device(t, `eve-${resume}`, {})
    writer.client.channel.removeAll()
    const proxy = await breakingProxy(servers.inbox)
    t.after(() => proxy.close())
    const phone = await device(t, `eve-${resume}`, { inbox: 'phone', resume }, proxy.url)
    for (let n = 1; n <= 80; n++) {
      await writer.client.call('keep', n)
      if (n % 20 !== 10) continue
      const cut = proxy.cutAfter(30)
      for (const more of [1, 2]) await writer.client.call('keep', n + more)
      n += 2
      await cut
      await phone.client.waitReady()
    }
    const heard = await phone.hears(80)
    assert.deepEqual(heard.map(([n]) => n), Array.from({ length: 80 }, (_, index) => index + 1))
    assert.equal(proxy.cuts, 4)
  })
}

test('a server without inboxes says so', async (t) => {
  const client = new WseClient({ url: servers.plain, WebSocket, inbox: 'phone' })
  t.after(() => client.close())
  const told = client.when.error.wait()
  await client.connect('ann')
  const [{ code, details }] = await told
  assert.deepEqual([code, details], [WSE_ERROR.UNSUPPORTED, { extension: 'inbox' }])
})
