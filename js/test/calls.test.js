// Calls in both directions.
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { WSE_ERROR, WseError } from '../wse.js'
import { codes, failure, fakeClient, readyClient, settled, withTimers } from './support/fake.js'

describe('calls', () => {
  test('a timeout leaves nothing behind, and a late answer does nothing', async (t) => {
    withTimers(t)
    const { client, socket, errors } = await readyClient({ tO: 2 })
    const first = failure(client.call('a'))
    const second = failure(client.call('b', null, { tO: 5 }))
    t.mock.timers.tick(2000)
    assert.deepEqual((await first).details, { rp: 'a', timeout: 2, at: 'caller' })
    t.mock.timers.tick(3000)
    assert.equal((await second).code, WSE_ERROR.RP_TIMEOUT)
    socket.receive(['~wse:response', 1, 1])
    socket.receive(['~wse:response', 1, 1])
    assert.deepEqual(errors, [])
  })

  test('one that cannot be encoded fails, and the next one works', async () => {
    const { client, socket } = await readyClient()
    const error = await failure(client.call('a', 1n))
    assert.deepEqual([error.code, error.details], [WSE_ERROR.RP_SEND_FAILED, { rp: 'a' }])
    assert.throws(() => client.send('a', 1n), { code: WSE_ERROR.MSG_PROCESSING_ERROR })
    assert.deepEqual(socket.read(), [])
  })

  test('one whose write raises fails, and leaves nothing behind', async (t) => {
    const { client, socket } = await readyClient()
    withTimers(t)
    const full = t.mock.method(socket, 'send', () => {
      throw new Error('full')
    })
    const error = await failure(client.call('a', 1))
    assert.deepEqual([error.code, error.details, error.cause.message], [WSE_ERROR.RP_SEND_FAILED, { rp: 'a' }, 'full'])
    full.mock.restore()
    t.mock.timers.tick(60_000)
    socket.receive(['~wse:response', 'late', 1])
    const next = client.call('a', 2)
    const [[, , stamp]] = socket.read()
    socket.receive(['~wse:response', 'mine', stamp])
    assert.equal(await next, 'mine')
  })

  test('an answer on another connection never settles a call', async (t) => {
    withTimers(t)
    const { client, Socket, socket } = await readyClient({ re: true })
    const lost = failure(client.call('a'))
    socket.gone(1006)
    assert.equal((await lost).code, WSE_ERROR.RP_DISCONNECT)
    t.mock.timers.tick(1000)
    Socket.last.open()
    Socket.last.receive(['~wse:welcome'])
    const call = client.call('b')
    assert.equal(Socket.last.read().at(-1)[2], 1)
    Socket.last.receive(['~wse:response', 'right', 1])
    assert.equal(await call, 'right')
  })

  test('async procedures answer when they are done, and not after the end', async () => {
    const { client, socket, errors } = await readyClient()
    const finish = []
    client.register('slow', (payload) => new Promise((resolve) => finish.push(() => resolve(payload))))
    socket.receive(['slow', 'a', 1])
    socket.receive(['slow', 'b', 2])
    finish[1]()
    await settled()
    assert.deepEqual(socket.read(), [['~wse:response', 'b', 2]])
    socket.gone(1006)
    finish[0]()
    await settled()
    assert.deepEqual([socket.read(), errors], [[], []])
  })

  test('what cannot be encoded is answered with an error', async () => {
    const { client, socket, errors } = await readyClient()
    client.register('big', () => 1n)
    client.register('later', async () => 1n)
    client.register('error', () => {
      throw new WseError('app', { big: 1n, small: 1 })
    })
    client.register('odd', () => {
      throw Object.create(null)
    })
    client.register('text', () => {
      throw 'oops'
    })
    for (const name of ['big', 'later', 'error', 'odd', 'text']) socket.receive([name, null, name])
    await settled()
    const answers = Object.fromEntries(socket.read().map(([, payload, stamp]) => [stamp, payload]))
    assert.equal(answers.big.details.origin.name, 'TypeError')
    assert.equal(answers.later.details.origin.name, 'TypeError')
    assert.deepEqual(answers.error, { code: 'app', details: { small: 1, rp: 'error', rpc: 'error' } })
    assert.equal(answers.odd.code, WSE_ERROR.RP_EXECUTION_FAILED)
    assert.deepEqual(answers.text.details.origin, { name: 'string', message: 'oops' })
    assert.deepEqual(codes(errors), Array(5).fill(WSE_ERROR.RP_EXECUTION_FAILED))
    assert.ok(errors.every((error) => error.details.rp && error.details.stamp))
  })

  test('stack traces travel in debug mode only', async () => {
    for (const debug of [true, false]) {
      const { client, socket } = await readyClient({ debug })
      client.register('fail', () => {
        throw new Error('x')
      })
      socket.receive(['fail', null, 1])
      assert.equal('stack' in socket.read()[0][1].details.origin, debug)
    }
  })

  test('registering', () => {
    const { client } = fakeClient()
    client.register('a', () => {})
    assert.throws(() => client.register('a', () => {}), { code: WSE_ERROR.RP_ALREADY_REGISTERED })
    client.unregister('a')
    assert.throws(() => client.unregister('a'), { code: WSE_ERROR.RP_NOT_REGISTERED })
    assert.throws(() => client.register('a', 5), TypeError)
    for (const type of [null, undefined, '', {}, [], '~wse:x']) {
      assert.throws(() => client.register(type, () => {}), { code: WSE_ERROR.PROTOCOL_VIOLATION })
    }
  })
})

describe('what procedures throw', () => {
  const answerTo = async (thrown, payload = null) => {
    const { client, socket } = await readyClient()
    client.register('p', () => {
      throw thrown
    })
    socket.receive(['p', payload, 1])
    return socket.read()[0][1]
  }
  const names = { rp: 'p', rpc: 'p' }

  test('objects keep their code and details', async () => {
    const details = { why: 'closed' }
    class AppError extends Error {
      code = 'app.denied'
      details = details
    }
    for (const thrown of [{ code: 'app.denied', details }, new AppError('app.denied'), Object.assign(new Error(''), { code: 'app.denied', details })]) {
      assert.deepEqual(await answerTo(thrown), { code: 'app.denied', details: { ...details, ...names } })
    }
    assert.deepEqual(await answerTo({ code: 'app.denied' }), { code: 'app.denied', details: names })
    assert.deepEqual(await answerTo({ field: 'nope' }), { code: WSE_ERROR.RP_EXECUTION_FAILED, details: { field: 'nope', ...names } })
  })

  test('ordinary exceptions carry their text, and no code that the system gave them', async () => {
    const { code, message, details } = await answerTo(Object.assign(new RangeError('no such file'), { code: 'ENOENT' }))
    assert.deepEqual([code, message], [WSE_ERROR.RP_EXECUTION_FAILED, 'no such file'])
    assert.deepEqual(details, { ...names, origin: { name: 'RangeError', message: 'no such file' } })
  })

  test('the payload comes back if it is small', async () => {
    for (const [length, comes] of [[900, true], [1100, false]]) {
      const payload = 'ü'.repeat(length / 2)
      assert.equal('payload' in (await answerTo(new Error('x'), payload)).details, comes)
    }
  })

  test('an error answer keeps its details without a code', async () => {
    const { client, socket } = await readyClient()
    const call = failure(client.call('a'))
    socket.receive(['~wse:response-err', { message: 'text', details: { a: 1 } }, 1])
    const { code, details, message } = await call
    assert.deepEqual([code, details, message], [WSE_ERROR.RP_EXECUTION_FAILED, { a: 1 }, 'text'])
  })
})
