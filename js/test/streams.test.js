// The extension `calls`: cancellation, deadlines, progress, streams and uploads, in both directions.
import assert from 'node:assert/strict'
import { getEventListeners } from 'node:events'
import { describe, test } from 'node:test'
import { WSE_ERROR, WseError } from '../wse.js'
import { codes, failure, fakeClient, pass, readyClient, settled, until, withTimers } from './support/fake.js'

const CALLS = { calls: { timeout: 20 } }

/** What the client has written, as soon as there is something. */
const written = async (socket, count = 1) => {
  await until(() => socket.sent.length >= count)
  return socket.read()
}

/** Nothing more is written, even if the module had to be loaded. */
const quiet = async (socket) => {
  await import('../wse-streams.js')
  for (let turn = 0; turn < 5; turn++) await settled()
  assert.deepEqual(socket.read(), [])
}

describe('negotiation', () => {
  test('the offer says the timeout of calls', () => {
    for (const [timeout, said] of [[20, 20], [1.5, 1.5], [0, 0], [Infinity, 0]]) {
      const { client, Socket } = fakeClient({ timeout })
      void client.connect().catch(() => {})
      Socket.last.open()
      assert.deepEqual(Socket.last.read()[0][1].ext.calls, { timeout: said })
      void client.close()
    }
  })

  test('a protocol without the names is offered nothing', () => {
    const internal_types = { hi: 1, challenge: 2, welcome: 3, call: 4, response: 5, response_error: 6 }
    const extensions = { ext: 7, auth: 8, refused: 9 }
    const protocol = { name: 'own', internal_types, extensions, pack: ({ type, payload, stamp }) => JSON.stringify([type, payload, stamp]), unpack: JSON.parse }
    const { client, Socket } = fakeClient({ protocol })
    void client.connect().catch(() => {})
    Socket.last.open()
    assert.deepEqual(Socket.last.read()[0][1].ext, { auth: {} })
    void client.close()
  })

  test('a server that has not answered sees nothing of it', async (t) => {
    withTimers(t)
    const { client, socket } = await readyClient()
    const controller = new AbortController()
    const aborted = failure(client.call('a', 1, { signal: controller.signal }))
    const late = failure(client.call('b', 2, { timeout: 5 }))
    controller.abort()
    assert.equal((await aborted).name, 'AbortError')
    await pass(t, 5)
    assert.equal((await late).code, WSE_ERROR.RP_TIMEOUT)
    const { next } = client.stream('s')
    for (const call of [client.call('c', 3, { onProgress: () => {} }), client.call('d', 4, { upload: [] }), next()]) {
      const { code, details } = await failure(call)
      assert.deepEqual([code, details.extension], [WSE_ERROR.UNSUPPORTED, 'calls'])
    }
    assert.deepEqual(socket.read(), [['a', 1, 1], ['b', 2, 2]])
    socket.receive(['~wse:cancel', null, 7])
    socket.receive(['~wse:call', ['p', 1, {}], 8])
    assert.deepEqual(socket.read().map(([type, { code }, stamp]) => [type, code, stamp]), [7, 8].map((stamp) => ['~wse:response-err', WSE_ERROR.RP_NOT_REGISTERED, stamp]))
  })

  test('plain calls stay what they are', async () => {
    const { client, socket } = await readyClient(CALLS)
    const calls = [client.call('a', 1), client.call('b', 2, { timeout: 20 }), client.call('c', 3, { signal: new AbortController().signal })]
    assert.deepEqual(socket.read(), [['a', 1, 1], ['b', 2, 2], ['c', 3, 3]])
    for (const stamp of [1, 2, 3]) socket.receive(['~wse:response', stamp, stamp])
    assert.deepEqual(await Promise.all(calls), [1, 2, 3])
  })

  test('what belongs to no call is ignored', async () => {
    const { socket, errors, take } = await readyClient(CALLS)
    for (const kind of ['item', 'progress', 'want', 'more', 'put', 'end', 'cancel']) {
      for (const stamp of [1, 'x', { a: 1 }]) socket.receive([`~wse:${kind}`, 1, stamp])
    }
    await quiet(socket)
    assert.deepEqual([errors, take()], [[], []])
  })
})

