// Sessions that outlive their connection, at the client: on fake sockets, with the wire text of the extension `resume`.
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { WSE_ERROR, WSE_REASON, WSE_STATUS } from '../wse.js'
import { Ledger } from '../wse-resume.js'
import { failure, fakeClient, pass, settled, statuses, withTimers } from './support/fake.js'

const ANSWER = { id: 's-1', key: 'k', window: 60, bytes: 10_000, messages: 100 }
const settledAll = async () => {
  for (let turn = 0; turn < 5; turn++) await settled()
}

/** The server plays: it opens the socket and says welcome, with what it answers to `resume`. Returns what the client asked. */
const admit = async (Socket, answer, welcome = 'hello') => {
  // The module is loaded, and timers at once have run.
  for (let turn = 0; Socket.last?.readyState !== 0 && turn < 10_000; turn++) await settled()
  const socket = Socket.last
  socket.open()
  const [[type, { ext }]] = socket.read()
  assert.equal(type, '~wse:hi')
  if (answer) socket.receive(['~wse:ext', { resume: answer }, null])
  socket.receive(['~wse:welcome', welcome, null])
  await settledAll()
  return ext.resume
}

/** A client in a session that outlives its connection. */
const resumable = async (t, options = {}, answer = ANSWER) => {
  withTimers(t)
  const all = fakeClient({ re: true, resume: true, tO: 10, backoff: { base: 0.5, cap: 0.5, random: () => 1 }, ...options })
  const told = []
  for (const name of ['ready', 'resumed', 'lost']) all.client.when[name]((value) => told.push([name, value]))
  const connecting = all.client.connect('ann')
  const asked = await admit(all.Socket, answer)
  assert.equal(await connecting, 'hello')
  assert.deepEqual(told.splice(0), [['ready', 'hello']])
  all.events.length = 0
  return { ...all, told, asked, socket: all.Socket.last }
}

/** The socket is lost, the client comes back, and the server goes on, having got that many messages. */
const back = async (t, { Socket }, answer, welcome = 'again') => {
  Socket.last.gone(1006)
  await pass(t, 0.5)
  return admit(Socket, answer, welcome)
}

const chat = (n) => ['chat', n, null]

test('nothing is asked for without the option, with a shared connection, or with a protocol that has no names for it', async () => {
  const { internal_types } = fakeClient().client.protocol
  const protocol = { name: 'own', internal_types, extensions: { ext: '~wse:ext', auth: '~wse:auth', refused: '~wse:refused' }, pack: JSON.stringify, unpack: JSON.parse }
  for (const options of [{}, { resume: true, share: true }, { resume: true, protocol: { ...protocol, pack: ({ type, payload, stamp }) => JSON.stringify([type, payload, stamp]) } }]) {
    const { client, Socket } = fakeClient(options)
    const connecting = failure(client.connect('ann'))
    while (!Socket.all.length) await settled()
    Socket.last.open()
    assert.equal(Socket.last.read()[0][1].ext.resume, undefined)
    assert.equal((await failure(client.flush())).code, WSE_ERROR.UNSUPPORTED)
    void client.close()
    await connecting
  }
})

test('a server without the extension gives a plain connection', async (t) => {
  const all = await resumable(t, {}, null)
  const call = failure(all.client.call('add', 1))
  all.socket.gone(1006)
  assert.deepEqual((await call).details, { rp: 'add', disconnected: [1006, ''] })
  assert.throws(() => all.client.send('chat'), { code: WSE_ERROR.CLIENT_NOT_READY })
  assert.equal((await failure(all.client.flush())).code, WSE_ERROR.UNSUPPORTED)
})

