// Messages that the server keeps, at the client: on fake sockets, with the wire text of the extension `inbox`.
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { WSE_ERROR, WSE_STATUS } from '../wse.js'
import '../wse-inbox.js' // so that the client need not wait for it
import '../wse-resume.js'
import { codes, fakeClient, pass, settled, until, withTimers } from './support/fake.js'

const settledAll = async () => {
  for (let turn = 0; turn < 5; turn++) await settled()
}

/** The server plays: it opens the socket and says welcome, with what it answers. Returns what the client has asked of the inbox. */
const admit = async (Socket, answer) => {
  await until(() => Socket.last?.readyState === 0)
  const socket = Socket.last
  socket.open()
  const [[, { ext }]] = socket.read()
  if (answer) socket.receive(['~wse:ext', answer, null])
  socket.receive(['~wse:welcome', null, null])
  await settledAll()
  return ext.inbox
}

/** A client with an inbox, and a record of what it is told. */
const withInbox = async (t, options = {}, answer = { inbox: { from: 1, to: 0, lost: 0 } }) => {
  withTimers(t)
  const all = fakeClient({ inbox: 'phone', re: true, tO: 10, heartbeat: { interval: 0 }, backoff: { base: 0.5, cap: 0.5, random: () => 1 }, ...options })
  const heard = []
  all.client.when.inboxLost((count) => heard.push(`lost ${count}`))
  all.client.channel.on('note', (payload) => heard.push([all.client.kept, payload]))
  const connecting = all.client.connect('ann')
  const asked = await admit(all.Socket, answer)
  await connecting
  all.events.length = 0
  return { ...all, heard, asked, keep: (n, type = 'note', payload = n) => all.Socket.last.receive(['~wse:kept', [n, type, payload, n / 2], null]) }
}

const back = async (t, { Socket }, answer) => {
  Socket.last.gone(1006)
  await pass(t, 0.5)
  return admit(Socket, answer)
}

const seen = (n) => ['~wse:seen', n, null]
const numbers = (heard) => heard.map((entry) => (Array.isArray(entry) ? entry[0].n : entry))

describe('a device', () => {
  test('says its name, and the number of the last message if the application knows it', async (t) => {
    assert.deepEqual((await withInbox(t)).asked, { device: 'phone' })
  })

  test('says the number that the application gives', async (t) => {
    const { asked, heard, keep } = await withInbox(t, { after: 41 }, { inbox: { from: 45, to: 45, lost: 3 } })
    keep(45)
    assert.deepEqual(asked, { device: 'phone', after: 41 })
    assert.deepEqual(numbers(heard), ['lost 3', 45])
  })

  test('says nothing without the option, or with a shared connection', async () => {
    for (const options of [{}, { inbox: 'phone', share: true }]) {
      const { client, Socket } = fakeClient(options)
      void client.connect('ann').catch(() => {})
      assert.equal(await admit(Socket), undefined)
      void client.close()
    }
  })

  test('hears that the server has no inboxes', async (t) => {
    const { errors } = await withInbox(t, {}, null)
    assert.deepEqual(codes(errors), [WSE_ERROR.UNSUPPORTED])
    assert.deepEqual(errors[0].details, { extension: 'inbox' })
  })

  test('begins at its cursor as another user, whose numbers are others', async (t) => {
    const all = await withInbox(t)
    all.keep(1)
    const jumping = all.client.jump('ws://server.test', 'ben')
    await pass(t, 0.001)
    assert.deepEqual(await admit(all.Socket, { inbox: { from: 1, to: 1, lost: 0 } }), { device: 'phone' })
    await jumping
    all.keep(1)
    assert.deepEqual(numbers(all.heard), [1, 1])
  })
})