describe('calls of ours', () => {
  test('a timeout of their own is told, and its end, too', async (t) => {
    withTimers(t)
    const { client, socket } = await readyClient(CALLS)
    const late = failure(client.call('a', 1, { timeout: 5 }))
    const waits = client.call('b', undefined, { timeout: 0 })
    assert.deepEqual(socket.read(), [['~wse:call', ['a', 1, { t: 5 }], 1], ['~wse:call', ['b', null, { t: 0 }], 2]])
    await pass(t, 5)
    const { code, details } = await late
    assert.deepEqual([code, details], [WSE_ERROR.RP_TIMEOUT, { rp: 'a', timeout: 5, at: 'caller' }])
    assert.deepEqual(socket.read(), [['~wse:cancel', null, 1]])
    await pass(t, 1000)
    socket.receive(['~wse:response', 'late', 1])
    socket.receive(['~wse:response', 'done', 2])
    assert.equal(await waits, 'done')
  })

  test('an AbortSignal gives them up at once, once, and leaves no listener', async (t) => {
    const { client, socket } = await readyClient(CALLS)
    const controller = new AbortController()
    const { signal } = controller
    const removed = t.mock.method(signal, 'removeEventListener')
    const answered = client.call('a', 1, { signal })
    const aborted = failure(client.call('b', 2, { signal }))
    socket.receive(['~wse:response', 'done', 1])
    assert.equal(await answered, 'done')
    socket.read()
    const reason = new Error('enough')
    controller.abort(reason)
    assert.equal(await aborted, reason)
    assert.deepEqual(socket.read(), [['~wse:cancel', null, 2]])
    assert.equal(removed.mock.callCount(), 2)
    assert.equal(await failure(client.call('c', 3, { signal })), reason)
    assert.equal(await failure(client.call('d', 4, { signal, onProgress: () => {} })), reason)
    socket.receive(['~wse:response', 'late', 2])
    assert.deepEqual(socket.read(), [])
  })

  test('a reason that is no error is a reason', async () => {
    const { client } = await readyClient(CALLS)
    for (const reason of [null, 0, '']) {
      const controller = new AbortController()
      let told = 'nothing'
      const call = client.call('a', 1, { signal: controller.signal }).then(() => {}, (error) => (told = error))
      controller.abort(reason)
      await call
      assert.equal(told, reason)
    }
  })

  test('progress is told until the answer, and what its listener throws is reported', async () => {
    const { client, socket, errors } = await readyClient(CALLS)
    const told = []
    const call = client.call('job', { a: 1 }, { onProgress: (value) => {
      told.push(value)
      if (value === 2) throw new Error('listener')
    } })
    assert.deepEqual(await written(socket), [['~wse:call', ['job', { a: 1 }, { p: 1 }], 1]])
    for (const value of [1, 2, { at: 3 }]) socket.receive(['~wse:progress', value, 1])
    socket.receive(['~wse:response', 'done', 1])
    socket.receive(['~wse:progress', 4, 1])
    assert.equal(await call, 'done')
    assert.deepEqual(told, [1, 2, { at: 3 }])
    assert.deepEqual(codes(errors), [WSE_ERROR.MSG_PROCESSING_ERROR])
  })

  test('what cannot be encoded fails with options, too', async () => {
    const { client, socket } = await readyClient(CALLS)
    for (const payload of [1n, NaN]) assert.equal((await failure(client.call('a', payload, { timeout: 5 }))).code, WSE_ERROR.RP_SEND_FAILED)
    assert.deepEqual(socket.read(), [])
  })
})

describe('uploads', () => {
  test('go as the server takes them, then end', async () => {
    const { client, socket } = await readyClient(CALLS)
    let made = 0
    async function* items() {
      while (made < 4) yield made++
    }
    const call = client.call('import', 'meta', { upload: items(), timeout: 60 })
    assert.deepEqual(await written(socket), [['~wse:call', ['import', 'meta', { t: 60, up: 1 }], 1]])
    await quiet(socket)
    assert.equal(made, 0)
    socket.receive(['~wse:want', 2, 1])
    assert.deepEqual(await written(socket, 2), [['~wse:put', 0, 1], ['~wse:put', 1, 1]])
    for (const nonsense of [0, -1, 1.5, '2', null, true]) socket.receive(['~wse:want', nonsense, 1])
    await quiet(socket)
    socket.receive(['~wse:want', 9, 1])
    assert.deepEqual(await written(socket, 3), [['~wse:put', 2, 1], ['~wse:put', 3, 1], ['~wse:end', null, 1]])
    socket.receive(['~wse:response', 'done', 1])
    assert.equal(await call, 'done')
  })

  test('any iterable will do', async () => {
    const { client, socket } = await readyClient(CALLS)
    const call = client.call('import', null, { upload: new Set(['a']) })
    await written(socket)
    socket.receive(['~wse:want', 2 ** 31, 1])
    assert.deepEqual(await written(socket, 2), [['~wse:put', 'a', 1], ['~wse:end', null, 1]])
    socket.receive(['~wse:response', 1, 1])
    assert.equal(await call, 1)
  })

  test('an answer before the end stops them', async () => {
    const { client, socket } = await readyClient(CALLS)
    let isClosed = false
    function* items() {
      try {
        for (;;) yield 1
      } finally {
        isClosed = true
      }
    }
    const call = client.call('import', null, { upload: items() })
    await written(socket)
    socket.receive(['~wse:want', 1, 1])
    await written(socket)
    socket.receive(['~wse:response', 'enough', 1])
    assert.equal(await call, 'enough')
    await until(() => isClosed)
    await quiet(socket)
  })

  test('one that fails, or cannot be encoded, fails the call', async () => {
    const { client, socket } = await readyClient(CALLS)
    const cause = new Error('no file')
    const uploads = [{ [Symbol.iterator]: () => ({ next: () => { throw cause } }) }, [1n]]
    for (const [index, upload] of uploads.entries()) {
      const call = failure(client.call('import', null, { upload }))
      await written(socket)
      socket.receive(['~wse:want', 8, index + 1])
      const error = await call
      if (index) assert.ok(error instanceof TypeError)
      else assert.equal(error, cause)
      assert.deepEqual(socket.read(), [['~wse:cancel', null, index + 1]])
    }
  })

  test('wait while the socket is full', async (t) => {
    await import('../wse-streams.js')
    withTimers(t)
    const { client, socket } = await readyClient(CALLS)
    const call = client.call('import', null, { upload: [1] })
    await written(socket)
    socket.bufferedAmount = 1 << 20
    socket.receive(['~wse:want', 8, 1])
    for (let look = 0; look < 5; look++) await pass(t, 1)
    assert.deepEqual(socket.read(), [])
    socket.bufferedAmount = 0
    await pass(t, 1)
    assert.deepEqual(socket.read(), [['~wse:put', 1, 1], ['~wse:end', null, 1]])
    socket.receive(['~wse:response', 1, 1])
    await call
  })
})