describe('a return', () => {
  test('asks for the session, and brings what either side has missed, once and in order', async (t) => {
    const all = await resumable(t)
    const { client, socket, told } = all
    assert.deepEqual([all.asked, client.recovered], [{}, false])
    const heard = []
    client.channel.on('chat', (n) => heard.push(n))
    for (let n = 0; n < 3; n++) {
      client.send('chat', n)
      socket.receive(chat(n))
    }
    socket.receive(['~wse:ack', 1, null])
    socket.gone(1006)
    assert.equal(client.status, WSE_STATUS.RE_CONNECTING)
    client.send('chat', 'while away')
    await pass(t, 0.5)
    assert.deepEqual(await admit(all.Socket, { id: 's-1b', got: 2 }, 'again'), { id: 's-1', key: 'k', got: 3, sent: [2, 3] })
    assert.deepEqual(all.Socket.last.read(), [chat(2), chat('while away')])
    assert.deepEqual(told, [['resumed', 'again']])
    assert.equal(client.recovered, true)
    all.Socket.last.receive(chat(3))
    assert.deepEqual(heard, [0, 1, 2, 3])
    assert.deepEqual(await back(t, all, { id: 's-1c', got: 4 }), { id: 's-1b', key: 'k', got: 4, sent: [3, 4] })
    assert.deepEqual(all.Socket.last.read(), [])
    assert.deepEqual(statuses(all.events), ['OFFLINE', 'RE_CONNECTING', 'READY', 'OFFLINE', 'RE_CONNECTING', 'READY'])
  })

  test('is possible without a message before, again and again', async (t) => {
    const all = await resumable(t)
    for (let round = 0; round < 7; round++) {
      assert.deepEqual(await back(t, all, { id: 's-1', got: 0 }), { id: 's-1', key: 'k', got: 0, sent: [1, 0] })
    }
    assert.deepEqual(all.told.map(([name]) => name), Array(7).fill('resumed'))
  })

  test('whose answer is lost is repeated with the same numbers', async (t) => {
    const all = await resumable(t)
    all.client.send('chat', 1)
    all.socket.gone(1006)
    for (let attempt = 0; attempt < 2; attempt++) {
      await pass(t, 0.5)
      all.Socket.last.open()
      assert.deepEqual(all.Socket.last.read()[0][1].ext.resume, { id: 's-1', key: 'k', got: 0, sent: [1, 1] })
      all.Socket.last.gone(1006)
    }
    await pass(t, 0.5)
    await admit(all.Socket, { id: 's-1', got: 0 })
    assert.deepEqual(all.Socket.last.read(), [chat(1)])
  })

  test('hears nothing of the old socket', async (t) => {
    const all = await resumable(t)
    const heard = []
    all.client.channel.on('chat', (n) => heard.push(n))
    await back(t, all, { id: 's-1', got: 0 })
    all.socket.receive(chat('from the grave'))
    all.socket.gone(1000)
    assert.deepEqual(heard, [])
    assert.equal(all.client.status, 'READY')
    assert.deepEqual((await back(t, all, { id: 's-1', got: 0 })).got, 0)
  })

  test('serves who has begun to listen meanwhile, and no earlier listener', async (t) => {
    const all = await resumable(t)
    all.socket.gone(1006)
    const late = []
    all.client.when.ready((welcome) => late.push(welcome))
    const waits = [all.client.when.ready.wait(), all.client.waitReady()]
    await pass(t, 0.5)
    all.Socket.last.gone(1006)
    await pass(t, 0.5)
    await admit(all.Socket, { id: 's-1', got: 0 }, 'again')
    assert.deepEqual([late, ...(await Promise.all(waits))], [['again'], ['again'], 'again'])
    assert.deepEqual(all.told, [['resumed', 'again']])
    await back(t, all, { id: 's-1', got: 0 })
    assert.deepEqual(late, ['again'])
  })

  test('authenticates anew, with a fresh identity, and asks for the window that was asked for', async (t) => {
    let count = 0
    withTimers(t)
    const all = fakeClient({ re: true, resume: { window: 5 }, backoff: { base: 0.5, cap: 0.5, random: () => 1 } })
    void all.client.connect(() => `token-${++count}`)
    assert.deepEqual(await admit(all.Socket, ANSWER), { window: 5 })
    all.socket = all.Socket.last
    all.socket.gone(1006)
    await pass(t, 0.5)
    await settledAll()
    all.Socket.last.open()
    const [[, { identity, ext }]] = all.Socket.last.read()
    assert.deepEqual([identity, ext.resume], ['token-2', { window: 5, id: 's-1', key: 'k', got: 0, sent: [1, 0] }])
  })

  test('that got more than was sent, or less than was confirmed, breaks the protocol', async (t) => {
    for (const got of [3, 0, -1, 1.5, '1', null]) {
      await t.test(String(got), async (t) => {
        const all = await resumable(t)
        all.client.send('chat', 1)
        all.client.send('chat', 2)
        all.socket.receive(['~wse:ack', 1, null])
        await back(t, all, { id: 's-1', got })
        assert.deepEqual(all.Socket.last.closed, [1000, WSE_REASON.PROTOCOL_ERROR])
        assert.equal(all.errors[0].code, WSE_ERROR.PROTOCOL_VIOLATION)
        assert.equal(all.told.at(-1)[0], 'lost')
      })
    }
  })
})