describe('a kept message', () => {
  test('goes to its listeners, with its number and time', async (t) => {
    const { client, heard, keep } = await withInbox(t)
    keep(1)
    keep(2)
    assert.deepEqual(heard, [[{ n: 1, at: 0.5 }, 1], [{ n: 2, at: 1 }, 2]])
    assert.equal(client.kept, null)
  })

  test('has its number in a listener that waits for its turn, too', async (t) => {
    const { client, keep } = await withInbox(t)
    const found = []
    client.channel.on('slow', async () => {
      found.push(client.kept.n)
      await settled()
      found.push(client.kept)
    }, { ordered: true })
    keep(1, 'slow')
    keep(2, 'slow')
    await until(() => found.length === 4)
    assert.deepEqual(found, [1, null, 2, null])
  })

  test('that comes again is ignored, and one that is missing is told', async (t) => {
    const { heard, keep } = await withInbox(t)
    for (const n of [1, 2, 1, 2, 5, 4, 6]) keep(n)
    assert.deepEqual(numbers(heard), [1, 2, 'lost 2', 5, 6])
  })

  test('without a listener is told as ignored, and counts as seen', async (t) => {
    const { take, keep, Socket } = await withInbox(t)
    keep(1, 'other', 'x')
    assert.deepEqual(take(), [['ignored', 'other', 'x', null]])
    await pass(t, 2)
    assert.deepEqual(Socket.last.read(), [seen(1)])
  })

  for (const message of [null, [1, 'note', 1], [-1, 'note', 1, 1], ['1', 'note', 1, 1], [1, {}, 1, 1]]) {
    test(`that makes no sense ends the connection: ${JSON.stringify(message)}`, async (t) => {
      const { errors, Socket } = await withInbox(t)
      Socket.last.receive(['~wse:kept', message, null])
      assert.deepEqual(Socket.last.closed, [1000, 'wse.protocol-error'])
      assert.deepEqual(codes(errors), [WSE_ERROR.PROTOCOL_VIOLATION])
    })
  }

  test('waits while 100 async listeners run', async (t) => {
    const { client, keep } = await withInbox(t)
    const running = []
    client.channel.on('slow', () => new Promise((resolve) => running.push(resolve)))
    for (let n = 1; n <= 102; n++) keep(n, 'slow')
    assert.equal(running.length, 100)
    running[7]()
    await settledAll()
    assert.equal(running.length, 101)
  })
})

describe('a device whose listeners are slow', () => {
  const wants = (value) => ['~wse:kept', value, null]

  /** 100 listeners run, and this many messages wait. */
  const flooded = async (t, waiting, answer) => {
    const all = await withInbox(t, {}, answer)
    const running = []
    all.client.channel.on('slow', () => new Promise((resolve) => running.push(resolve)))
    for (let n = 1; n <= 100 + waiting; n++) all.keep(n, 'slow')
    return { ...all, running }
  }

  test('asks for no more until half of what waits has been handled', async (t) => {
    const { Socket, running } = await flooded(t, 256, { inbox: { from: 1, to: 0, lost: 0, epoch: 'e' } })
    assert.deepEqual(Socket.last.read(), [wants(false)])
    for (const resolve of running.splice(0, 100)) resolve()
    await settledAll()
    assert.deepEqual(Socket.last.read().filter(([type]) => type === '~wse:kept'), [])
    for (const resolve of running.splice(0, 28)) resolve()
    await settledAll()
    assert.deepEqual(Socket.last.read().filter(([type]) => type === '~wse:kept'), [wants(true)])
  })

  test('says nothing to a server that does not know of this', async (t) => {
    const { Socket } = await flooded(t, 300)
    assert.deepEqual(Socket.last.read(), [])
  })
})

describe('what has been seen is reported', () => {
  test('after 64 messages, or two seconds', async (t) => {
    const { keep, Socket } = await withInbox(t)
    for (let n = 1; n <= 65; n++) keep(n)
    assert.deepEqual(Socket.last.read(), [seen(64)])
    await pass(t, 2)
    assert.deepEqual(Socket.last.read(), [seen(65)])
    await pass(t, 10)
    assert.deepEqual(Socket.last.read(), [])
  })

  test('before the connection is closed', async (t) => {
    const { client, keep, Socket } = await withInbox(t)
    keep(1)
    void client.close()
    assert.deepEqual(Socket.last.read(), [seen(1)])
  })

  for (const wait of [0.5, 1.5]) test(`when listeners have ended that run while the client is closed: after ${wait} s`, async (t) => {
    const { client, keep, Socket, heard } = await withInbox(t)
    let end = () => {}
    client.channel.on('slow', () => new Promise((resolve) => (end = () => resolve(undefined))))
    keep(1, 'slow')
    void client.close()
    keep(2) // is not taken any longer
    await pass(t, wait)
    if (wait < 1) assert.deepEqual(Socket.last.read(), [])
    end()
    await settledAll()
    assert.deepEqual(Socket.last.read(), wait < 1 ? [seen(1)] : [])
    assert.deepEqual(heard, [])
    assert.equal(client.status, WSE_STATUS.OFFLINE)
  })

  test('when the client goes to another server before they have ended, it is not closed there', async (t) => {
    const { client, keep, Socket, heard } = await withInbox(t)
    client.channel.on('slow', () => new Promise(() => {}))
    keep(1, 'slow')
    const closing = client.close()
    keep(2) // is not taken before the next welcome
    void client.jump('ws://other').catch(() => {})
    await pass(t, 2)
    await closing
    assert.notEqual(client.status, WSE_STATUS.OFFLINE)
    await admit(Socket, { inbox: { from: 2, to: 2, lost: 0 } })
    keep(2)
    keep(3)
    assert.deepEqual(numbers(heard), [2, 3])
    void client.close()
  })

  test('up to a message whose listener has failed', async (t) => {
    const { client, errors, keep, Socket, heard } = await withInbox(t)
    client.channel.on('bad', () => {
      throw new Error('no good')
    })
    client.channel.on('worse', async () => {
      throw new Error('no good')
    })
    keep(1)
    keep(2, 'worse')
    keep(3, 'bad')
    keep(4)
    await settledAll()
    void client.close()
    assert.deepEqual(Socket.last.read(), [seen(1)])
    assert.deepEqual(numbers(heard), [1, 4])
    assert.deepEqual(codes(errors), [WSE_ERROR.MSG_PROCESSING_ERROR, WSE_ERROR.MSG_PROCESSING_ERROR])
  })

  test('when a promise has resolved, not before', async (t) => {
    const { client, keep, Socket } = await withInbox(t)
    const ends = []
    client.channel.on('slow', () => new Promise((resolve) => ends.push(resolve)))
    for (const n of [1, 2]) keep(n, 'slow')
    ends[1]()
    await pass(t, 3)
    assert.deepEqual(Socket.last.read(), [])
    ends[0]()
    await settledAll()
    await pass(t, 2)
    assert.deepEqual(Socket.last.read(), [seen(2)])
  })
})

