// The hub that tabs share, with fake tabs and a fake server: what tests/browser/test_share.py does not reach.
import assert from 'node:assert/strict'
import { afterEach, beforeEach, describe, test } from 'node:test'
import { Hub } from '../wse-hub.js'
import { WseClient } from '../wse.js'
import { failure, FakeWebSocket, readyClient, settled } from './support/fake.js'

class Socket extends FakeWebSocket {
  static all = []
}
const original = globalThis.WebSocket
beforeEach(() => {
  Socket.all = []
  globalThis.WebSocket = Socket
})
afterEach(() => (globalThis.WebSocket = original))

const HI = ['~wse:hi', { identity: 'ada' }, null]
const frame = (message) => JSON.stringify(message)

let tabs = 0
class Tab {
  got = []
  constructor(hub, id = `tab-${++tabs}`, lock = undefined) {
    this.hub = hub
    hub.receive(this, { open: ['ws://x', 'wse-default-json'], id, lock })
  }
  post(message) {
    this.got.push(message)
  }
  send(message) {
    this.hub.receive(this, { data: frame(message) })
  }
  take() {
    return this.got.splice(0).map((message) => (message.data ? JSON.parse(message.data) : message))
  }
}

/** A hub with tabs that have been welcomed. */
const welcomed = (count) => {
  const hub = new Hub()
  const tabs = Array.from({ length: count }, () => new Tab(hub))
  Socket.last.open()
  for (const tab of tabs) tab.send(HI)
  Socket.last.receive(['~wse:welcome', { proof: 1 }, null])
  hub.receive(tabs[0], { welcome: ['checked'] })
  for (const tab of tabs) tab.take()
  Socket.last.read()
  return { hub, tabs, server: Socket.last }
}

describe('the handshake', () => {
  test('is made by the first tab; the others are welcomed with what it has checked', () => {
    const hub = new Hub()
    const [first, second] = [new Tab(hub), new Tab(hub)]
    assert.equal(Socket.all.length, 1)
    assert.deepEqual(first.take(), [])
    Socket.last.open()
    assert.deepEqual([first.take(), second.take()], [[{ open: true, joined: false }], [{ open: true, joined: true }]])
    second.send(HI)
    first.send(HI)
    assert.deepEqual(Socket.last.read(), [HI])
    Socket.last.receive(['~wse:challenge', 7])
    first.send(['~wse:challenge', 8, null])
    Socket.last.receive(['~wse:welcome', { proof: 1 }, null])
    assert.deepEqual([first.take(), second.take()], [[['~wse:challenge', 7], ['~wse:welcome', { proof: 1 }, null]], []])
    hub.receive(first, { welcome: ['checked'] })
    const third = new Tab(hub)
    third.send(HI)
    assert.deepEqual(second.take(), [['~wse:welcome', 'checked', null]])
    assert.deepEqual(third.take(), [{ open: true, joined: true }, ['~wse:welcome', 'checked', null]])
    assert.deepEqual(Socket.last.read(), [['~wse:challenge', 8, null]])
  })

  test('goes on with the next tab if the first one leaves', () => {
    const hub = new Hub()
    const [first, second] = [new Tab(hub), new Tab(hub)]
    Socket.last.open()
    first.send(HI)
    second.send(HI)
    const lost = Socket.last
    hub.receive(first, { close: [1000, 'bye'] })
    assert.deepEqual(lost.closed, [1000, 'bye'])
    assert.equal(Socket.all.length, 2)
    Socket.last.open()
    assert.deepEqual(Socket.last.read(), [HI])
    lost.gone(1000)
    Socket.last.receive(['~wse:welcome', 1, null])
    assert.deepEqual(second.take(), [{ open: true, joined: true }, { open: true, joined: false }, ['~wse:welcome', 1, null]])
  })

  test('its end is that of all', () => {
    const hub = new Hub()
    const tabs = [new Tab(hub), new Tab(hub)]
    Socket.last.open()
    for (const tab of tabs) {
      tab.take()
      tab.send(HI)
    }
    Socket.last.gone(1000, 'wse.not-authorized')
    for (const tab of tabs) assert.deepEqual(tab.take(), [{ close: [1000, 'wse.not-authorized'] }])
    assert.ok(hub.isIdle)
  })
})