describe('acks', () => {
  test('confirm at once after 64 messages, and fewer after 2 seconds', async (t) => {
    const { socket } = await resumable(t)
    for (let n = 1; n <= 63; n++) socket.receive(chat(n))
    assert.deepEqual(socket.read(), [])
    socket.receive(chat(64))
    assert.deepEqual(socket.read(), [['~wse:ack', 64, null]])
    socket.receive(chat(65))
    await pass(t, 1.9)
    assert.deepEqual(socket.read(), [])
    await pass(t, 0.2)
    assert.deepEqual(socket.read(), [['~wse:ack', 65, null]])
    await pass(t, 10)
    assert.deepEqual(socket.read(), [])
  })

  test('come when they are asked for; calls and answers count, and what is ours does not', async (t) => {
    const { client, socket } = await resumable(t)
    client.register('twice', (n) => 2 * n)
    const call = client.call('add', 1)
    socket.receive(['~wse:response', 'sum', 1])
    socket.receive(['twice', 2, 's'])
    socket.receive(['~wse:gap', 3, null])
    socket.receive(['~wse:ask', null, null])
    assert.equal(await call, 'sum')
    assert.deepEqual(socket.read(), [['add', 1, 1], ['~wse:response', 4, 's'], ['~wse:ack', 5, null]])
    socket.receive(['~wse:ask', null, null])
    assert.deepEqual(socket.read(), [['~wse:ack', 5, null]])
  })

  test('a message is counted when it is dispatched, also one whose listener raises', async (t) => {
    const all = await resumable(t)
    all.client.channel.on('chat', () => {
      throw new Error('no')
    })
    all.socket.receive(chat(1))
    assert.equal((await back(t, all, { id: 's-1', got: 0 })).got, 1)
  })

  for (const message of [['~wse:ack', 2], ['~wse:ack', -1], ['~wse:ack', 'x'], ['~wse:ack', null], ['~wse:ack', 0.5], ['~wse:gap', 0], ['~wse:gap', -1], ['~wse:gap', null], ['~wse:gap', 2 ** 53]]) {
    test(`${JSON.stringify(message)} of what cannot be ends the connection`, async (t) => {
      const { client, socket, errors } = await resumable(t)
      client.send('chat', 1)
      socket.receive(message)
      assert.deepEqual([socket.closed, errors[0].code], [[1000, WSE_REASON.PROTOCOL_ERROR], WSE_ERROR.PROTOCOL_VIOLATION])
    })
  }

  test('one below the last ends it, too', async (t) => {
    const { client, socket } = await resumable(t)
    for (let n = 0; n < 3; n++) client.send('chat', n)
    socket.receive(['~wse:ack', 2, null])
    socket.receive(['~wse:ack', 2, null])
    assert.equal(socket.closed, null)
    socket.receive(['~wse:ack', 1, null])
    assert.deepEqual(socket.closed, [1000, WSE_REASON.PROTOCOL_ERROR])
  })
})