describe('streams of the server', () => {
  const begun = async (options, clientOptions = {}) => {
    const all = await readyClient({ ...CALLS, ...clientOptions })
    const stream = all.client.stream('tail', { file: 'x' }, options)
    const first = stream.next()
    first.catch(() => {})
    const [call] = await written(all.socket)
    return { ...all, stream, first, call, item: (value) => all.socket.receive(['~wse:item', value, 1]) }
  }

  test('items, then the end', async () => {
    const { client, socket } = await readyClient(CALLS)
    const got = []
    const reading = (async () => {
      for await (const item of client.stream('tail', { file: 'x' })) got.push(item)
    })()
    assert.deepEqual(await written(socket), [['~wse:call', ['tail', { file: 'x' }, { n: 32 }], 1]])
    for (const item of ['a', null, { b: 1 }]) socket.receive(['~wse:item', item, 1])
    socket.receive(['~wse:response', null, 1])
    await reading
    assert.deepEqual(got, ['a', null, { b: 1 }])
    assert.deepEqual(socket.read(), [])
  })

  test('credit is granted in halves of the window, as items are taken', async () => {
    const { stream, first, call, socket, item } = await begun({ window: 4 })
    assert.deepEqual(call, ['~wse:call', ['tail', { file: 'x' }, { n: 4 }], 1])
    for (let n = 0; n < 4; n++) item(n)
    assert.equal((await first).value, 0)
    await quiet(socket)
    await stream.next()
    assert.deepEqual(socket.read(), [['~wse:more', 2, 1]])
    for (let n = 4; n < 6; n++) item(n)
    for (let n = 2; n < 6; n++) assert.deepEqual(await stream.next(), { value: n, done: false })
    assert.deepEqual(socket.read(), [['~wse:more', 2, 1], ['~wse:more', 2, 1]])
  })

  test('the window is bounded, and so is what a server says that it takes', async () => {
    for (const [window, n] of [[1, 1], [0, 1], [-5, 1], [7.9, 7], [2 ** 31, 256], [NaN, 1]]) {
      const { call, client } = await begun({ window })
      assert.equal(call[1][2].n, n)
      void client.close()
    }
    const { first, stream, socket, item } = await begun({}, { calls: { timeout: 20, window: 4 } })
    for (let n = 0; n < 2; n++) item(n)
    await first
    await stream.next()
    assert.deepEqual(socket.read(), [['~wse:more', 2, 1]])
  })

  test('items beyond the credit end it, after those that have come', async () => {
    const { stream, first, socket, item } = await begun({ window: 4 })
    for (let n = 0; n < 6; n++) item(n)
    assert.deepEqual(socket.read(), [['~wse:cancel', null, 1]])
    assert.equal((await first).value, 0)
    for (const n of [1, 2, 3]) assert.equal((await stream.next()).value, n)
    assert.equal((await failure(stream.next())).code, WSE_ERROR.LIMIT_EXCEEDED)
    assert.equal((await stream.next()).done, true)
  })

  test('nothing is granted while much is held', async () => {
    const { stream, first, socket, item } = await begun({ window: 8 })
    const large = 'x'.repeat(100_000)
    for (let n = 0; n < 8; n++) item(large)
    await first
    for (let n = 0; n < 4; n++) await stream.next()
    assert.deepEqual(socket.read(), [])
    await stream.next()
    assert.deepEqual(socket.read(), [['~wse:more', 6, 1]])
  })

  for (const how of ['break', 'throw']) {
    test(`leaving the loop with ${how} cancels it`, async () => {
      const { client, socket } = await readyClient(CALLS)
      const reading = (async () => {
        for await (const item of client.stream('tail')) {
          if (how === 'break') return item
          throw new Error('left')
        }
      })()
      await written(socket)
      for (const item of [1, 2]) socket.receive(['~wse:item', item, 1])
      if (how === 'break') assert.equal(await reading, 1)
      else assert.equal((await failure(reading)).message, 'left')
      assert.deepEqual(socket.read(), [['~wse:cancel', null, 1]])
      socket.receive(['~wse:item', 3, 1])
      await quiet(socket)
    })
  }

  test('return ends a next that waits', async () => {
    const { stream, first, socket } = await begun()
    assert.deepEqual(await stream.return(), { value: undefined, done: true })
    assert.equal((await first).done, true)
    assert.deepEqual(socket.read(), [['~wse:cancel', null, 1]])
  })

  test('one that is left before its first item is never called', async () => {
    const { client, socket } = await readyClient(CALLS)
    const stream = client.stream('tail')
    await stream.return()
    assert.equal((await stream.next()).done, true)
    await quiet(socket)
  })

  test('an AbortSignal ends it at once, and the items that wait are dropped', async () => {
    const controller = new AbortController()
    const { stream, first, socket, item } = await begun({ signal: controller.signal })
    for (const n of [1, 2, 3]) item(n)
    assert.equal((await first).value, 1)
    controller.abort(new Error('stop'))
    assert.equal((await failure(stream.next())).message, 'stop')
    assert.equal((await stream.next()).done, true)
    assert.deepEqual(socket.read(), [['~wse:cancel', null, 1]])
  })

  test('an AbortSignal drops the items that wait also when the server has sent all, and then leaves nothing at the signal', async () => {
    const controller = new AbortController()
    const { stream, first, socket, item } = await begun({ signal: controller.signal })
    for (const n of [1, 2, 3]) item(n)
    socket.receive(['~wse:response', null, 1])
    assert.equal((await first).value, 1)
    await quiet(socket)
    controller.abort(new Error('stop'))
    assert.equal((await failure(stream.next())).message, 'stop')
    assert.equal((await stream.next()).done, true)
    assert.equal(getEventListeners(controller.signal, 'abort').length, 0)
    await quiet(socket)

    const { signal } = new AbortController()
    const other = await begun({ signal })
    other.socket.receive(['~wse:response', null, 1])
    assert.equal((await other.first).done, true)
    assert.equal(getEventListeners(signal, 'abort').length, 0)
  })

  test('one that has aborted makes no call', async () => {
    const { client, socket } = await readyClient(CALLS)
    assert.equal((await failure(client.stream('tail', null, { signal: AbortSignal.abort() }).next())).name, 'AbortError')
    await quiet(socket)
  })

  test('the timeout is that of an item, and runs only while the application waits', async (t) => {
    await import('../wse-streams.js')
    withTimers(t)
    const { stream, first, call, socket, item } = await begun({ timeout: 5 })
    assert.deepEqual(call[1][2], { n: 32 })
    await pass(t, 4)
    item(1)
    await first
    await pass(t, 100)
    const second = stream.next()
    await settled()
    await pass(t, 4)
    item(2)
    assert.equal((await second).value, 2)
    const third = failure(stream.next())
    await settled()
    await pass(t, 5)
    const { code, details } = await third
    assert.deepEqual([code, details], [WSE_ERROR.RP_TIMEOUT, { rp: 'tail', timeout: 5, at: 'caller' }])
    assert.deepEqual(socket.read(), [['~wse:cancel', null, 1]])
  })

  test('the deadline is that of the whole', async (t) => {
    await import('../wse-streams.js')
    withTimers(t)
    const { stream, first, call, socket, item } = await begun({ deadline: 20 })
    assert.deepEqual(call[1][2], { t: 20, n: 32 })
    await pass(t, 15)
    item(1)
    await first
    const second = failure(stream.next())
    await pass(t, 5)
    const { code, details } = await second
    assert.deepEqual([code, details], [WSE_ERROR.RP_TIMEOUT, { rp: 'tail', timeout: 20, at: 'caller' }])
    assert.deepEqual(socket.read(), [['~wse:cancel', null, 1]])
  })

  test('an error comes after the items', async () => {
    const { stream, first, socket, item } = await begun()
    item(1)
    socket.receive(['~wse:response-err', { code: 'app.broken', details: { a: 1 } }, 1])
    assert.equal((await first).value, 1)
    const error = await failure(stream.next())
    assert.ok(error instanceof WseError)
    assert.deepEqual([error.code, error.details], ['app.broken', { a: 1 }])
    await quiet(socket)
  })

  test('it fails with its connection', async () => {
    const { stream, first, socket, item } = await begun()
    item(1)
    socket.gone(1006)
    assert.equal((await first).value, 1)
    const { code, details } = await failure(stream.next())
    assert.deepEqual([code, details.disconnected], [WSE_ERROR.RP_DISCONNECT, [1006, '']])
    assert.equal((await failure(stream.next().then(() => stream.next()).then(() => Promise.reject(new Error('done'))))).message, 'done')
  })

  test('several nexts at once get the items in order, and the end', async () => {
    const { stream, first, socket, item } = await begun()
    const others = [stream.next(), stream.next(), stream.next()]
    await settled()
    for (const n of [1, 2]) item(n)
    socket.receive(['~wse:response', null, 1])
    assert.deepEqual((await Promise.all([first, ...others])).map(({ value, done }) => (done ? 'end' : value)), [1, 2, 'end', 'end'])
  })

  test('both directions at once', async () => {
    const { stream, first, call, socket, item } = await begun({ upload: ['up'], onProgress: () => {} })
    assert.deepEqual(call[1][2], { n: 32, p: 1, up: 1 })
    socket.receive(['~wse:want', 8, 1])
    assert.deepEqual(await written(socket, 2), [['~wse:put', 'up', 1], ['~wse:end', null, 1]])
    item('down')
    assert.equal((await first).value, 'down')
    socket.receive(['~wse:response', null, 1])
    assert.equal((await stream.next()).done, true)
  })

  test('1,000 that are opened and left are cancelled, and leave nothing at their signal', async () => {
    const { client, socket } = await readyClient(CALLS)
    const { signal } = new AbortController()
    for (let n = 1; n <= 1000; n++) {
      const stream = client.stream('tail', null, { signal })
      const first = stream.next()
      await until(() => socket.sent.length)
      await stream.return()
      assert.equal((await first).done, true)
      assert.deepEqual(socket.read(), [['~wse:call', ['tail', null, { n: 32 }], n], ['~wse:cancel', null, n]])
    }
    await quiet(socket)
    assert.equal(getEventListeners(signal, 'abort').length, 0)
  })
})