describe('after a lost connection', () => {
  test('the device asks for what is behind the last one that has come, and nothing comes twice', async (t) => {
    const all = await withInbox(t)
    all.keep(1)
    all.keep(2)
    assert.deepEqual(await back(t, all, { inbox: { from: 3, to: 4, lost: 0 } }), { device: 'phone', after: 2 })
    for (const n of [2, 3, 4]) all.keep(n)
    await pass(t, 2)
    assert.deepEqual(numbers(all.heard), [1, 2, 3, 4])
    assert.deepEqual(all.Socket.last.read(), [seen(4)])
  })

  test('what was not reported is reported over the next one', async (t) => {
    const all = await withInbox(t)
    all.keep(1)
    await back(t, all, { inbox: { from: 2, to: 1, lost: 0 } })
    await pass(t, 2)
    assert.deepEqual(all.Socket.last.read(), [seen(1)])
  })

  test('the device says the epoch, and a server that has lost the inbox answers with another one', async (t) => {
    const all = await withInbox(t, {}, { inbox: { from: 1, to: 0, lost: 0, epoch: 'old' } })
    all.keep(1)
    assert.deepEqual(all.heard, [[{ n: 1, at: 0.5, epoch: 'old' }, 1]])
    assert.deepEqual(await back(t, all, { inbox: { from: 3, to: 9, lost: 2, epoch: 'new' } }), { device: 'phone', after: 1, epoch: 'old' })
    for (const n of [3, 4]) all.keep(n)
    assert.deepEqual(numbers(all.heard), [1, 'lost 2', 3, 4])
    assert.deepEqual(await back(t, all, { inbox: { from: 1, to: 9, lost: 0, epoch: 'newest' } }), { device: 'phone', after: 4, epoch: 'new' })
    for (const n of [1, 2]) all.keep(n)
    assert.deepEqual(numbers(all.heard), [1, 'lost 2', 3, 4, 1, 2])
  })

  test('a server that has lost the inbox counts anew', async (t) => {
    const all = await withInbox(t)
    const ends = []
    all.client.channel.on('slow', () => new Promise((resolve) => ends.push(resolve)))
    all.keep(1)
    all.keep(2, 'slow')
    await back(t, all, { inbox: { from: 1, to: 1, lost: 0 } })
    all.keep(1)
    ends[0]() // of the inbox before
    await settledAll()
    await pass(t, 2)
    assert.deepEqual(numbers(all.heard), [1, 1])
    assert.deepEqual(all.Socket.last.read(), [seen(1)])
  })

  test('a server that cannot read the inbox sends it later', async (t) => {
    const all = await withInbox(t)
    all.keep(1)
    await back(t, all, { inbox: {} })
    all.keep(2)
    assert.deepEqual(numbers(all.heard), [1, 2])
    assert.deepEqual(all.errors, [])
  })

  test('a session that goes on brings the rest, and takes the report as a message of its own', async (t) => {
    const resume = { id: 's-1', key: 'k', window: 60, bytes: 10_000, messages: 100 }
    const all = await withInbox(t, { resume: true }, { resume, inbox: { from: 1, to: 1, lost: 0 } })
    all.keep(1)
    await back(t, all, { resume: { id: 's-1', got: 0 } })
    all.keep(2)
    await pass(t, 2)
    assert.deepEqual(numbers(all.heard), [1, 2])
    assert.deepEqual(all.errors, [])
    assert.ok(all.Socket.last.read().some(([type, n]) => type === '~wse:seen' && n === 2))
  })
})
