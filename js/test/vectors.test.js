// The wire examples that the Python tests run, too: ../../spec/vectors/README.md says what a case means.
import assert from 'node:assert/strict'
import { readFileSync, readdirSync } from 'node:fs'
import { describe, mock, test } from 'node:test'
import * as msgpack from '@msgpack/msgpack'
import { WSE_ERROR, WSE_REASON, WSE_STATUS, WseError, WseJSON, WseMsgpack } from '../wse.js'
import '../wse-inbox.js'
import '../wse-rooms.js'
import '../wse-streams.js' // so that the client need not wait for it
import { fakeClient, readyClient, settled } from './support/fake.js'

const directory = new URL('../../spec/vectors/', import.meta.url)
const load = (name) => JSON.parse(readFileSync(new URL(name, directory), 'utf8'))

const repeated = (parts) => parts.map(([piece, times]) => piece.repeat(times)).join('')
const buffer = (hex) => Uint8Array.from(Buffer.from(hex, 'hex')).buffer
const dataOf = ({ text, hex, parts, hex_parts }) => {
  if (parts) return repeated(parts)
  if (hex_parts) return buffer(repeated(hex_parts))
  return text ?? buffer(hex)
}
const withBytes = (value) => {
  if (Array.isArray(value)) return value.map(withBytes)
  return typeof value?.$hex === 'string' ? new Uint8Array(buffer(value.$hex)) : value
}
const plain = (value) => JSON.parse(JSON.stringify(value))
const toList = ({ type = null, payload = null, stamp = null }) => [type, payload, stamp]

const depthOf = (value) => {
  let depth = 0
  for (let inner = value; Array.isArray(inner); inner = inner[0]) depth++
  return depth
}

// The strictness of a MessagePack decoder is that of the application's: @msgpack/msgpack reads these.
const LENIENT = ['a string that is no UTF-8']

const decodes = (protocol, vector) => {
  const data = dataOf(vector)
  if (vector.error) {
    assert.throws(() => protocol.unpack(data))
  } else if (vector.either) {
    try {
      protocol.unpack(data)
    } catch (error) {
      assert.ok(error instanceof Error)
    }
  } else if (vector.depth) {
    const { payload, stamp } = protocol.unpack(data)
    assert.equal(depthOf(payload), vector.depth)
    assert.equal(stamp, 's')
  } else {
    assert.deepEqual(toList(protocol.unpack(data)), withBytes(vector.message))
  }
}

const runners = {
  'json-decode.json': (vector) => decodes(new WseJSON(), vector),
  'json-encode.json': ({ message: [type, payload, stamp], text }) => {
    assert.equal(new WseJSON().pack({ type, payload, stamp }), text)
  },
  'msgpack.json': (vector) => {
    const protocol = new WseMsgpack(msgpack)
    decodes(protocol, vector)
    if (vector.encodes) {
      const [type, payload, stamp] = withBytes(vector.message)
      assert.equal(Buffer.from(protocol.pack({ type, payload, stamp })).toString('hex'), vector.hex)
    }
  },
  'errors.json': async ({ procedure, payload, raises, receives, code, details }) => {
    const { client, socket } = await readyClient()
    if (raises) {
      client.register(procedure, () => {
        if (raises.wse) throw new WseError(raises.wse.code, raises.wse.details)
        throw Object.assign(new Error(raises.exception.message), { name: raises.exception.name })
      })
      socket.receive([procedure, payload, 7])
      const [[type, answer, stamp]] = socket.read()
      assert.deepEqual([type, answer.code, answer.details, stamp], ['~wse:response-err', code, details, 7])
    } else {
      const call = client.call('pay')
      socket.receive(['~wse:response-err', receives, 1])
      await assert.rejects(call, (error) => {
        assert.ok(error instanceof WseError)
        assert.deepEqual([error.code, error.details], [code, details])
        return true
      })
    }
  },
  'close.json': async (vector) => {
    const { code, reason, identity = 'ann', times = 1, without_reconnect, at_once } = vector
    for (const re of [true, false]) {
      mock.timers.enable({ apis: ['setTimeout'] })
      try {
        const { client, Socket } = await readyClient({ re }, null, identity === 'function' ? () => 'ann' : identity)
        for (let number = 0; number < times; number++) {
          if (number) Socket.all[number].open()
          Socket.all[number].gone(code, reason)
          mock.timers.tick(1)
        }
        const retried = re ? vector.retried : without_reconnect
        assert.equal(client.status, retried ? 'RE_CONNECTING' : 'OFFLINE')
        assert.equal(Socket.all.length, times + (at_once ? 1 : 0))
        mock.timers.tick(30_000)
        assert.equal(Socket.all.length, times + (retried ? 1 : 0))
      } finally {
        mock.timers.reset()
      }
    }
  },
  'handshake-client.json': (vector) => converse(vector),
  'messages-client.json': (vector) => converse(vector),
  'calls-client.json': (vector) => converse(vector),
  'resume-client.json': (vector) => converse(vector),
  'inbox-client.json': (vector) => converse(vector),
  'rooms-client.json': (vector) => converse(vector),
}

