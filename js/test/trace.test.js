// Calls that carry the context of their trace, with a real server of the Python package.
import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import { WebSocket } from 'ws'
import { WSE_ERROR, WseClient, WseJSON } from '../wse.js'
import { traced } from '../wse-trace.js'
import { failure } from './support/fake.js'
import { startServers } from './support/server.js'

const PARENT = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'

describe('the context of a trace', () => {
  let servers
  before(async () => {
    servers = await startServers()
  })
  after(() => servers.stop())

  const connect = async (url, inject, protocol = WseJSON) => {
    const sent = []
    class Recorded extends WebSocket {
      send(data) {
        sent.push(JSON.parse(String(data)))
        super.send(data)
      }
    }
    const client = new WseClient({ url, WebSocket: Recorded, protocol: traced(protocol, inject) })
    await client.connect('ada')
    return { client, sent }
  }
  const inject = (carrier) => Object.assign(carrier, { traceparent: PARENT, tracestate: 'a=1' })

  test('goes with calls and streams to a server that traces', async () => {
    const { client, sent } = await connect(servers.traced, inject, new WseJSON())
    assert.deepEqual(await client.call('trace', { a: 1 }), [PARENT.split('-')[1], { a: 1 }])
    assert.deepEqual(await client.call('trace', null, { timeout: 9 }), [PARENT.split('-')[1], null])
    const items = []
    for await (const item of client.stream('traces')) items.push(item)
    assert.deepEqual(items, [PARENT.split('-')[1]])
    assert.deepEqual(sent[0][1].ext.trace, {})
    assert.deepEqual(sent[1].slice(0, 2), ['~wse:call', ['trace', { a: 1 }, { tp: PARENT, ts: 'a=1' }]])
    assert.deepEqual(sent[2][1], ['trace', null, { t: 9, tp: PARENT, ts: 'a=1' }])
    await client.close()
  })

  test('stays at home where the server does not trace, or there is none', async () => {
    const one = await connect(servers.plain, inject)
    assert.equal(await one.client.call('add', { a: 1, b: 2 }), 3)
    assert.deepEqual(one.sent[1].slice(0, 2), ['add', { a: 1, b: 2 }])
    const two = await connect(servers.traced, () => {})
    assert.notEqual((await two.client.call('trace'))[0], PARENT.split('-')[1])
    assert.deepEqual(two.sent[1].slice(0, 2), ['trace', null])
    await Promise.all([one.client.close(), two.client.close()])
  })

  test('changes neither messages and answers nor what cannot be sent', async () => {
    const { client, sent } = await connect(servers.traced, inject)
    client.register('double', (n) => 2 * n)
    assert.equal(await client.call('call-back', 4), 8)
    client.send('say', 1)
    assert.equal((await failure(client.call('trace', NaN))).code, WSE_ERROR.RP_SEND_FAILED)
    assert.deepEqual(
      sent.slice(1).map(([type]) => type),
      ['~wse:call', '~wse:response', 'say'],
    )
    await client.close()
  })
})