describe('calls', () => {
  test('go on over the outage, in both directions', async (t) => {
    const all = await resumable(t)
    const { client, socket } = all
    const [asked, waiting] = [client.call('a', 1), client.call('b', 2)]
    let answer
    client.register('slow', () => new Promise((resolve) => (answer = resolve)))
    socket.receive(['slow', null, 7])
    socket.gone(1006)
    answer('done')
    await settled()
    const later = client.call('c', 3)
    await pass(t, 0.5)
    await admit(all.Socket, { id: 's-1', got: 1 })
    assert.deepEqual(all.Socket.last.read(), [['b', 2, 2], ['~wse:response', 'done', 7], ['c', 3, 3]])
    for (const stamp of [3, 1, 2]) all.Socket.last.receive(['~wse:response', `answer ${stamp}`, stamp])
    assert.deepEqual(await Promise.all([asked, waiting, later]), ['answer 1', 'answer 2', 'answer 3'])
  })

  test('that time out before they have arrived never do', async (t) => {
    const all = await resumable(t)
    const { client, socket } = all
    client.send('chat', 1)
    const unknown = failure(client.call('a', null, { tO: 3 }))
    client.send('chat', 2)
    socket.gone(1006)
    const never = failure(client.call('b', null, { tO: 3 }))
    client.send('chat', 3)
    await pass(t, 0.4)
    await pass(t, 2.7)
    assert.deepEqual([await unknown, await never].map(({ code, details }) => [code, details.arrived]), [[WSE_ERROR.RP_TIMEOUT, null], [WSE_ERROR.RP_TIMEOUT, false]])
    await admit(all.Socket, { id: 's-1', got: 1 })
    assert.deepEqual(all.Socket.last.read(), [['~wse:gap', 1, null], chat(2), ['~wse:gap', 1, null], chat(3)])
    const arrived = failure(client.call('c', null, { tO: 3 }))
    all.Socket.last.receive(['~wse:ack', 6, null])
    await pass(t, 4)
    assert.equal((await arrived).details.arrived, true)
  })

  test('have stamps of their own in all of a session, so that late answers settle none of them', async (t) => {
    const all = await resumable(t)
    const late = failure(all.client.call('a', 1, { tO: 1 }))
    await pass(t, 1)
    assert.equal((await late).code, WSE_ERROR.RP_TIMEOUT)
    await back(t, all, { id: 's-1', got: 1 })
    const call = all.client.call('b', 2)
    assert.deepEqual(all.Socket.last.read(), [['b', 2, 2]])
    all.Socket.last.receive(['~wse:response', 'late', 1])
    all.Socket.last.receive(['~wse:response', 'mine', 2])
    assert.equal(await call, 'mine')
  })

  test('that fail with their session say whether they have arrived', async (t) => {
    const all = await resumable(t)
    const arrived = (call) => failure(call).then(({ code, details }) => [code, details.disconnected, details.arrived])
    const calls = [1, 2].map((n) => arrived(all.client.call('a', n)))
    all.socket.gone(1006)
    calls.push(arrived(all.client.call('a', 3)))
    await pass(t, 0.5)
    await admit(all.Socket, { ...ANSWER, id: 's-2', lost: { why: 'expired', got: 1 } })
    assert.deepEqual(await Promise.all(calls), [true, false, false].map((each) => [WSE_ERROR.RP_DISCONNECT, [1006, ''], each]))
    const unknown = arrived(all.client.call('a', 4))
    await back(t, all, { ...ANSWER, id: 's-3', lost: { why: 'unknown', got: null } })
    assert.deepEqual(await unknown, [WSE_ERROR.RP_DISCONNECT, [1006, ''], null])
  })
})

