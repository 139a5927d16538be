// Sessions that outlive their connection, against the real Python server, through a proxy that breaks connections.
import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import * as msgpack from '@msgpack/msgpack'
import * as ws from 'ws'
import { WSE_ERROR, WseClient, WseMsgpack } from '../wse.js'
import { failure } from './support/fake.js'
import { breakingProxy } from './support/proxy.js'
import { startServers } from './support/server.js'

// Node 22 has its own; here and there an application passes one.
const WebSocket = globalThis.WebSocket ?? ws.WebSocket

let servers
before(async () => (servers = await startServers()))
after(() => servers.stop())

let users = 0
/** A client behind a proxy, and what it has been told. */
const resumable = async (t, { isSilent = false, ...options } = {}) => {
  const proxy = await breakingProxy(servers.plain, { isSilent })
  const client = new WseClient({ url: proxy.url, WebSocket, reconnect: true, resume: true, backoff: { base: 0.01, cap: 0.05 }, ...options })
  const told = []
  for (const name of ['ready', 'resumed', 'lost']) client.when[name](() => told.push(name))
  client.when.error(() => {}) // attempts that will be repeated
  t.after(async () => {
    await client.close()
    proxy.close()
  })
  const user = `resuming-${++users}`
  await client.connect(user)
  return { client, proxy, told }
}

/** Numbers that only look random, the same in every run. */
const numbers = (seed) => () => (seed = (seed * 48_271) % 2_147_483_647)

for (const [name, options] of [
  ['that both sides notice, in JSON', {}],
  ['that the server does not notice, in MessagePack', { isSilent: true, protocol: new WseMsgpack(msgpack) }],
]) {
  test(`everything arrives once and in order over cuts at any byte ${name}`, async (t) => {
    const { client, proxy, told } = await resumable(t, { ...options, timeout: 60 })
    const random = numbers(11)
    const heard = []
    client.channel.on('echo', (n) => heard.push(n))
    const calls = []
    const total = 2000
    for (let n = 0; n < total; n++) {
      client.send('echo', n)
      if (n % 10 === 0) calls.push(client.call('add', { a: n, b: 1 }))
      if (n % 50 !== 25) continue
      await proxy.cutAfter(random() % 400) // of the 1,000 that these messages are
      await client.waitReady()
      if (n % 200 === 25) await client.flush()
    }
    assert.deepEqual(await Promise.all(calls), calls.map((_, index) => 10 * index + 1))
    await client.flush()
    await client.call('same', 'the answers before this one have come')
    assert.deepEqual(heard, Array.from({ length: total }, (_, n) => n))
    assert.equal(proxy.cuts, 40)
    assert.deepEqual(told.filter((each) => each !== 'resumed'), ['ready'])
  })
}

describe('a return', () => {
  test('does not wait until the server notices', async (t) => {
    const { client, proxy, told } = await resumable(t, { isSilent: true })
    const heard = []
    client.channel.on('echo', (n) => heard.push(n))
    for (let n = 0; n < 5; n++) {
      client.send('echo', n)
      const resumed = client.when.resumed.wait()
      await proxy.cutAfter(0)
      await resumed
    }
    await client.call('same', 1)
    assert.deepEqual(heard, [0, 1, 2, 3, 4])
    assert.deepEqual(told, ['ready', ...Array(5).fill('resumed')])
  })

  test('brings calls of the server and their answers', async (t) => {
    const { client, proxy } = await resumable(t)
    let answer
    const asked = new Promise((resolve) => client.register('slow', (payload) => new Promise((done) => (answer = done) && resolve(payload))))
    const call = client.call('call-back', { name: 'slow', payload: 'question' })
    assert.equal(await asked, 'question')
    const resumed = client.when.resumed.wait()
    await proxy.cutAfter(0)
    answer('answer')
    await resumed
    assert.deepEqual(await call, { result: 'answer' })
  })

  test('of another user is a loss', async (t) => {
    let count = 0
    const proxy = await breakingProxy(servers.plain)
    const client = new WseClient({ url: proxy.url, WebSocket, reconnect: true, resume: true, backoff: { base: 0.01 } })
    t.after(async () => {
      await client.close()
      proxy.close()
    })
    await client.connect(() => `other-${++count}`)
    client.send('echo', 1)
    await client.flush()
    client.send('echo', 2)
    const lost = client.when.lost.wait()
    await proxy.cutAfter(0)
    const [{ why }] = await lost
    assert.equal(why, 'user')
  })
})

test('a server that has been restarted has no session, and says so', async (t) => {
  const own = await startServers()
  const client = new WseClient({ url: own.plain, WebSocket, reconnect: true, resume: true, backoff: { base: 0.05, cap: 0.2 } })
  client.when.error(() => {})
  await client.connect('restarted')
  client.send('echo', 1)
  await client.flush()
  const pending = failure(client.call('never'))
  const lost = client.when.lost.wait()
  await own.kill()
  client.send('echo', 2)
  const again = await startServers(new URL(own.plain).port)
  t.after(async () => {
    await client.close()
    await again.stop()
  })
  const [{ why, unsent, uncertain }] = await lost
  assert.equal(why, 'unknown')
  assert.deepEqual([...uncertain, ...unsent], [{ type: 'echo', payload: 2 }])
  const { code, details } = await pending
  assert.deepEqual([code, details.rp], [WSE_ERROR.RP_DISCONNECT, 'never'])
  assert.equal(await client.call('same', 'again'), 'again')
})

test('close ends the session at once', async (t) => {
  const { client, told } = await resumable(t)
  await client.close()
  assert.deepEqual(told, ['ready'])
  assert.equal((await failure(client.flush())).code, WSE_ERROR.UNSUPPORTED)
  assert.equal(client.gaveUp, null)
})
