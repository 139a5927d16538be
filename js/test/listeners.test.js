// Listeners of messages and events.
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { WSE_ERROR, WseClient, WseError } from '../wse.js'
import { FakeWebSocket, codes, failure, fakeClient, readyClient, settled, until, welcome } from './support/fake.js'

describe('listeners', () => {
  test('on, once, off', async () => {
    const { client, socket, take } = await readyClient()
    const seen = []
    const fn = (payload) => seen.push(['on', payload])
    client.channel
      .on('a', fn)
      .once('a', (payload) => {
        seen.push(['once', payload])
        socket.receive(['a', 'inner'])
      })
      .on('a', () => client.channel.off('a', fn))
    socket.receive(['a', 1])
    socket.receive(['a', 2])
    assert.deepEqual(seen, [['on', 1], ['once', 1], ['on', 'inner']])
    client.channel.off('a')
    socket.receive(['a', 3])
    assert.deepEqual(take(), [['ignored', 'a', 3, null]])
    assert.throws(() => client.channel.on('a', null), TypeError)
  })

  test('a signal returns what unsubscribes', async () => {
    const { client, socket } = await readyClient()
    const seen = []
    const off = client.when.ignored((...args) => seen.push(args))
    socket.receive(['x', 1])
    off()
    socket.receive(['x', 2])
    assert.deepEqual(seen, [['x', 1, null]])
  })

  test('what they throw is reported, and the others are called', async () => {
    const { client, socket, errors } = await readyClient()
    const seen = []
    client.channel.on('a', () => {
      throw new Error('sync')
    })
    client.channel.on('a', async () => {
      throw new Error('async')
    })
    client.channel.on('a', (payload) => seen.push(payload))
    client.when.closed(() => {
      throw new Error('closed')
    })
    socket.receive(['a', 1])
    await settled()
    socket.gone(1000)
    assert.deepEqual(seen, [1])
    assert.deepEqual(codes(errors), Array(3).fill(WSE_ERROR.MSG_PROCESSING_ERROR))
    assert.deepEqual(errors.map((error) => error.cause.message), ['sync', 'async', 'closed'])
  })

  test('errors that nobody listens to, and those of error listeners, go to the console', async (t) => {
    const logged = t.mock.method(console, 'error', () => {})
    const client = new WseClient({ url: 'ws://x', WebSocket: FakeWebSocket })
    const fails = () => {
      client.connect().catch(() => {})
      FakeWebSocket.last.open()
      FakeWebSocket.last.receive('{')
    }
    fails()
    assert.equal(logged.mock.calls[0].arguments[0].code, WSE_ERROR.MSG_PROCESSING_ERROR)
    client.when.error(() => {
      throw new Error('again')
    })
    fails()
    assert.equal(logged.mock.calls[1].arguments[0].message, 'again')
  })

  test('not ready is thrown, and told nobody else', async (t) => {
    const logged = t.mock.method(console, 'error', () => {})
    const { client, errors } = fakeClient()
    assert.throws(() => client.send('a'), { code: WSE_ERROR.CLIENT_NOT_READY })
    assert.equal((await failure(client.call('a'))).details.status, 'IDLE')
    assert.deepEqual([errors, logged.mock.callCount()], [[], 0])
  })

  test('a socket that is closing is not ready', async () => {
    const { client, socket } = await readyClient()
    socket.readyState = 2
    assert.throws(() => client.send('a'), { code: WSE_ERROR.CLIENT_NOT_READY })
    assert.equal((await failure(client.call('a'))).code, WSE_ERROR.CLIENT_NOT_READY)
  })
})

describe('registrations', () => {
  test('one unsubscribe removes one registration', async () => {
    const { client, socket } = await readyClient()
    const seen = []
    const fn = (...args) => seen.push(args)
    const offs = [client.when.ignored(fn), client.when.ignored(fn), client.when.ignored(fn)]
    client.channel.on('a', fn).on('a', fn).once('a', fn)
    assert.equal(client.channel.listenerCount('a'), 3)
    offs[0]()
    offs[0]()
    client.when.ignored.off(fn)
    client.channel.off('a', fn)
    socket.receive(['x'])
    socket.receive(['a', 1])
    socket.receive(['a', 2])
    assert.deepEqual(seen, [['x', null, null], [1], [1], [2], [2]])
    offs[1]()
    offs[2]()
    client.channel.removeListener('a', fn).off('a', fn).off('a', fn)
    assert.equal(client.channel.listenerCount('a'), 0)
  })

  test('one that is removed during an emission is not called', async () => {
    const { client, socket, errors } = await readyClient()
    const seen = []
    const later = () => seen.push('later')
    client.channel.on('a', () => client.channel.off('a', later)).on('a', later)
    socket.receive(['a'])
    client.channel.on('b', () => client.channel.removeAll('b')).on('b', later)
    socket.receive(['b'])
    client.when.closed(() => off())
    const off = client.when.closed(later)
    socket.gone(1000)
    assert.deepEqual([seen, errors], [[], []])
  })

  test('all of a type, or all', () => {
    const { client } = fakeClient()
    const counts = () => ['a', 'b'].map((type) => client.channel.listenerCount(type))
    client.channel.on('a', () => {}).once('a', () => {}).on('b', () => {})
    assert.deepEqual(counts(), [2, 1])
    assert.deepEqual((client.channel.removeAll('a'), counts()), [0, 1])
    client.channel.on('a', () => {}).removeAllListeners()
    assert.deepEqual(counts(), [0, 0])
  })

  test('signals have once and wait', async () => {
    const { client, socket } = await readyClient()
    const seen = []
    client.when.ignored.once((...args) => seen.push(args))
    const waiting = client.when.ignored.wait(5)
    socket.receive(['x', 1])
    socket.receive(['x', 2])
    assert.deepEqual([seen, await waiting], [[['x', 1, null]], ['x', 1, null]])
  })
})

