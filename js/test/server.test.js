// Against the real Python server, over real sockets.
import assert from 'node:assert/strict'
import { once } from 'node:events'
import net from 'node:net'
import { after, before, describe, test } from 'node:test'
import * as msgpack from '@msgpack/msgpack'
import * as ws from 'ws'
import { Scram, WSE_ERROR, WSE_REASON, WseClient, WseError, WseMsgpack } from '../wse.js'
import { failure } from './support/fake.js'
import { startServers } from './support/server.js'

// Node 22 has its own; here and there an application passes one.
const WebSocket = globalThis.WebSocket ?? ws.WebSocket

let servers
const clients = []

before(async () => (servers = await startServers()))
after(async () => {
  await Promise.all(clients.map((client) => client.close()))
  await servers.stop()
})

const make = (options = {}) => {
  const client = new WseClient({ url: servers.plain, WebSocket, tO: 5, backoff: { base: 0.01 }, ...options })
  client.errors = []
  client.when.error((error) => client.errors.push(error))
  clients.push(client)
  return client
}
let users = 0
const ready = async (options) => {
  const client = make(options)
  await client.connect(`user-${++users}`)
  return client
}
/** The arguments of the next emission that is wanted. */
const next = async (signal, wanted = () => true) => {
  for (;;) {
    const args = await signal.wait()
    if (wanted(...args)) return args
  }
}

describe('connecting', () => {
  test('identity and meta arrive, and the welcome comes back', async () => {
    const client = make()
    const welcome = await client.connect({ token: 't' }, { device: 'phone' })
    assert.deepEqual(welcome, { server: 'plain', identity: { token: 't' }, meta: { device: 'phone' } })
    assert.equal(client.status, 'READY')
    await client.close()
    assert.equal(client.status, 'OFFLINE')
  })

  test('an identity may be a function, which is asked once more after a refusal', async () => {
    const asked = ['refuse', 'welcome']
    assert.equal((await make().connect(async () => asked.shift())).identity, 'welcome')
  })

  test('a refusal', async () => {
    const error = await failure(make({ re: true }).connect('refuse'))
    assert.equal(error.code, WSE_ERROR.NOT_AUTHORIZED)
    assert.deepEqual(error.details, { code: 1000, reason: 'wse.not-authorized' })
  })

  test('a challenge', async () => {
    const client = make({ url: servers.challenged })
    client.challenge((quest, solve) => setImmediate(solve, quest.double * 2))
    assert.equal((await client.connect('someone')).identity, 'someone')
    const wrong = make({ url: servers.challenged })
    wrong.challenge((quest, solve) => solve(1))
    assert.equal((await failure(wrong.connect('someone'))).code, WSE_ERROR.NOT_AUTHORIZED)
  })

  test('no server', async () => {
    const error = await failure(make({ url: 'ws://127.0.0.1:1' }).connect())
    assert.equal(error.code, WSE_ERROR.WS_CLIENT_ERROR)
    assert.deepEqual(error.details, { url: 'ws://127.0.0.1:1' })
  })

  test('the oldest device is pushed out, and does not come back', async () => {
    const first = make({ re: true })
    await first.connect('crowd')
    const closed = next(first.when.closed)
    await make().connect('crowd')
    await make().connect('crowd')
    assert.deepEqual(await closed, [1000, WSE_REASON.CLIENTS_CONCURRENCY])
    assert.equal(first.status, 'OFFLINE')
  })

  test('the own close arrives at the server', async () => {
    const one = make()
    const two = make()
    await one.connect('leaver')
    await two.connect('leaver')
    assert.equal(await two.call('devices'), 2)
    await one.close()
    assert.equal(await two.call('devices'), 1)
  })

  test('a close while the socket opens', async () => {
    const client = make()
    const connecting = failure(client.connect())
    await client.close()
    assert.equal((await connecting).code, WSE_ERROR.CONNECTION_CLOSED)
    assert.equal(client.status, 'OFFLINE')
  })
})

