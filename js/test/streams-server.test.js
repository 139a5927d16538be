// Streams, cancellation and progress with a real server of the Python package.
import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import { WebSocket } from 'ws'
import { WSE_ERROR, WseClient } from '../wse.js'
import { failure } from './support/fake.js'
import { startServers } from './support/server.js'

describe('with a server that knows the extension calls', () => {
  let servers
  let client
  before(async () => {
    servers = await startServers()
    client = new WseClient({ url: servers.streams, WebSocket })
    await client.connect('ada')
  })
  after(async () => {
    await client.close()
    await servers.stop()
  })

  const all = async (items) => {
    const got = []
    for await (const item of items) got.push(item)
    return got
  }
  /** Wait until the server has ended so many procedures of that name. */
  const hasEnded = async (name, count) => {
    while ((await client.call('ended')).filter((ended) => ended === name).length < count) await new Promise((resolve) => setTimeout(resolve, 10))
  }

  test('every item comes once, in order', async () => {
    assert.deepEqual(await all(client.stream('ticks', 2000)), [...Array(2000).keys()])
    assert.deepEqual(await all(client.stream('ticks', 40, { window: 1 })), [...Array(40).keys()])
  })

  test('a loop that is left ends the generator', async () => {
    const before = (await client.call('ended')).filter((name) => name === 'ticks').length
    for await (const item of client.stream('ticks', 1e9)) if (item === 100) break
    await hasEnded('ticks', before + 1)
  })

  test('an AbortSignal and a timeout cancel the procedure', async () => {
    const controller = new AbortController()
    // A task that is cancelled before it has begun never runs, so the procedure says that it has.
    const onProgress = () => controller.abort()
    assert.equal((await failure(client.call('never', null, { signal: controller.signal, onProgress }))).name, 'AbortError')
    await hasEnded('never', 1)
    assert.equal((await failure(client.call('never', null, { timeout: 0.05 }))).code, WSE_ERROR.RP_TIMEOUT)
  })

  test('progress and the deadline of a call', async () => {
    const told = []
    const remaining = await client.call('job', null, { timeout: 60, onProgress: (value) => told.push(value) })
    assert.deepEqual(told, [{ done: 0.5 }])
    assert.ok(remaining > 20 && remaining <= 60, `${remaining}`)
  })

  test('items in both directions at once', async () => {
    const items = Array.from({ length: 500 }, (_, n) => ({ n }))
    assert.deepEqual(await all(client.stream('echo', null, { upload: items })), items)
  })

  test('the wrong way to call', async () => {
    assert.equal((await failure(client.call('ticks', 3))).code, WSE_ERROR.RP_IS_A_STREAM)
    assert.equal((await failure(client.stream('job').next())).code, WSE_ERROR.RP_NOT_A_STREAM)
  })

  test('the server reads streams of the client, and leaves them', async () => {
    let isClosed = false
    client.register('lines', function* (count) {
      for (let n = 0; n < count; n++) yield `line ${n}`
    })
    client.register('forever', async function* () {
      try {
        for (let n = 0; ; n++) yield n
      } finally {
        isClosed = true
      }
    })
    assert.deepEqual(await client.call('stream-back', { count: 1000 }), ['line 997', 'line 998', 'line 999'])
    await client.call('leave-back')
    while (!isClosed) await new Promise((resolve) => setTimeout(resolve, 10))
  })

  test('the server uploads, and hears of the progress', async () => {
    client.register('sum', async (_, { items, progress }) => {
      let sum = 0
      for await (const item of items) sum += item
      progress(sum)
      return sum
    }, { upload: true })
    assert.deepEqual(await client.call('upload-back'), [4950, [4950]])
  })
})