describe('ordered handlers', () => {
  /** Handlers that note when they begin and end; `finish[name]()` ends the oldest of that name. */
  const noted = () => {
    const seen = []
    const running = []
    const handler = (name) => (payload) => {
      seen.push(`${name} ${payload}`)
      return new Promise((resolve, reject) => running.push({ resolve, reject }))
    }
    const end = async (how = 'resolve', value = undefined) => {
      await until(() => running.length)
      running.shift()[how](value)
      for (let turn = 0; turn < 5; turn++) await settled()
    }
    return { seen, handler, end }
  }

  test('run one after the other, of messages and of calls, and others at once', async () => {
    const { client, socket } = await readyClient()
    const { seen, handler, end } = noted()
    client.channel.on('edit', handler('edit'), { ordered: true }).on('look', handler('look'))
    client.register('save', handler('save'), { ordered: true })
    for (const message of [['edit', 1, null], ['save', 2, 's'], ['edit', 3, null], ['look', 4, null]]) socket.receive(message)
    await settled()
    assert.deepEqual(seen, ['look 4', 'edit 1'])
    await end()
    assert.deepEqual(seen, ['look 4', 'edit 1'])
    await end()
    assert.deepEqual(seen, ['look 4', 'edit 1', 'save 2'])
    assert.deepEqual(socket.read(), [])
    await end('resolve', 'saved')
    assert.deepEqual(socket.read(), [['~wse:response', 'saved', 's']])
    assert.deepEqual(seen.at(-1), 'edit 3')
  })

  test('one that fails is reported, and the next begins', async () => {
    const { client, socket, errors } = await readyClient()
    const { seen, handler, end } = noted()
    const edit = handler('edit')
    client.channel.on('edit', edit, { ordered: true })
    client.channel.on('check', () => {
      throw new Error('sync')
    }, { ordered: true })
    client.register('save', handler('save'), { ordered: true })
    for (const message of [['edit', 1, null], ['check', 0, null], ['save', 2, 's'], ['edit', 3, null]]) socket.receive(message)
    await end('reject', new Error('no database'))
    await end('reject', new WseError('app.full'))
    assert.deepEqual(socket.read().map(([type, { code }]) => [type, code]), [['~wse:response-err', 'app.full']])
    assert.deepEqual(seen, ['edit 1', 'save 2', 'edit 3'])
    assert.deepEqual(errors.map(({ code, cause }) => [code, cause.message]), [
      [WSE_ERROR.MSG_PROCESSING_ERROR, 'no database'],
      [WSE_ERROR.MSG_PROCESSING_ERROR, 'sync'],
      [WSE_ERROR.RP_EXECUTION_FAILED, 'app.full'],
    ])
    client.channel.off('edit', edit)
    assert.equal(client.channel.listenerCount('edit'), 0)
  })

  test('one that never ends does not hold up the next connection', async () => {
    const { client, Socket, socket } = await readyClient()
    const { seen, handler } = noted()
    client.channel.on('edit', handler('edit'), { ordered: true })
    for (const n of [1, 2]) socket.receive(['edit', n, null])
    socket.gone(1000)
    const connecting = client.connect()
    welcome(Socket)
    await connecting
    await settled()
    Socket.last.receive(['edit', 3, null])
    await settled()
    assert.deepEqual(seen, ['edit 1', 'edit 3'])
  })

  test('a stream has none', async () => {
    const { client } = await readyClient()
    for (const fn of [function* () {}, async function* () {}]) assert.throws(() => client.register('p', fn, { ordered: true }), TypeError)
    assert.throws(() => client.register('p', () => {}, { ordered: true, upload: true }), TypeError)
    client.register('p', () => {}, { ordered: true })
    assert.throws(() => client.channel.on('a', null, { ordered: true }), TypeError)
  })
})