describe('calls', () => {
  test('answers find their tab, and those of tabs that have left find none', () => {
    const { hub, tabs, server } = welcomed(3)
    for (const tab of tabs) tab.send(['add', null, 1])
    const stamps = server.read().map(([, , stamp]) => stamp)
    assert.equal(new Set(stamps).size, 3)
    hub.receive(tabs[1], { close: [1000, ''] })
    for (const stamp of stamps.reverse()) server.receive(['~wse:response', stamp, stamp])
    assert.deepEqual(tabs.map((tab) => tab.take()), [[['~wse:response', stamps[2], 1]], [], [['~wse:response', stamps[0], 1]]])
    assert.equal(server.closed, null)
  })

  test("the server's are answered by the first tab that has the procedure", () => {
    const { tabs, server } = welcomed(3)
    const missing = ['~wse:response-err', { code: 'wse.server.rp.not-registered', details: { rp: 'p' } }, 's']
    server.receive(['p', 1, 's'])
    assert.deepEqual(tabs.map((tab) => tab.take().length), [1, 0, 0])
    tabs[2].send(['~wse:response', 'not asked', 's'])
    tabs[0].send(missing)
    tabs[1].send(['~wse:response', 'done', 's'])
    tabs[1].send(['~wse:response', 'again', 's'])
    assert.deepEqual(server.read(), [['~wse:response', 'done', 's']])
    server.receive(['p', 1, 's'])
    for (const tab of tabs) tab.send(missing)
    assert.deepEqual(server.read(), [missing])
  })

  test('one that a tab leaves unanswered fails', () => {
    const { hub, tabs, server } = welcomed(2)
    server.receive(['p', 1, 's'])
    hub.receive(tabs[0], { close: [1001, ''] })
    assert.deepEqual(server.read(), [['~wse:response-err', { code: 'wse.client.rp.disconnect', details: { rp: 'p', rpc: 'p' } }, 's']])
  })
})

describe('calls with options', () => {
  const TERMS = ['~wse:ext', { calls: { timeout: 20 } }, null]

  /** The same as `welcomed`, at a server that knows the extension `calls`. */
  const negotiated = () => {
    const hub = new Hub()
    const tabs = [new Tab(hub), new Tab(hub)]
    Socket.last.open()
    for (const tab of tabs) tab.send(HI)
    Socket.last.receive(TERMS)
    Socket.last.receive(['~wse:welcome', 1, null])
    hub.receive(tabs[0], { welcome: [1] })
    for (const tab of tabs) assert.deepEqual(tab.take().slice(1), [TERMS, ['~wse:welcome', 1, null]])
    Socket.last.read()
    return { hub, tabs, server: Socket.last }
  }

  test('of a tab: what belongs to them finds its way, under their stamps', () => {
    const { tabs: [first, second], server } = negotiated()
    first.send(['add', 1, 1])
    for (const tab of [first, second]) tab.send(['~wse:call', ['tail', null, { n: 32 }], 2])
    const [, [, , own], [, , other]] = server.read()
    server.receive(['~wse:item', 'a', own])
    server.receive(['~wse:item', 'b', other])
    server.receive(['~wse:progress', 1, own])
    assert.deepEqual([first.take(), second.take()], [[['~wse:item', 'a', 2], ['~wse:progress', 1, 2]], [['~wse:item', 'b', 2]]])
    first.send(['~wse:more', 16, 2])
    second.send(['~wse:cancel', null, 2])
    second.send(['~wse:more', 16, 2])
    first.send(['~wse:cancel', null, 9])
    assert.deepEqual(server.read(), [['~wse:more', 16, own], ['~wse:cancel', null, other]])
    server.receive(['~wse:item', 'late', other])
    server.receive(['~wse:response', null, own])
    server.receive(['~wse:item', 'late', own])
    assert.deepEqual([first.take(), second.take()], [[['~wse:response', null, 2]], []])
  })

  test('of a tab that leaves are cancelled', () => {
    const { hub, tabs, server } = negotiated()
    tabs[1].send(['~wse:call', ['tail', null, { n: 32 }], 1])
    const [[, , stamp]] = server.read()
    hub.receive(tabs[1], { close: [1001, ''] })
    assert.deepEqual(server.read(), [['~wse:cancel', null, stamp]])
  })

  test('of the server go to the tab that answers', () => {
    const { tabs: [first, second], server } = negotiated()
    const call = ['~wse:call', ['ticks', 5, { n: 2 }], 's']
    server.receive(call)
    assert.deepEqual([first.take(), second.take()], [[call], []])
    first.send(['~wse:response-err', { code: 'wse.server.rp.not-registered', details: { rp: 'ticks' } }, 's'])
    assert.deepEqual(second.take(), [call])
    second.send(['~wse:item', 0, 's'])
    first.send(['~wse:item', 'not asked', 's'])
    server.receive(['~wse:more', 1, 's'])
    server.receive(['~wse:more', 1, 'unknown'])
    assert.deepEqual([first.take(), second.take()], [[], [['~wse:more', 1, 's']]])
    server.receive(['~wse:cancel', null, 's'])
    server.receive(['~wse:more', 1, 's'])
    second.send(['~wse:item', 1, 's'])
    assert.deepEqual(second.take(), [['~wse:cancel', null, 's']])
    assert.deepEqual(server.read(), [['~wse:item', 0, 's']])
  })

  test('of the server end when the tab comes back to another session', async () => {
    class Moved extends Socket {
      static all = []
      holds() {
        return false
      }
      finished() {
        return true
      }
    }
    const client = new WseClient({ url: 'ws://x', WebSocket: Moved, share: true, reconnect: true, backoff: { base: 0 } })
    let signal
    client.register('slow', (_, context) => {
      signal = context.signal
      return new Promise(() => {})
    })
    const connecting = client.connect('me')
    while (!Moved.all.length) await settled()
    Moved.last.open()
    Moved.last.receive(['~wse:welcome', 1])
    await connecting
    await settled()
    Moved.last.receive(['slow', null, 's'])
    Moved.last.gone(1006)
    assert.equal(signal.aborted, false)
    while (Moved.all.length < 2) await settled()
    Moved.last.open()
    Moved.last.receive(['~wse:welcome', 1])
    assert.equal(signal.aborted, true)
    void client.close()
  })
})