for (const [name, options] of [
  ['JSON', {}],
  ['MessagePack', { protocol: new WseMsgpack(msgpack) }],
]) {
  describe(`messages and calls in ${name}`, () => {
    let client
    before(async () => (client = await ready(options)))

    test('a message there and back', async () => {
      const payload = { text: 'grüße 😀', list: [1, null, { deep: true }], half: 0.5 }
      const echoed = new Promise((resolve) => client.channel.once('echo', resolve))
      client.send('echo', payload)
      assert.deepEqual(await echoed, payload)
    })

    test('a broadcast', async () => {
      const other = await ready(options)
      const heard = Promise.all([client, other].map((each) => new Promise((resolve) => each.channel.once('shout', resolve))))
      client.send('shout', [1])
      assert.deepEqual(await heard, [[1], [1]])
    })

    test('calls, many at a time', async () => {
      assert.equal(await client.call('add', { a: 5, b: 3 }), 8)
      const results = await Promise.all(Array.from({ length: 200 }, (_, number) => client.call('same', number)))
      assert.deepEqual(results, Array.from({ length: 200 }, (_, number) => number))
      assert.equal(await client.call('same'), null)
    })

    test('a call that raises', async () => {
      const error = await failure(client.call('fail', 1))
      assert.ok(error instanceof WseError)
      assert.equal(error.code, WSE_ERROR.RP_EXECUTION_FAILED)
      assert.deepEqual(error.details, { origin: { name: 'ValueError', message: 'no good' }, rp: 'fail', rpc: 'fail', payload: 1 })
      assert.equal(error.message, 'no good')
    })

    test('a call that raises an error of the application', async () => {
      const { code, details, message } = await failure(client.call('deny'))
      assert.deepEqual([code, details, message], ['app.denied', { why: 'closed', rp: 'deny', rpc: 'deny' }, 'the shop is closed'])
    })

    test('a call of what is not registered', async () => {
      assert.equal((await failure(client.call('nothing'))).code, WSE_ERROR.RP_NOT_REGISTERED)
    })

    test('a call without an answer', async () => {
      const error = await failure(client.call('never', null, { tO: 0.01 }))
      assert.deepEqual([error.code, error.details], [WSE_ERROR.RP_TIMEOUT, { rp: 'never', timeout: 0.01, at: 'caller' }])
    })

    test('the server calls the client', async () => {
      client.register('info', async (payload) => ({ got: payload, zone: 'UTC' }))
      assert.deepEqual(await client.call('call-back', { name: 'info', payload: 1 }), { result: { got: 1, zone: 'UTC' } })
      client.unregister('info')
      const missing = await client.call('call-back', { name: 'info' })
      assert.deepEqual(missing.code, WSE_ERROR.RP_NOT_REGISTERED)
      assert.deepEqual(missing.details, { rp: 'info', rpc: 'info' })
      assert.equal(missing.text, `${WSE_ERROR.RP_NOT_REGISTERED}: info: no such procedure`)
    })

    test('the server calls what throws', async () => {
      client.register('broken', () => {
        throw new RangeError('out of it')
      })
      client.register('poor', async () => {
        throw new WseError('app.poor', { missing: 3 }, 'no money')
      })
      const broken = await client.call('call-back', { name: 'broken', payload: 2 })
      assert.equal(broken.code, WSE_ERROR.RP_EXECUTION_FAILED)
      assert.deepEqual(broken.details, { origin: { name: 'RangeError', message: 'out of it' }, rp: 'broken', rpc: 'broken', payload: 2 })
      const poor = await client.call('call-back', { name: 'poor' })
      assert.deepEqual(poor.details, { missing: 3, rp: 'poor', rpc: 'poor' })
      assert.equal(poor.text, 'app.poor: poor: no money')
    })

    test('a result that cannot be encoded is answered at once', async () => {
      const loop = {}
      loop.self = loop
      client.register('loop', () => loop)
      assert.equal((await client.call('call-back', { name: 'loop' })).code, WSE_ERROR.RP_EXECUTION_FAILED)
    })
  })
}