const APPLICATION = {
  echo: (payload) => payload,
  add: ({ a, b }) => a + b,
  fail: () => {
    throw Object.assign(new Error('no good'), { name: 'ValueError' })
  },
  deny: () => {
    throw new WseError('app.denied', { why: 'closed' })
  },
  unserializable: () => 1n,
  async *count(payload) {
    for (let n = 0; n < payload; n++) yield n
  },
  wait: (_, { signal }) => new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason))),
}
const UPLOADS = {
  sum: async (payload, { items }) => {
    for await (const item of items) payload += item
    return payload
  },
  async *double(_, { items }) {
    for await (const item of items) yield 2 * item
  },
}

/** The items of an upload, which may fail at its end. */
const uploaded = (spec) => {
  if (!spec || Array.isArray(spec)) return spec
  return (async function* () {
    yield* spec.items
    throw new WseError(spec.fails.code)
  })()
}

/** Let everything happen that needs no time. */
const turns = async () => {
  for (let turn = 0; turn < 10; turn++) await settled()
}

async function converse({ setup, steps }) {
  mock.timers.enable({ apis: ['setTimeout'] })
  try {
    const all = fakeClient({ tO: 10, heartbeat: { interval: 0 }, inbox: setup.inbox?.device, after: setup.inbox?.after, rooms: setup.rooms, ...((setup.resume || setup.reconnect) && { re: true, resume: setup.resume, backoff: { base: 0 } }) })
    const { client, errors, Socket, take } = all
    const chat = []
    client.channel.on('chat', (payload) => all.events.push(['chat', payload]))
    if (setup.inbox) {
      client.when.inboxLost((count) => all.events.push(['inbox_lost', count]))
      client.channel.on('note', (payload) => all.events.push(['note', client.kept.n, client.kept.at, payload]))
      client.channel.on('bad', APPLICATION.fail)
    }
    for (const [name, fn] of Object.entries(APPLICATION)) client.register(name, fn)
    for (const [name, fn] of Object.entries(UPLOADS)) client.register(name, fn, { upload: true })
    if (setup.challenge) {
      client.challenge((quest, solve) => {
        if ('raise' in setup.challenge) throw new Error(setup.challenge.raise)
        solve(setup.challenge.answer)
      })
    }
    const outcome = { connect: undefined, calls: [] }
    if (setup.resume) {
      client.when.resumed((welcome) => all.events.push(['resumed', welcome]))
      client.when.lost(({ why, ...loss }) => all.events.push(['lost', why, ...[loss.uncertain, loss.unsent].map((messages) => messages.map(({ type, payload }) => [type, payload]))]))
    }
    const connect = client.connect(setup.identity, setup.meta)
    connect.then(
      (welcome) => (outcome.connect = { welcome }),
      (error) => (outcome.connect = { error }),
    )
    // By its name, in the order in which the client opens them.
    const socketOf = async (name) => {
      const number = 'abc'.indexOf(name)
      if (Socket.all.length <= number) mock.timers.tick(1) // it reconnects at once
      for (let turn = 0; Socket.all.length <= number && turn < 100_000; turn++) await settled()
      const found = Socket.all[number]
      if (found.readyState === 0) found.open()
      return found
    }
    let socket = await socketOf('a')
    if (setup.rooms) client.room('doc').presence.when.changed((changes) => all.events.push(['changed', changes]))
    const waitFor = (promise) => {
      const call = {}
      outcome.calls.push(call)
      promise.then(
        (value) => (call.result = { value: value ?? null }),
        (error) => (call.error = error),
      )
    }
    if (setup.joined) {
      if ('calls' in setup) socket.receive(['~wse:ext', { calls: setup.calls }, null])
      socket.receive(['~wse:welcome', null, null])
      socket.read()
      take()
    }
    await settled()
    const matches = (error, { code, details }) => {
      assert.ok(error instanceof WseError, String(error))
      assert.equal(error.code, code)
      if (details) assert.deepEqual(plain(error.details), details)
    }
    const nextCall = () => {
      const call = outcome.calls.shift()
      assert.ok(call, 'no call has been made')
      return call
    }
    let stream
    let next // the item for which the application waits
    const outcomeOf = (promise) => {
      const outcome = { done: false }
      promise.then(
        (result) => Object.assign(outcome, { done: true, result }),
        (error) => Object.assign(outcome, { done: true, error }),
      )
      return outcome
    }
    const asked = async () => {
      const outcome = next ?? outcomeOf(stream.next())
      next = undefined
      await turns()
      return outcome
    }
    const does = {
      in: (value) => (Array.isArray(value) ? socket.receive(value) : socket.receive(dataOf(value))),
      out: (value) => {
        const written = socket.read()
        for (const [type, payload] of written) {
          if (type === '~wse:response-err') delete payload.message
          if (type === '~wse:hi') delete payload.ext
        }
        assert.deepEqual(written, value)
      },
      offers: (value) => {
        const [, { ext }] = JSON.parse(socket.sent[0])
        for (const [name, offer] of Object.entries(value)) assert.deepEqual(ext[name], offer)
      },
      recovered: (value) => assert.equal(client.recovered, value),
      status: (value) => assert.equal(client.status, value),
      close: (value) => assert.deepEqual(socket.closed, value),
      gone: async ([code, reason]) => {
        socket.gone(code, reason)
        if (client.status === WSE_STATUS.RE_CONNECTING) await socketOf('abc'[Socket.all.length])
      },
      pass: (value) => mock.timers.tick(value * 1000),
      events: (value) => assert.deepEqual(take(), value),
      // The caller gets that error and nobody else, unlike in Python.
      errors: (value) => assert.deepEqual(errors.splice(0).map((error) => error.code), value.filter((code) => code !== WSE_ERROR.CLIENT_NOT_READY)),
      in_a_row: (value) => value.forEach((message) => socket.receive(message)),
      call: ([name, payload], { timeout, progress, upload }) => {
        const controller = new AbortController()
        const call = { controller }
        outcome.calls.push(call)
        const onProgress = progress && ((value) => all.events.push(['progress', value]))
        client.call(name, payload, { tO: timeout, onProgress, upload: uploaded(upload), signal: controller.signal }).then(
          (result) => (call.result = { value: result }),
          (error) => (call.error = error),
        )
      },
      gives_up: () => nextCall().controller.abort(),
      stream: ([name, payload], { window, timeout, deadline, upload }) => {
        stream = client.stream(name, payload, { window, timeout, deadline, upload: uploaded(upload) })
        next = outcomeOf(stream.next())
      },
      items: async (value) => {
        for (const item of value) assert.deepEqual(await asked(), { done: true, result: { value: item, done: false } })
      },
      waits: async () => {
        next = await asked()
        assert.equal(next.done, false)
      },
      stream_ends: async (value) => {
        const { done, result, error } = await asked()
        assert.ok(done)
        if (value) matches(error, value)
        else assert.equal(result?.done, true)
      },
      leaves: () => stream.return(),
      send: ([type, payload]) => client.send(type, payload),
      join: (name) => waitFor(client.room(name).join()),
      leave: (name) => waitFor(client.room(name).leave()),
      show: ([state, ttl]) => {
        try {
          client.room('doc').presence.set(state, { ttl })
        } catch (error) {
          waitFor(Promise.reject(error))
        }
      },
      clear: () => client.room('doc').presence.clear(),
      members: (value) => assert.deepEqual(client.room('doc').presence.members, value),
      device: (value) => assert.equal(client.room('doc').presence.device, value),
      result: (value) => assert.deepEqual(nextCall().result, { value }),
      fails: (value) => matches(nextCall().error, value),
      connected: (value) => assert.deepEqual(outcome.connect, { welcome: value }),
      connect_fails: (value) => matches(outcome.connect?.error, value),
    }
    for (const { on = 'a', ...step } of steps) {
      socket = await socketOf(on)
      const [[name, value]] = Object.entries(step) // what follows says more about it
      assert.ok(name in does, `this runner does not know the step ${name}`)
      await does[name](value, step)
      await turns()
    }
    assert.deepEqual(chat, [])
  } finally {
    mock.timers.reset()
  }
}