test('a numbered message is taken when it goes to the server, and not by a socket that closes', () => {
  const { hub, tabs, server } = welcomed(2)
  const send = (message, number) => hub.receive(tabs[1], { data: frame(message), number })
  send(['chat', 1, null], 1)
  send(['add', 1, 1], 2)
  send(['chat', 2, null])
  assert.deepEqual(tabs.map((tab) => tab.take()), [[], [{ taken: 1 }, { taken: 2 }]])
  assert.equal(server.read().length, 3)
  server.close(1000)
  send(['chat', 3, null], 3)
  assert.deepEqual(tabs[1].take(), [])
})

describe('calls that a shared socket holds', () => {
  /** A client whose shared socket, which has gone, holds its second call; `Socket.before` is what the next one got. */
  const holding = async (options) => {
    class Holding extends Socket {
      static all = []
      constructor(url, protocol, { before }) {
        super(url, protocol)
        this.before = before
      }
      holds(stamp) {
        return stamp === 2
      }
    }
    const client = new WseClient({ url: 'ws://x', WebSocket: Holding, share: true, ...options })
    const connecting = client.connect('me')
    while (!Holding.all.length) await settled()
    const first = Holding.last
    first.open()
    first.receive(['~wse:welcome', 1])
    await connecting
    const calls = [1, 2].map((n) => client.call('add', n))
    const lost = failure(calls[0])
    first.gone(4000, 'wse.moved')
    assert.equal((await lost).code, 'wse.client.rp.disconnect')
    return { client, first, call: calls[1], next: async () => {
      while (Holding.all.length < 2) await settled()
      return Holding.last
    } }
  }

  test('go on in the next connection', async () => {
    const { client, first, call, next } = await holding()
    const second = await next()
    assert.equal(second.before, first)
    second.open()
    second.receive(['~wse:welcome', 2])
    await settled()
    second.read()
    void client.call('add', 3).catch(() => {})
    assert.deepEqual(second.read(), [['add', 3, 3]])
    second.receive(['~wse:response', 'sum', 2])
    assert.equal(await call, 'sum')
  })

  for (const end of ['close', 'jump']) {
    test(`fail at ${end}`, async () => {
      const { client, call, next } = await holding()
      const lost = failure(call)
      if (end === 'close') void client.close('bye')
      else void client.jump('ws://elsewhere').catch(() => {})
      assert.deepEqual((await lost).details.disconnected, end === 'close' ? [1000, 'bye'] : [4000, 'jump'])
      if (end === 'close') return
      const second = await next()
      assert.ok(!second.before)
    })
  }
})