describe('losing the connection', () => {
  test('pending calls are settled, and the client comes back', async () => {
    const client = await ready({ re: true })
    const walk = []
    client.when.updated((status) => walk.push(status))
    const never = failure(client.call('never'))
    const again = next(client.when.updated, (status) => status === 'READY')
    await client.call('drop', { code: 1012, reason: 'restart' })
    const error = await never
    assert.deepEqual([error.code, error.details], [WSE_ERROR.RP_DISCONNECT, { rp: 'never', disconnected: [1012, 'restart'] }])
    await again
    assert.deepEqual(walk, ['READY', 'OFFLINE', 'RE_CONNECTING', 'READY'])
    assert.equal(await client.call('add', { a: 1, b: 1 }), 2)
  })

  test('4000 brings it back without reconnection, too', async () => {
    const client = await ready()
    const again = next(client.when.updated, (status) => status === 'READY')
    await client.call('drop', { code: 4000, reason: 'jump' })
    await again
    assert.equal(await client.call('same', 1), 1)
  })

  test('a server that is killed and started again', async () => {
    const first = await startServers()
    const client = await ready({ url: first.plain, re: true })
    const closed = next(client.when.closed)
    await first.kill()
    assert.deepEqual(await closed, [1006, ''])
    const again = next(client.when.updated, (status) => status === 'READY')
    const second = await startServers(new URL(first.plain).port)
    await again
    assert.equal(await client.call('add', { a: 2, b: 2 }), 4)
    assert.ok(client.errors.every((error) => error.code === WSE_ERROR.WS_CLIENT_ERROR))
    const over = next(client.when.closed)
    await second.stop()
    assert.deepEqual(await over, [1012, WSE_REASON.BY_SERVER])
    await client.close()
    assert.equal(client.status, 'OFFLINE')
  })

  test('a network that stalls is noticed, and a server that lives is not taken for dead', async () => {
    let isStalled = false
    const pipes = []
    const proxy = net.createServer((near) => {
      const far = net.connect(new URL(servers.plain).port, '127.0.0.1')
      for (const [from, to] of [[near, far], [far, near]]) {
        pipes.push(from)
        from.on('data', (data) => isStalled || to.write(data))
        from.on('error', () => {})
        from.on('close', () => isStalled || to.destroy())
      }
    })
    await once(proxy.listen(0, '127.0.0.1'), 'listening')
    let pings = 0
    class Counting extends WebSocket {
      send(data) {
        if (data.includes('~wse:ping') && ++pings === 5) isStalled = true
        super.send(data)
      }
    }
    const client = await ready({ url: `ws://127.0.0.1:${proxy.address().port}`, WebSocket: Counting, heartbeat: { interval: 0.05, timeout: 2 } })
    assert.deepEqual(await client.when.closed.wait(20), [1006, ''])
    assert.equal(pings, 5)
    assert.equal(client.gaveUp, await client.waitClosed())
    for (const pipe of pipes) pipe.destroy()
    proxy.close()
  })

  test('jump', async () => {
    const client = make()
    await client.connect('jumper', { d: 1 })
    const closed = next(client.when.closed)
    assert.deepEqual(await client.jump(servers.other), { server: 'other', identity: 'jumper', meta: { d: 1 } })
    assert.deepEqual(await closed, [4000, 'jump'])
    assert.equal(client.url, servers.other)
    assert.deepEqual(await client.jump(servers.plain, 'other', {}), { server: 'plain', identity: 'other', meta: {} })
    assert.deepEqual(client.errors, [])
  })
})

describe('tokens that expire', () => {
  test('a fresh one is asked for before the end, and after it the client comes back with another', async () => {
    const client = make({ url: servers.tokens, re: true })
    const renewed = []
    client.channel.on('renewed', (token) => renewed.push(token))
    let token = 0
    assert.equal(await client.connect(async () => ({ token: ++token })), 1)
    assert.deepEqual(await client.when.closed.wait(5), [1012, WSE_REASON.SESSION_EXPIRED])
    assert.deepEqual(renewed, [2, 3])
    assert.equal(await client.waitReady(5), 4)
    await client.close()
  })

  test('a refusal says why, and whether a later attempt may succeed', async () => {
    const { code, details } = await failure(make({ url: servers.tokens, re: true }).connect({ token: -1 }))
    assert.deepEqual([code, details], [WSE_ERROR.NOT_AUTHORIZED, { code: 1000, reason: 'banned', retry: false }])
    const client = make({ url: servers.tokens, re: true })
    let token = -4
    assert.equal(await client.connect(() => ({ token: ++token < -1 ? token : 9 })), 9)
    assert.deepEqual(client.errors.map(({ details }) => details.reason), ['busy', 'busy'])
  })
})

describe('SCRAM', () => {
  for (const [name, password] of [
    ['ada', 'lovelace'],
    ['a=b,c', 'p=q,r'],
    ['grüße', 'nai\u0308ve ix'],
    ['ru', 'שלום'],
  ]) {
    test(`${name} gets in`, async () => {
      const client = make({ url: servers.scram })
      const scram = new Scram(name, password)
      assert.deepEqual(await client.connect(scram), { hello: name })
      await client.close()
      assert.deepEqual(await client.connect(), { hello: name })
    })
  }

  test('a wrong password, an unknown user and a name that is none do not', async () => {
    for (const scram of [new Scram('ada', 'x'), new Scram('bob', 'lovelace'), new Scram('ada', ''), new Scram('😀', 'x')]) {
      const error = await failure(make({ url: servers.scram }).connect(scram))
      assert.deepEqual([error.code, error.details], [WSE_ERROR.NOT_AUTHORIZED, { code: 1000, reason: 'wse.not-authorized' }])
    }
  })

  test('a server without the keys is found out', async () => {
    const client = make({ url: servers.impostor, re: true })
    const closed = next(client.when.closed)
    assert.equal((await failure(client.connect(new Scram('ada', 'lovelace')))).code, WSE_ERROR.NOT_AUTHORIZED)
    assert.deepEqual(await closed, [1000, WSE_REASON.NOT_AUTHORIZED])
    assert.equal(client.status, 'OFFLINE')
  })
})