describe('a session that outlives its connection', () => {
  const RESUME = { id: 's-1', key: 'k', window: 60, bytes: 10_000, messages: 100 }
  const ext = (resume) => ['~wse:ext', { calls: { timeout: 20 }, resume }, null]

  const resumable = async () => {
    const all = fakeClient({ reconnect: true, resume: true, backoff: { base: 0 } })
    let isClosed = false
    all.client.register('ticks', async function* () {
      try {
        for (let n = 0; ; n++) yield n
      } finally {
        isClosed = true
      }
    })
    const connecting = all.client.connect('me')
    await until(() => all.Socket.all.length)
    const socket = all.Socket.last
    socket.open()
    socket.receive(ext(RESUME))
    socket.receive(['~wse:welcome', null, null])
    await connecting
    await settled()
    socket.read()
    const stream = all.client.stream('tail', null, { window: 4 })
    const first = stream.next()
    await written(socket)
    socket.receive(['~wse:item', 'a', 1])
    assert.equal((await first).value, 'a')
    socket.receive(['~wse:call', ['ticks', null, { n: 1 }], 's'])
    await written(socket)
    socket.gone(1006)
    await until(() => all.Socket.all.length === 2)
    all.Socket.last.open()
    all.Socket.last.read()
    return { ...all, stream, socket: all.Socket.last, isClosed: () => isClosed }
  }

  test('takes its streams along, of both sides', async () => {
    const { client, stream, socket, isClosed } = await resumable()
    socket.receive(ext({ id: 's-1', got: 2 }))
    socket.receive(['~wse:welcome', null, null])
    await settled()
    socket.read()
    socket.receive(['~wse:item', 'b', 1])
    assert.equal((await stream.next()).value, 'b')
    socket.receive(['~wse:more', 1, 's'])
    assert.deepEqual(await written(socket, 2), [['~wse:more', 2, 1], ['~wse:item', 1, 's']])
    socket.receive(['~wse:response', null, 1])
    assert.equal((await stream.next()).done, true)
    assert.equal(isClosed(), false)
    void client.close()
    await until(isClosed)
  })

  test('ends them if it is lost', async () => {
    const { client, stream, socket, isClosed } = await resumable()
    const next = failure(stream.next())
    socket.receive(ext({ ...RESUME, id: 's-2', lost: { why: 'expired', got: 2 } }))
    socket.receive(['~wse:welcome', null, null])
    const { code, details } = await next
    assert.deepEqual([code, details.arrived], [WSE_ERROR.RP_DISCONNECT, true])
    await until(isClosed)
    void client.close()
  })

  test('a call that is given up before it has been sent never is, and needs no cancel', async () => {
    const { client, socket } = await resumable()
    const controller = new AbortController()
    const call = failure(client.call('a', 1, { signal: controller.signal }))
    controller.abort()
    await call
    socket.receive(ext({ id: 's-1', got: 2 }))
    socket.receive(['~wse:welcome', null, null])
    await settled()
    assert.deepEqual(socket.read(), [['~wse:gap', 1, null]])
    void client.close()
  })
})