describe('a hub whose page ends', () => {
  const ANSWER = { id: 's-1', key: 'k', window: 60, bytes: 10_000, messages: 100 }

  /** Three tabs, the first one in the hub's page, in a session that may move. */
  const movable = (answer = ANSWER) => {
    const hub = new Hub(true)
    const tabs = ['a', 'b', 'c'].map((id) => new Tab(hub, id, `page of ${id}`))
    Socket.last.open()
    for (const tab of tabs) tab.send(HI)
    assert.deepEqual(Socket.last.read(), [['~wse:hi', { identity: 'ada', ext: { resume: {} } }, null]])
    if (answer) Socket.last.receive(['~wse:ext', { resume: answer }, null])
    Socket.last.receive(['~wse:welcome', { proof: 1 }, null])
    hub.receive(tabs[0], { welcome: ['checked'] })
    for (const tab of tabs) tab.take()
    return { hub, tabs, server: Socket.last }
  }

  /** The next hub, with tabs that come to it, and what it asks of the server. */
  const next = (heritage, ids) => {
    const hub = new Hub(true)
    hub.inherit(structuredClone(heritage))
    const tabs = ids.map((id) => new Tab(hub, id))
    Socket.last.open()
    for (const tab of tabs) tab.send(HI)
    const [[, { ext }]] = Socket.last.read()
    for (const tab of tabs) tab.take()
    return { hub, tabs, server: Socket.last, asked: ext.resume }
  }

  test('leaves its session to the next one: calls of both sides, and messages for tabs that come later', () => {
    const old = movable()
    old.tabs[1].send(['slow', 1, 1])
    old.tabs[2].send(['chat', 'not confirmed', null])
    old.server.receive(['~wse:ack', 1, null])
    old.server.receive(['paint', null, 's']) // asks the tab of the page that ends
    const heritage = old.hub.handOver('page of a')
    old.server.receive(['chat', 'to nobody', null])
    assert.equal(old.server.closed, null)
    assert.deepEqual(old.tabs.slice(1).map((tab) => tab.take()), [[], []])

    const { hub, tabs: [b], server, asked } = next(heritage, ['b'])
    // The other tabs may still answer, but that one cannot.
    const failed = ['~wse:response-err', { code: 'wse.client.rp.disconnect', details: { rp: 'paint', rpc: 'paint' } }, 's']
    assert.deepEqual(asked, { id: 's-1', key: 'k', got: 1, sent: [2, 3] })
    server.receive(['~wse:ext', { resume: { id: 's-1', got: 1 } }, null])
    server.receive(['~wse:welcome', 'again', null])
    assert.deepEqual(server.read(), [['chat', 'not confirmed', null], failed])
    assert.deepEqual(b.got.splice(0), [{ data: frame(['~wse:welcome', 'again', null]), isResumed: true }])
    server.receive(['chat', 'to both', null])
    server.receive(['~wse:response', 'done', 1])
    assert.deepEqual(b.take(), [['chat', 'to both', null], ['~wse:response', 'done', 1]])

    hub.receive(b, { welcome: ['checked'] })
    const c = new Tab(hub, 'c')
    c.send(HI)
    const [opened, ...rest] = c.got
    assert.deepEqual(opened, { open: true, joined: true })
    assert.deepEqual(rest, [{ data: frame(['~wse:welcome', 'checked', null]), isResumed: true }, { data: frame(['chat', 'to both', null]) }])
    const stranger = new Tab(hub, 'd')
    stranger.send(HI)
    assert.equal(stranger.got[1].isResumed, false)
    c.send(['slow', 2, 1])
    assert.deepEqual(server.read(), [['slow', 2, 2]])
  })

  test('whose session is lost leaves what the server has certainly not had', () => {
    const old = movable()
    for (const n of [1, 2]) old.tabs[1].send(['chat', n, null])
    old.tabs[1].send(['slow', 1, 1])
    const { tabs: [b], server } = next(old.hub.handOver('page of a'), ['b'])
    server.receive(['~wse:ext', { resume: { ...ANSWER, id: 's-2', lost: { why: 'expired', got: 1 } } }, null])
    server.receive(['~wse:welcome', 'anew', null])
    assert.deepEqual(server.read(), [['chat', 2, null]])
    assert.equal(b.got[0].isResumed, false)
    server.receive(['~wse:response', 'late', 1])
    assert.equal(b.got.length, 1)
  })

  test('is gone with its last tab', () => {
    const { hub, tabs, server } = movable()
    for (const tab of tabs.slice(1)) hub.receive(tab, { close: [1000, ''] })
    assert.equal(hub.handOver('page of a'), null)
    assert.deepEqual(server.closed, [1000, 'wse.by-client'])
  })

  test('has nothing to leave where the server keeps no sessions', () => {
    const { hub, server } = movable(null)
    assert.equal(hub.handOver('page of a'), null)
    assert.equal(server.closed, null)
  })

  test('what breaks the protocol ends the connection', () => {
    const { server } = movable()
    server.receive(['~wse:ack', 7, null])
    assert.deepEqual(server.closed, [1000, 'wse.protocol-error'])
  })
})

test('messages go to all tabs, and the request for an identity to one', () => {
  const { tabs, server } = welcomed(3)
  server.receive(['chat', 1, null])
  server.receive(['~wse:auth', null, null])
  assert.deepEqual(tabs.map((tab) => tab.take().map(([type]) => type)), [['chat', '~wse:auth'], ['chat'], ['chat']])
  tabs[1].send(['chat', 2, null])
  assert.deepEqual(server.read(), [['chat', 2, null]])
})

test('where tabs cannot share, a client has a connection of its own', async () => {
  const { client, socket } = await readyClient()
  assert.ok(socket && client)
  const alone = new WseClient({ url: 'ws://x', WebSocket: Socket, share: true })
  const connecting = alone.connect('me')
  while (!Socket.all.length) await new Promise(setImmediate)
  Socket.last.open()
  Socket.last.receive(['~wse:welcome', 'hello'])
  assert.equal(await connecting, 'hello')
})