const NOT_OURS = ['calls-server.json', 'handshake-server.json', 'messages-server.json', 'resume-server.json']

for (const file of readdirSync(directory).filter((name) => name.endsWith('.json') && name !== 'names.json' && !NOT_OURS.includes(name))) {
  describe(file, () => {
    assert.ok(runners[file], `there is no runner for ${file}`)
    for (const vector of load(file).cases) {
      const skip = vector.needs?.includes('exact-integers')
        ? 'integers above 2^53'
        : file === 'msgpack.json' && LENIENT.includes(vector.name) && '@msgpack/msgpack is lenient here'
      test(vector.name, { skip }, () => runners[file](vector))
    }
  })
}

describe('names.json', () => {
  const names = load('names.json')

  test('codes, reasons and status', () => {
    assert.deepEqual(names.error_codes.filter((code) => !Object.values(WSE_ERROR).includes(code)), [])
    assert.deepEqual(names.close_reasons.filter((reason) => !Object.values(WSE_REASON).includes(reason)), [])
    assert.deepEqual(Object.values(WSE_STATUS), names.client_status)
  })

  test('protocols and their internal types', () => {
    assert.equal(new WseJSON().name, names.protocols.json)
    assert.equal(new WseMsgpack(msgpack).name, names.protocols.msgpack)
    assert.deepEqual({ ...new WseJSON().internal_types }, names.internal_types)
  })

  test('reserved types are rejected at once, free ones are not', async () => {
    const { client } = await readyClient()
    for (const type of names.reserved_types) {
      const attempts = [() => client.send(type), () => client.register(type, () => {}), () => client.channel.on(type, () => {})]
      for (const attempt of attempts) assert.throws(attempt, { code: WSE_ERROR.PROTOCOL_VIOLATION })
      await assert.rejects(client.call(type), { code: WSE_ERROR.PROTOCOL_VIOLATION })
    }
    for (const type of names.free_types) {
      client.send(type)
      client.register(type, () => {})
      client.channel.on(type, () => {})
    }
  })
})