describe('procedures of ours', () => {
  const served = async (procedures, { upload = false } = {}) => {
    const all = await readyClient(CALLS)
    for (const [name, fn] of Object.entries(procedures)) all.client.register(name, fn, { upload })
    return { ...all, call: (name, options, stamp = 's', payload = null) => all.socket.receive(options ? ['~wse:call', [name, payload, options], stamp] : [name, payload, stamp]) }
  }

  test('see the deadline: what the server announces, or says with the call', async (t) => {
    t.mock.timers.enable({ apis: ['setTimeout', 'Date'], now: 1_000_000 })
    const seen = []
    const { call } = await served({ p: (_, { deadline }) => seen.push(deadline - Date.now()) })
    call('p')
    for (const t of [5, 0, 0.5]) call('p', { t })
    assert.deepEqual(seen, [20_000, 5000, Infinity, 500])
    const without = []
    const plain = await readyClient()
    plain.client.register('p', (_, { deadline, signal }) => without.push(deadline, signal.aborted))
    plain.socket.receive(['p', null, 1])
    assert.deepEqual(without, [Infinity, false])
  })

  for (const how of ['cancel', 'deadline', 'end of the connection']) {
    test(`are told of the ${how}, and answer nothing`, async (t) => {
      withTimers(t)
      let signal
      let finish
      const { call, socket, errors } = await served({
        slow: (_, context) => {
          signal = context.signal
          return new Promise((resolve) => (finish = resolve))
        },
        obeys: (_, { signal }) => new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason))),
        fails: (_, { signal }) => new Promise((_, reject) => signal.addEventListener('abort', () => reject(new Error('bug')))),
      })
      for (const [index, name] of ['slow', 'obeys', 'fails'].entries()) call(name, { t: 5 }, index + 1)
      if (how === 'cancel') for (const stamp of [1, 2, 3, 3]) socket.receive(['~wse:cancel', null, stamp])
      else if (how === 'deadline') await pass(t, 5)
      else socket.gone(1006)
      assert.ok(signal.aborted)
      finish('late')
      await settled()
      assert.deepEqual(socket.read(), [])
      assert.deepEqual(errors.map(({ code, cause }) => [code, cause?.message]), [[WSE_ERROR.RP_EXECUTION_FAILED, 'bug']])
    })
  }

  test('a plain call with the stamp of a stream that goes on leaves it alone', async () => {
    let signal
    const { call, socket } = await served({
      async *ticks(_, context) {
        signal = context.signal
        yield* [1, 2, 3]
      },
      plain: () => 'ok',
    })
    call('ticks', { n: 1 })
    await written(socket)
    call('plain')
    assert.deepEqual(socket.read(), [['~wse:response', 'ok', 's']])
    socket.receive(['~wse:cancel', null, 's'])
    assert.ok(signal.aborted)
  })

  test('an answer ends the call: nothing aborts afterwards', async (t) => {
    withTimers(t)
    const signals = []
    const { call, socket } = await served({ p: async (_, { signal }) => void signals.push(signal), q: (_, { signal }) => void signals.push(signal) })
    call('p', { t: 5 }, 1)
    call('q', { t: 5 }, 2)
    await settled()
    await pass(t, 60)
    for (const stamp of [1, 2]) socket.receive(['~wse:cancel', null, stamp])
    socket.gone(1006)
    assert.deepEqual(signals.map(({ aborted }) => aborted), [false, false])
  })

  test('progress is sent if it is wanted, and the newest while the socket is full', async (t) => {
    await import('../wse-streams.js')
    withTimers(t)
    let progress
    let finish
    const { call, socket } = await served({
      job: (_, context) => {
        progress = (value) => context.progress(value)
        return new Promise((resolve) => (finish = resolve))
      },
    })
    call('job')
    progress(1)
    finish()
    await settled()
    assert.deepEqual(socket.read(), [['~wse:response', null, 's']])
    progress = null
    call('job', { p: 1 })
    await until(() => progress)
    progress(1)
    socket.bufferedAmount = 1 << 20
    progress(2)
    progress(3)
    await pass(t, 1)
    assert.deepEqual(socket.read(), [['~wse:progress', 1, 's']])
    socket.bufferedAmount = 0
    await pass(t, 1)
    assert.deepEqual(socket.read(), [['~wse:progress', 3, 's']])
    assert.throws(() => progress(1n), TypeError)
    finish('done')
    await settled()
    progress(4)
    assert.deepEqual(await written(socket), [['~wse:response', 'done', 's']])
  })

  for (const [kind, ticks] of Object.entries({
    async *async (count) {
      for (let n = 0; n < count; n++) yield n
    },
    *plain (count) {
      for (let n = 0; n < count; n++) yield n
    },
    'a promise of one': async (count) => Array(count).keys(),
  })) {
    test(`what a generator yields goes as the server takes it: ${kind}`, async () => {
      const { call, socket } = await served({ ticks })
      call('ticks', { n: 2 }, 7, 5)
      assert.deepEqual(await written(socket, 2), [['~wse:item', 0, 7], ['~wse:item', 1, 7]])
      for (const nonsense of [0, -1, 1.5, '2', null]) socket.receive(['~wse:more', nonsense, 7])
      await quiet(socket)
      socket.receive(['~wse:more', 1, 7])
      assert.deepEqual(await written(socket), [['~wse:item', 2, 7]])
      socket.receive(['~wse:more', 2 ** 31, 7])
      assert.deepEqual(await written(socket, 3), [['~wse:item', 3, 7], ['~wse:item', 4, 7], ['~wse:response', null, 7]])
    })
  }

  test('credit is bounded', async () => {
    let made = 0
    const { call, socket } = await served({
      *all() {
        for (;;) yield made++
      },
    })
    call('all', { n: 2 ** 31 })
    await until(() => made >= 256)
    for (let n = 0; n < 3; n++) await settled()
    assert.equal(socket.read().length, 256)
    for (let n = 0; n < 9; n++) socket.receive(['~wse:more', 2 ** 31, 's'])
    await until(() => made >= 512)
    for (let n = 0; n < 3; n++) await settled()
    assert.equal(socket.read().length, 256)
    socket.receive(['~wse:cancel', null, 's'])
  })

  test('one that is cancelled sees the signal first, and is closed', async () => {
    const told = []
    const { call, socket, errors } = await served({
      async *tail(_, { signal }) {
        try {
          yield 1
          await new Promise((resolve) => signal.addEventListener('abort', resolve))
          told.push('aborted')
          yield 2
          told.push('went on')
        } finally {
          told.push('closed')
        }
      },
    })
    call('tail', { n: 8 })
    await written(socket)
    socket.receive(['~wse:cancel', null, 's'])
    await until(() => told.includes('closed'))
    assert.deepEqual(told, ['aborted', 'closed'])
    await quiet(socket)
    assert.deepEqual(errors, [])
  })

  test('one that waits for credit is closed when the connection ends', async () => {
    let isClosed = false
    const { call, socket } = await served({
      *tail() {
        try {
          for (;;) yield 1
        } finally {
          isClosed = true
        }
      },
    })
    call('tail', { n: 1 })
    await written(socket)
    socket.gone(1006)
    await until(() => isClosed)
    assert.deepEqual(socket.read(), [])
  })

  test('one that ignores the signal holds nobody up, and what its end throws is reported', async () => {
    let isAsked = false
    let fail
    const { client, call, socket, errors } = await served({
      async *stuck() {
        isAsked = true
        await new Promise(() => {})
        yield 1
      },
      async *late() {
        try {
          yield 1
          await new Promise((resolve) => (fail = resolve))
        } finally {
          // eslint-disable-next-line no-unsafe-finally
          throw new Error('finally')
        }
      },
    })
    call('stuck', { n: 1 }, 1)
    await until(() => isAsked)
    call('late', { n: 8 }, 2)
    await until(() => fail)
    socket.read()
    for (const stamp of [1, 2]) socket.receive(['~wse:cancel', null, stamp])
    await quiet(socket)
    fail()
    await until(() => errors.length)
    assert.deepEqual(errors.map(({ cause }) => cause.message), ['finally'])
    client.register('add', () => 3)
    call('add', null, 3)
    assert.deepEqual(await written(socket), [['~wse:response', 3, 3]])
  })

  test('one that is cancelled before its module has come never runs', async () => {
    let hasRun = false
    const { call, socket } = await served({
      *p() {
        hasRun = true
        yield 1
      },
    })
    call('p', { n: 1 })
    socket.receive(['~wse:cancel', null, 's'])
    await quiet(socket)
    assert.equal(hasRun, false)
  })

  test('what it throws, and what cannot be encoded, comes after the items', async () => {
    let isClosed = false
    const { call, socket, errors } = await served({
      async *throws() {
        yield 1
        throw new WseError('app.broken', { a: 1 })
      },
      *odd() {
        try {
          yield 1
          yield 1n
        } finally {
          isClosed = true
        }
      },
    })
    for (const name of ['throws', 'odd']) {
      call(name, { n: 8 })
      const [item, [type, { code, details }]] = await written(socket, 2)
      assert.deepEqual([item, type], [['~wse:item', 1, 's'], '~wse:response-err'])
      if (name === 'throws') assert.deepEqual([code, details], ['app.broken', { a: 1, rp: name, rpc: name }])
      else assert.equal(details.origin.name, 'TypeError')
    }
    await until(() => isClosed)
    await quiet(socket)
    assert.deepEqual(codes(errors), [WSE_ERROR.RP_EXECUTION_FAILED, WSE_ERROR.RP_EXECUTION_FAILED])
  })

  test('a stream is not called plainly, nor a plain procedure as a stream', async () => {
    const { call, socket, errors } = await served({
      *stream() {
        yield 1
      },
      async *later() {
        yield 1
      },
      plain: () => [1, 2],
    })
    call('stream', null, 1)
    call('later', { t: 5 }, 2)
    call('plain', { n: 8 }, 3)
    call('none', { n: 8 }, 4)
    const answers = (await written(socket, 4)).map(([, { code, details: { rp } }, stamp]) => [stamp, code, rp]).sort()
    const { RP_IS_A_STREAM, RP_NOT_A_STREAM, RP_NOT_REGISTERED } = WSE_ERROR
    assert.deepEqual(answers, [[1, RP_IS_A_STREAM, 'stream'], [2, RP_IS_A_STREAM, 'later'], [3, RP_NOT_A_STREAM, 'plain'], [4, RP_NOT_REGISTERED, 'none']])
    assert.deepEqual(errors, [])
  })

  test('take uploads, and grant as they take', async () => {
    const got = []
    const { call, socket } = await served({
      import: async (meta, { items }) => {
        for await (const item of items) got.push(item)
        return [meta, got.length]
      },
    }, { upload: true })
    call('import', { up: 1 }, 's', 'meta')
    assert.deepEqual(await written(socket), [['~wse:want', 32, 's']])
    for (let n = 0; n < 16; n++) socket.receive(['~wse:put', n, 's'])
    assert.deepEqual(await written(socket), [['~wse:want', 16, 's']])
    socket.receive(['~wse:end', null, 's'])
    socket.receive(['~wse:end', null, 's'])
    assert.deepEqual(await written(socket), [['~wse:response', ['meta', 16], 's']])
    socket.receive(['~wse:put', 1, 's'])
    await quiet(socket)
  })

  test('an upload beyond the credit ends the call', async () => {
    let signal
    const { call, socket, errors } = await served({
      import: (_, context) => {
        signal = context.signal
        return new Promise(() => {})
      },
    }, { upload: true })
    call('import', { up: 1 })
    await written(socket)
    for (let n = 0; n < 33; n++) socket.receive(['~wse:put', n, 's'])
    assert.deepEqual(socket.read().map(([type, { code }]) => [type, code]), [['~wse:response-err', WSE_ERROR.LIMIT_EXCEEDED]])
    assert.ok(signal.aborted)
    socket.receive(['~wse:put', 1, 's'])
    assert.deepEqual(socket.read(), [])
    assert.equal(errors.length, 1)
  })

  test('a cancelled upload fails where it is read', async () => {
    let caught
    const { call, socket, errors } = await served({
      import: async (_, { items }) => {
        try {
          for await (const item of items) void item
        } catch (error) {
          caught = error
          throw error
        }
      },
    }, { upload: true })
    call('import', { up: 1 })
    await written(socket)
    socket.receive(['~wse:cancel', null, 's'])
    await until(() => caught)
    assert.equal(caught.name, 'AbortError')
    await quiet(socket)
    assert.deepEqual(errors, [])
  })

  test('an echo: both directions at once', async () => {
    const { call, socket } = await served({
      async *echo(_, { items }) {
        for await (const item of items) yield item
      },
    }, { upload: true })
    call('echo', { n: 8, up: 1 })
    await written(socket)
    for (const item of ['a', 'b']) socket.receive(['~wse:put', item, 's'])
    assert.deepEqual(await written(socket, 2), [['~wse:item', 'a', 's'], ['~wse:item', 'b', 's']])
    socket.receive(['~wse:end', null, 's'])
    assert.deepEqual(await written(socket), [['~wse:response', null, 's']])
  })

  test('a call that makes no sense breaks the protocol', async () => {
    const nonsense = [null, 'p', {}, [], ['p'], ['p', 1], ['p', 1, null], ['p', 1, 5], ['p', 1, { t: -1 }], ['p', 1, { n: 0 }], ['p', 1, { n: -5 }]]
    for (const payload of nonsense) {
      const { socket, errors } = await readyClient(CALLS)
      socket.receive(['~wse:call', payload, 1])
      assert.deepEqual([codes(errors), socket.closed], [[WSE_ERROR.PROTOCOL_VIOLATION], [1000, 'wse.protocol-error']], JSON.stringify(payload))
    }
    const { call, socket } = await served({ p: () => new Promise(() => {}) })
    call('p', { t: 5 }, 1)
    assert.equal(socket.closed, null)
    call('p', { t: 5 }, 1)
    assert.deepEqual(socket.closed, [1000, 'wse.protocol-error'])
  })
})
