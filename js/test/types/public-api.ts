// What an application writes, as the type checker sees it. Never run; `npm run types` checks it.
import {
  Scram,
  WSE_ERROR,
  WSE_REASON,
  WSE_STATUS,
  WseClient,
  WseError,
  WseJSON,
  WseMsgpack,
  type Protocol,
  type WseStatus,
} from 'wse-js'
import * as msgpack from '@msgpack/msgpack'
import { WebSocket as WsWebSocket } from 'ws'

type Equal<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false
const is = <_ extends true>(): void => {}

const client = new WseClient({ url: 'ws://localhost:4200' })
new WseClient({ url: new URL('wss://example.org'), re: true, tO: 0, WebSocket: WsWebSocket, backoff: { base: 2, random: () => 0 }, debug: true })
new WseClient({ url: '', WebSocket, protocol: WseJSON })
new WseClient({ url: '', protocol: new WseMsgpack(msgpack) })
// @ts-expect-error the URL is required
new WseClient({})
new WseClient({ url: '', reconnect: true, timeout: 5, retry: (code, reason) => code === 1000 && reason === '', heartbeat: { interval: 5 }, messageSize: 1 << 20, share: true })
new WseClient({ url: '', reconnect: true, resume: true }).when.lost((loss) => loss.resend())
new WseClient({ url: '', resume: { window: 60, bytes: 1 << 18, messages: 100 } }).when.resumed((welcome: string) => welcome)
is<Equal<ReturnType<typeof client.flush>, Promise<void>>>()
// @ts-expect-error there is no such option
new WseClient({ url: '', timeOut: 5 })
// @ts-expect-error a rule returns a boolean
new WseClient({ url: '', retry: async () => true })
// @ts-expect-error a codec decodes, too
new WseMsgpack({ encode: msgpack.encode })

is<Equal<typeof client.status, WseStatus>>()
is<Equal<WseStatus, 'IDLE' | 'CONNECTING' | 'READY' | 'OFFLINE' | 'RE_CONNECTING'>>()
is<Equal<ReturnType<typeof client.connect>, Promise<any>>>()
is<Equal<ReturnType<typeof client.close>, Promise<void>>>()
is<Equal<ReturnType<typeof client.send>, void>>()
// @ts-expect-error the status is told, not set
client.status = WSE_STATUS.READY

void client.connect(new Scram('ada', 'secret'), { device: 'phone' })
void client.jump('ws://elsewhere', { token: 't' })
void client.close(WSE_REASON.BY_CLIENT)
client.send('chat', { text: 'hello' })
client.send(5)
// @ts-expect-error a message needs a type
client.send(null)

const sum: Promise<number> = client.call<number>('add', { a: 1 }, { tO: 5 })
void sum
void client.call('job', null, { timeout: 60, signal: AbortSignal.timeout(5), onProgress: (done) => is<Equal<typeof done, any>>(), upload: [1, 2] })
// @ts-expect-error only a stream has a window
void client.call('job', null, { window: 5 })
client.register('info', async (payload: { a: number }) => payload.a)
client.register('ticks', async function* (count: number, { signal, deadline, progress }) {
  is<Equal<[typeof signal, typeof deadline], [AbortSignal, number]>>()
  progress({ done: 0 })
  yield* Array(count).keys()
})
client.register('import', async (_meta, { items }) => {
  for await (const item of items!) void item
}, { upload: true })
client.register('save', async () => {}, { ordered: true })
client.channel.on('edit', async (_text: string) => {}, { ordered: true })
// @ts-expect-error there is no such option
client.channel.on('edit', () => {}, { once: true })
const stream = client.stream<{ text: string }>('tail', { file: 'x' }, { window: 8, timeout: 5, deadline: 60, signal: new AbortController().signal })
for await (const line of stream) is<Equal<typeof line, { text: string }>>()
for await (const item of client.stream('tail')) is<Equal<typeof item, any>>()
// @ts-expect-error the window is a number
client.stream('tail', null, { window: '8' })
client.unregister('info')
client.challenge((quest: string, solve) => solve(quest.length))
client.challenge(async (_quest, solve) => solve())

client.channel.on<{ text: string }>('chat', ({ text }) => is<Equal<typeof text, string>>()).once('other', () => {}).off('chat')
client.channel.removeAll('chat').removeAll().removeListener('chat').removeAllListeners()
is<Equal<ReturnType<typeof client.channel.listenerCount>, number>>()
// @ts-expect-error a listener is a function
client.channel.on('chat', 5)