describe('a loss', () => {
  test('names what the server has not had, and it can be sent again', async (t) => {
    const all = await resumable(t)
    const { client, socket, told } = all
    for (let n = 1; n <= 3; n++) client.send('chat', n)
    void failure(client.call('a', 'a call is settled itself'))
    socket.gone(1006)
    client.send('note', { text: 'while away' })
    const resent = []
    client.when.lost((loss) => {
      loss.resend()
      resent.push(client.status)
    })
    await pass(t, 0.5)
    await admit(all.Socket, { ...ANSWER, id: 's-2', key: 'l', lost: { why: 'expired', got: 1 } }, 'anew')
    const [[, loss], ready] = told
    assert.deepEqual(told.map(([name]) => name), ['lost', 'ready'])
    const { resend, ...rest } = loss
    const unsent = [{ type: 'chat', payload: 2 }, { type: 'chat', payload: 3 }, { type: 'note', payload: { text: 'while away' } }]
    assert.deepEqual(rest, { why: 'expired', uncertain: [], unsent })
    assert.deepEqual([typeof resend, ready[1], resent, client.recovered], ['function', 'anew', ['READY'], false])
    assert.deepEqual(all.Socket.last.read(), [chat(2), chat(3), ['note', { text: 'while away' }, null]])
    // The new session counts from 1.
    assert.deepEqual(await back(t, all, { id: 's-2', got: 3 }), { id: 's-2', key: 'l', got: 0, sent: [1, 3] })
  })

  test('without knowledge of what has arrived, all that was sent is uncertain', async (t) => {
    const all = await resumable(t)
    for (let n = 1; n <= 3; n++) all.client.send('chat', n)
    all.socket.receive(['~wse:ack', 1, null])
    all.socket.gone(1006)
    all.client.send('chat', 4)
    await pass(t, 0.5)
    await admit(all.Socket, { ...ANSWER, lost: { why: 'unknown', got: null } })
    const [, { why, uncertain, unsent, resend }] = all.told[0]
    assert.deepEqual([why, ...[uncertain, unsent].map((all) => all.map(({ payload }) => payload))], ['unknown', [2, 3], [4]])
    resend()
    assert.deepEqual(all.Socket.last.read(), [chat(4)])
    resend({ uncertain: true })
    assert.deepEqual(all.Socket.last.read(), [chat(2), chat(3), chat(4)])
  })

  test('is told as well by a server that does not have the extension any more', async (t) => {
    const all = await resumable(t)
    await back(t, all, null)
    assert.deepEqual(all.told.map(([name, { why }]) => [name, why]), [['lost', 'off'], ['ready', undefined]])
    assert.equal((await failure(all.client.flush())).code, WSE_ERROR.UNSUPPORTED)
  })

  for (const [when, gone] of [['while connected', (all) => all.socket], ['on return', (all) => all.Socket.last]]) {
    test(`is told when a close ends the session ${when}`, async (t) => {
      const all = await resumable(t)
      const { client, told } = all
      client.send('chat', 1)
      const call = failure(client.call('a'))
      const flushed = failure(client.flush())
      if (when === 'on return') {
        all.socket.gone(1006)
        await pass(t, 0.5)
        await settledAll()
        all.Socket.last.open()
      }
      gone(all).gone(1000, WSE_REASON.BY_SERVER)
      assert.deepEqual(told.map(([name, { why, uncertain }]) => [name, why, uncertain]), [['lost', 'ended', [{ type: 'chat', payload: 1 }]]])
      assert.equal((await call).code, WSE_ERROR.RP_DISCONNECT)
      assert.equal((await flushed).code, WSE_ERROR.SESSION_LOST)
      assert.equal(client.gaveUp.details.reason, WSE_REASON.BY_SERVER)
      assert.throws(() => client.send('chat'), { code: WSE_ERROR.CLIENT_NOT_READY })
      assert.throws(() => told[0][1].resend({ uncertain: true }), { code: WSE_ERROR.CLIENT_NOT_READY })
    })
  }

  test('is no news after close or with another identity', async (t) => {
    for (const end of ['close', 'close while away', 'jump']) {
      await t.test(end, async (t) => {
        const all = await resumable(t)
        const { client, told, Socket } = all
        const call = failure(client.call('a'))
        if (end === 'close while away') all.socket.gone(1006)
        if (end === 'jump') void client.jump('ws://elsewhere', 'grace').catch(() => {})
        else void client.close()
        const { code, details } = await call
        assert.deepEqual([code, details.disconnected], [WSE_ERROR.RP_DISCONNECT, end === 'jump' ? [4000, 'jump'] : [1000, WSE_REASON.BY_CLIENT]])
        if (end === 'jump') {
          await pass(t, 1)
          assert.deepEqual(await admit(Socket, ANSWER), {})
        }
        assert.deepEqual(told.filter(([name]) => name === 'lost'), [])
      })
    }
  })

  test('comes when the same message has broken five returns', async (t) => {
    const all = await resumable(t)
    all.client.send('chat', 'poison')
    for (let round = 1; round <= 5; round++) {
      assert.deepEqual((await back(t, all, { id: 's-1', got: 0 })).sent, [1, 1])
      assert.deepEqual(all.Socket.last.read(), [chat('poison')])
    }
    const asked = await back(t, all, ANSWER)
    assert.deepEqual(asked, {})
    assert.deepEqual(all.told.slice(-2).map(([name, { why }]) => [name, why]), [['lost', 'stuck'], ['ready', undefined]])
    assert.deepEqual(all.Socket.last.read(), [])
  })
})

describe('bounds', () => {
  test('while away, no more is taken than the server would keep', async (t) => {
    const all = await resumable(t, { resume: { messages: 3 } })
    all.socket.gone(1006)
    for (let n = 0; n < 3; n++) all.client.send('chat', n)
    assert.throws(() => all.client.send('chat', 3), { code: WSE_ERROR.CLIENT_NOT_READY })
    assert.equal((await failure(all.client.call('a'))).code, WSE_ERROR.CLIENT_NOT_READY)
    await pass(t, 0.5)
    await admit(all.Socket, { id: 's-1', got: 0 })
    assert.deepEqual(all.Socket.last.read().filter(([type]) => type === 'chat'), [0, 1, 2].map(chat))
  })

  test('nor in bytes', async (t) => {
    const all = await resumable(t, { resume: { bytes: 2000 } })
    all.socket.gone(1006)
    all.client.send('chat', 'x'.repeat(2000))
    assert.throws(() => all.client.send('chat', 1), { code: WSE_ERROR.CLIENT_NOT_READY })
  })

  test('a server that reads and does not confirm is asked, and then costs the session, not the connection', async (t) => {
    const all = await resumable(t, { resume: { messages: 10 } })
    for (let n = 1; n <= 6; n++) all.client.send('chat', n)
    assert.deepEqual(all.socket.read().slice(-2), [chat(6), ['~wse:ask', null, null]])
    for (let n = 7; n <= 30; n++) all.client.send('chat', n)
    assert.deepEqual(all.socket.read().filter(([type]) => type === 'chat').length, 24)
    const { sent } = await back(t, all, { ...ANSWER, lost: { why: 'gap', got: 4 } })
    assert.equal(sent[1], 30)
    assert.ok(sent[0] > 5)
    assert.equal(all.told[0][1].why, 'gap')
  })
})

describe('flush', () => {
  test('waits until the server has handled what was sent', async (t) => {
    const { client, socket } = await resumable(t)
    await client.flush()
    client.send('chat', 1)
    client.send('chat', 2)
    let done = false
    const flushed = client.flush().then(() => (done = true))
    client.send('chat', 3)
    assert.deepEqual(socket.read(), [chat(1), chat(2), ['~wse:ask', null, null], chat(3)])
    socket.receive(['~wse:ack', 1, null])
    await settled()
    assert.equal(done, false)
    socket.receive(['~wse:ack', 2, null])
    await flushed
  })

  test('works over an outage, and ends in time', async (t) => {
    const all = await resumable(t)
    all.client.send('chat', 1)
    const late = failure(all.client.flush(1))
    all.socket.gone(1006)
    all.client.send('chat', 2)
    const flushed = all.client.flush()
    await pass(t, 2)
    assert.equal((await late).name, 'TimeoutError')
    await admit(all.Socket, { id: 's-1', got: 0 })
    assert.deepEqual(all.Socket.last.read(), [chat(1), chat(2), ['~wse:ask', null, null]])
    all.Socket.last.receive(['~wse:ack', 2, null])
    await flushed
  })
})

describe('the socket', () => {
  test('of a silent server is asked for an ack, and closed without a code, which the session outlives', async (t) => {
    const all = await resumable(t, { heartbeat: { interval: 5, timeout: 5 } })
    await pass(t, 5)
    assert.deepEqual(all.socket.read(), [['~wse:ask', null, null]])
    await pass(t, 5)
    await settledAll()
    assert.deepEqual(all.socket.closed, [undefined, ''])
    assert.equal(all.client.status, WSE_STATUS.RE_CONNECTING)
  })

  test('is closed for good when the page ends, but not when it may come back', async (t) => {
    const events = new EventTarget()
    const globals = { addEventListener: events.addEventListener.bind(events), removeEventListener: events.removeEventListener.bind(events) }
    Object.assign(globalThis, globals)
    t.after(() => Object.keys(globals).forEach((name) => delete globalThis[name]))
    const all = await resumable(t)
    const hide = (persisted) => events.dispatchEvent(Object.assign(new Event('pagehide'), { persisted }))
    hide(true)
    assert.equal(all.socket.closed, null)
    hide(false)
    assert.deepEqual(all.socket.closed, [1000, WSE_REASON.BY_CLIENT])
    assert.deepEqual([all.events, all.told], [[], []]) // an application would take it for a logout
  })

  test('that raises keeps nothing of the message', async (t) => {
    const all = await resumable(t)
    const full = t.mock.method(all.socket, 'send', () => {
      throw new Error('full')
    })
    assert.equal((await failure(all.client.call('a'))).code, WSE_ERROR.RP_SEND_FAILED)
    full.mock.restore()
    assert.deepEqual((await back(t, all, { id: 's-1', got: 0 })).sent, [1, 0])
  })
})

test('a ledger that has ended sends nothing', async () => {
  const sent = []
  const ledger = new Ledger(ANSWER, { send: (data) => sent.push(data) }, {}, fakeClient().client.protocol)
  ledger.end({ why: 'ended' }, () => {})
  ledger.send('late')
  assert.deepEqual([sent, await ledger.flush()], [[], false])
})