const off = client.when.ready((welcome) => is<Equal<typeof welcome, any>>())
is<Equal<typeof off, () => void>>()
client.when.connected(() => {})
client.when.gaveUp.once((error) => is<Equal<typeof error, WseError>>())
client.when.closed.off((code, reason) => [code, reason])
const closing: Promise<[number, string]> = client.when.closed.wait(5)
void closing
is<Equal<typeof client.gaveUp, WseError | null>>()
void client.waitReady(5).then((welcome) => is<Equal<typeof welcome, any>>())
void client.waitClosed().then((error) => is<Equal<typeof error, WseError | null>>())
void client.connect(() => 'token')
void client.connect(async () => ({ token: 't' }))
client.when.closed((code, reason) => is<Equal<[typeof code, typeof reason], [number, string]>>())
client.when.error((error) => is<Equal<typeof error, WseError>>())
client.when.updated((status) => is<Equal<typeof status, WseStatus>>())
client.when.ignored((type, payload, stamp) => [type, payload, stamp])

const error = new WseError(WSE_ERROR.RP_TIMEOUT, { rp: 'add' })
is<Equal<typeof error.code, string>>()
new WseError('app.own', null, 'text', new Error())

class Pipes implements Protocol {
  name = 'pipes'
  internal_types = { hi: 1, challenge: 2, welcome: 3, call: 4, response: 5, response_error: 6 }
  pack = ({ type, payload, stamp }: { type: unknown; payload?: unknown; stamp?: unknown }) => `${type}|${payload}|${stamp}`
  unpack = (data: string | ArrayBuffer) => ({ type: data, payload: null })
}
new WseClient({ url: '', protocol: Pipes })

class Original {
  name = 'original'
  internal_types = new WseJSON().internal_types
  pack = ({ type, payload, stamp }: { type: any; payload?: any; stamp?: any }) => JSON.stringify([type, payload, stamp])
  unpack = (encoded: string): [any, any, any] => JSON.parse(encoded)
}
new WseClient({ url: '', protocol: Original })

export class Dated extends WseJSON {
  name = 'dated'
  pack(message: { type: any; payload?: any; stamp?: any }) {
    return super.pack(message)
  }
  unpack(data: string) {
    const [type, payload, stamp] = super.unpack(data)
    return { type, payload, stamp }
  }
}

// With a contract, names and types are known; what it does not have cannot be said.
interface Talk {
  send: { chat: string }
  call: { add: { payload: [number, number]; result: number }; now: { payload: null; result: string }; load: { payload: null; result: number; upload: Uint8Array } }
  stream: { tail: { payload: { file: string }; item: string } }
  register: { battery: { payload: null; result: number }; lines: { payload: string; item: string } }
}
const talk = new WseClient<Talk>({ url: '' })
const plain: WseClient = talk
plain.send('anything', 1)
talk.send('chat', 'hello')
// @ts-expect-error there is no such message
talk.send('chatt', 'hello')
// @ts-expect-error the payload is text
talk.send('chat', 5)
is<Equal<Awaited<typeof added>, number>>()
const added = talk.call('add', [1, 2], { timeout: 5 })
void talk.call('now')
void talk.call('load', null, { upload: [new Uint8Array()] })
// @ts-expect-error it takes an upload
void talk.call('load', null)
// @ts-expect-error a stream is no plain procedure
void talk.call('tail', { file: '' })
for await (const line of talk.stream('tail', { file: 'x' }, { window: 2 })) is<Equal<typeof line, string>>()
talk.register('battery', async () => 5)
talk.register('lines', function* (text) {
  yield* text.split('\n')
})
// @ts-expect-error the result is a number
talk.register('battery', () => 'full')
// @ts-expect-error the contract has no messages of the server
talk.channel.on('chat', () => {})

// So are identity, meta and welcome; without them in the contract, anything may be said.
interface Guarded {
  identity: { token: string }
  meta: { kind: 'page' | 'phone' }
  welcome: { user: string }
}
const guarded = new WseClient<Guarded>({ url: '' })
is<Equal<Awaited<typeof welcomed>, { user: string }>>()
const welcomed = guarded.connect({ token: 'x' }, { kind: 'page' })
void guarded.connect(async () => ({ token: 'x' }))
void guarded.jump('ws://other', { token: 'y' })
guarded.when.ready((welcome) => is<Equal<typeof welcome, { user: string }>>())
// @ts-expect-error the identity has a token
void guarded.connect('ada')
// @ts-expect-error there is no such kind
void guarded.connect({ token: 'x' }, { kind: 'toaster' })
void talk.connect('ada', { anything: 1 })
is<Equal<Awaited<typeof anything>, any>>()
const anything = talk.waitReady()
const unguarded: WseClient = guarded
void unguarded.connect(5)

const room = new WseClient({ url: '', rooms: true }).room('doc:7')
void room.join().then(() => room.leave())
room.presence.set({ cursor: [3, 9] }, { ttl: 3 })
room.presence.set(0)
room.presence.clear()
// @ts-expect-error a state is not null
room.presence.set(null)
is<Equal<typeof room.presence.members, Record<string, Record<string, any>>>>()
const unsubscribe = room.presence.when.changed((changes) => changes['ann']?.[room.presence.device])
unsubscribe()
void room.presence.when.changed.wait().then((changes) => Object.keys(changes))
