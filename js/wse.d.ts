/** The JavaScript client of WSE (WebSocket Everywhere). */

/** The type of a message, or the name of a procedure: a string, or whatever a custom protocol uses instead. */
export type MessageType = string | number | bigint | boolean

/** Why something failed. The members are those of `wse.ErrorCode` in Python, and the names of the original's documentation. */
export const WSE_ERROR: {
  readonly INVALID_CRA_HANDLER: 'wse.client.invalid-cra-handler'
  readonly RP_TIMEOUT: 'wse.client.rp.timeout'
  readonly RP_DISCONNECT: 'wse.client.rp.disconnect'
  readonly RP_SEND_FAILED: 'wse.client.rp.send-failed'
  readonly CLIENT_ALREADY_CONNECTED: 'wse.client.already-connected'
  readonly WS_CLIENT_ERROR: 'wse.client.ws-error'
  readonly NOT_AUTHORIZED: 'wse.not-authorized'
  readonly CLIENT_NOT_READY: 'wse.client.not-ready'
  readonly CONNECTION_CLOSED: 'wse.client.connection-closed'
  readonly CONNECTION_MISSING: 'wse.server.client.connection-missing'
  readonly IDENTIFY_HANDLER_MISSING: 'wse.server.auth.identify-handler-missing'
  readonly INVALID_CRA_GENERATOR: 'wse.server.auth.invalid-cra-generator'
  readonly RP_EXECUTION_FAILED: 'wse.server.rp.failed'
  readonly RP_NOT_REGISTERED: 'wse.server.rp.not-registered'
  readonly RP_ALREADY_REGISTERED: 'wse.server.rp.already-registered'
  readonly PROTOCOL_VIOLATION: 'wse.server.protocol-violation'
  readonly CONNECTION_ERROR: 'wse.server.connection-error'
  readonly MSG_PROCESSING_ERROR: 'wse.server.msg-processing-error'
  readonly LIMIT_EXCEEDED: 'wse.limit-exceeded'
  readonly SLOW_RECEIVER: 'wse.slow-receiver'
  readonly SESSION_EXPIRED: 'wse.session-expired'
  readonly SESSION_LOST: 'wse.session-lost'
  readonly UNSUPPORTED: 'wse.unsupported'
  readonly WRONG_THREAD: 'wse.wrong-thread'
  readonly INVALID_PAYLOAD: 'wse.invalid-payload'
  readonly RP_IS_A_STREAM: 'wse.rp.is-a-stream'
  readonly RP_NOT_A_STREAM: 'wse.rp.not-a-stream'
  readonly NOT_STARTED: 'wse.server.not-started'
  readonly HANDLER_BLOCKED: 'wse.server.handler-blocked'
  readonly HANDLER_CANCELLED: 'wse.server.handler-cancelled'
  readonly BROKER_UNAVAILABLE: 'wse.server.broker-unavailable'
  readonly BROKER_DEAF: 'wse.server.broker-deaf'
  readonly BROKER_LOST_MESSAGES: 'wse.server.broker-lost-messages'
  readonly LIFESPAN_FAILED: 'wse.server.lifespan-failed'
  /** The original's name for `CLIENT_NOT_READY`. */
  readonly CONNECTION_NOT_READY: 'wse.client.not-ready'
  /** The original's name for `CONNECTION_MISSING`. */
  readonly NO_CLIENT_CONNECTION: 'wse.server.client.connection-missing'
  /** The original's name for `MSG_PROCESSING_ERROR`. */
  readonly MESSAGE_PROCESSING_ERROR: 'wse.server.msg-processing-error'
}
export type WseErrorCode = (typeof WSE_ERROR)[keyof typeof WSE_ERROR]

/** Why a connection was closed: the reason in its close frame. */
export const WSE_REASON: {
  readonly NO_REASON: ''
  readonly CLIENTS_CONCURRENCY: 'wse.clients-concurrency'
  readonly NOT_AUTHORIZED: 'wse.not-authorized'
  readonly AUTH_TIMEOUT: 'wse.auth-timeout'
  readonly PROTOCOL_ERROR: 'wse.protocol-error'
  readonly BY_CLIENT: 'wse.by-client'
  readonly BY_SERVER: 'wse.by-server'
  readonly SESSION_EXPIRED: 'wse.session-expired'
  readonly RESUMED_ELSEWHERE: 'wse.resumed-elsewhere'
  readonly MOVED: 'wse.moved'
  readonly SLOW_RECEIVER: 'wse.slow-receiver'
  readonly LIMIT_MESSAGE_SIZE: 'wse.limit.message-size'
  readonly LIMIT_HANDSHAKE_SIZE: 'wse.limit.handshake-size'
  readonly LIMIT_NESTING: 'wse.limit.nesting'
  readonly LIMIT_HANDLERS: 'wse.limit.handlers'
  readonly LIMIT_MESSAGE_RATE: 'wse.limit.message-rate'
  readonly LIMIT_BYTE_RATE: 'wse.limit.byte-rate'
  readonly LIMIT_CONNECTIONS: 'wse.limit.connections'
  readonly LIMIT_CONNECTIONS_PER_ADDRESS: 'wse.limit.connections-per-address'
  readonly LIMIT_UNAUTHENTICATED: 'wse.limit.unauthenticated'
  /** The original's name for `PROTOCOL_ERROR`. */
  readonly PROTOCOL_ERR: 'wse.protocol-error'
}

/** The state of a client. */
export const WSE_STATUS: {
  readonly IDLE: 'IDLE'
  readonly CONNECTING: 'CONNECTING'
  readonly READY: 'READY'
  readonly OFFLINE: 'OFFLINE'
  readonly RE_CONNECTING: 'RE_CONNECTING'
}
export type WseStatus = keyof typeof WSE_STATUS

/** A failure that WSE reports, or one that a procedure sends to its caller: thrown in one, it arrives with the same code and details. */
export class WseError extends Error {
  constructor(code: WseErrorCode | (string & {}), details?: Record<string, any> | null, message?: string, cause?: unknown)
  name: string
  /** One of `WSE_ERROR`, or the application's own. */
  code: string
  /** Facts for programs: `rp` (the procedure), for example. */
  details: Record<string, any>
  /** The error behind it, if there is one. */
  cause?: unknown
}

/** One message. A falsy stamp makes it a plain one, any other a call or the answer to one. */
export interface Message {
  type: any
  payload?: any
  stamp?: any
}

/** The type names that a protocol uses for WSE's own messages. */
export interface InternalTypes {
  readonly hi: MessageType
  readonly challenge: MessageType
  readonly welcome: MessageType
  readonly call: MessageType
  readonly response: MessageType
  readonly response_error: MessageType
}

/** The type names that a protocol uses for extensions. */
export interface ExtensionTypes {
  /** The server's answer to the extensions that the client offers. */
  readonly ext: MessageType
  /** The request for a fresh identity, and the identity. */
  readonly auth: MessageType
  /** The reason of a refusal. */
  readonly refused: MessageType
  /** Messages of the other side that have been handled; without these three names, no session outlives its connection. */
  readonly ack?: MessageType
  /** The request for an `ack`. */
  readonly ask?: MessageType
  /** Messages that must not be delivered any more. */
  readonly gap?: MessageType
  /** A message that the server has kept; without this name and the next one, there are no inboxes. */
  readonly kept?: MessageType
  /** Kept messages whose listeners have returned. */
  readonly seen?: MessageType
  /** The call that enters a room; without this name and the following three, the client enters no rooms. */
  readonly join?: MessageType
  /** The call that leaves it. */
  readonly leave?: MessageType
  /** The state that this device shows in a room. */
  readonly set?: MessageType
  /** The states that members of a room show. */
  readonly presence?: MessageType
  /** The end of a call whose caller no longer waits; without this name and the following six, calls are plain ones. */
  readonly cancel?: MessageType
  /** An item of a stream. */
  readonly item?: MessageType
  /** Credit for items of a stream. */
  readonly more?: MessageType
  /** How far a procedure is. */
  readonly progress?: MessageType
  /** An item that the caller uploads. */
  readonly put?: MessageType
  /** Credit for items that the caller uploads. */
  readonly want?: MessageType
  /** The end of an upload. */
  readonly end?: MessageType
}

/** A message as an array `[type, payload, stamp]`; the original's protocols return one from `unpack`. */
export type MessageArray = [type: any, payload?: any, stamp?: any]

/** A message protocol encodes one message as the data of a WebSocket message, and decodes it. It keeps no state of a connection. */
export interface Protocol {
  /** The WebSocket subprotocol that stands for it. */
  readonly name: string
  readonly internal_types: InternalTypes
  /** Without these names, no extension is offered to the server. */
  readonly extensions?: ExtensionTypes
  /** May throw any error if the payload cannot be encoded. */
  pack(message: Message): string | ArrayBufferLike | ArrayBufferView
  /** May throw any error if the data is not a message; the connection is then closed. */
  unpack(data: any): Message | MessageArray
}

/**
 * The default protocol, `wse-default-json`: JSON arrays `[type, payload, stamp]`.
 *
 * A payload that JSON would lose is an error: NaN and infinities, functions, and objects that are not plain data (Map, Set,
 * ArrayBuffer, Blob, Error, Promise). Inside of a payload they become what `JSON.stringify` makes of them.
 */
export class WseJSON implements Protocol {
  name: string
  internal_types: InternalTypes
  extensions: ExtensionTypes
  pack(message: Message): string
  /** A `Message` that is also a `MessageArray`. A subclass may return either. */
  unpack(data: any): any
}

/** MessagePack, `wse-msgpack`, with an encoder of the application's choice: `new WseMsgpack(await import('@msgpack/msgpack'))`. */
export class WseMsgpack implements Protocol {
  constructor(codec: { encode(value: unknown): Uint8Array; decode(data: Uint8Array): unknown })
  name: string
  internal_types: InternalTypes
  extensions: ExtensionTypes
  pack: (message: Message) => Uint8Array
  unpack: (data: any) => any
}

/** Exponential backoff with full jitter: the n-th wait is random, up to `base * factor ** n` seconds, at most `cap`. */
export interface Backoff {
  /** The longest first wait, in seconds; 1 by default. */
  base?: number
  /** The longest wait, in seconds; 30 by default. */
  cap?: number
  /** The growth of the bound with every attempt; 2 by default. */
  factor?: number
  /** Returns a number from 0 to 1; `Math.random` by default. */
  random?: () => number
}

/** When a silent server is asked whether it is alive, and given up. All in seconds. */
export interface Heartbeat {
  /** Silence after which the server is asked; 20 by default, 0 for never. */
  interval?: number
  /** Time until the answer; 20 by default. Then the connection counts as lost, with code 1006. */
  timeout?: number
}

/** A WebSocket class: that of browsers, Node 22, Deno and Bun, or of the `ws` package. */
export type WebSocketClass = new (url: any, protocols?: any) => any

export interface WseClientOptions {
  /** The server's address. */
  url: string | URL
  /** Reconnect when the connection is lost; false by default. */
  reconnect?: boolean
  /** The original's name for `reconnect`. */
  re?: boolean
  /** Seconds until the answer to a call, and from the beginning of an attempt until the welcome; 20 by default, 0 for ever. */
  timeout?: number
  /** The original's name for `timeout`. */
  tO?: number
  /**
   * Whether a reconnecting client tries again after a close with that code and reason. It replaces the rule for every code
   * but 4000, which is always tried again. Not asked after `close()`.
   */
  retry?: (code: number, reason: string) => boolean
  /** When a silent server is asked, and given up. */
  heartbeat?: Heartbeat
  /** Bytes of the largest message that this client takes, for servers that want to know; by default nothing is said. */
  messageSize?: number
  /** The message protocol, an object or a class; `WseJSON` by default. */
  protocol?: Protocol | (new () => Protocol)
  /** The WebSocket class; by default the global one, which Node has from version 22 on. */
  WebSocket?: WebSocketClass
  /** The waits before attempts to reconnect. */
  backoff?: Backoff
  /** Send stack traces of failing procedures to the server; false by default. */
  debug?: boolean
  /**
   * Share one connection among the tabs of this browser that have the same origin, url and user; false by default. Calls,
   * procedures and listeners stay each tab's. A string names the user; `true` tells users apart by their identity, if it is
   * not a function. Needs `wse-share.js`, `wse-hub.js` and `wse-resume.js` beside `wse.js`, and the JSON protocol.
   */
  share?: boolean | string
  /**
   * Keep the session over lost connections, with `reconnect`: messages and calls of both sides arrive once, in order, when the
   * client is back in time. False by default. Needs `wse-resume.js` beside `wse.js`; not with `share`.
   */
  resume?: boolean | Resume
  /**
   * The name of this device, of your own choice: the client gets the messages that the server keeps for its user, each once for
   * as long as the page lives. Needs `wse-inbox.js` beside `wse.js`; not with `share`.
   */
  inbox?: string
  /**
   * The last kept message that the application has, as it was in `kept`, if it knows better than the server. Its number alone
   * does not tell when a store has lost the inbox.
   */
  after?: number | Pick<Kept, 'n' | 'epoch'>
  /**
   * Let the client enter rooms, and show states there; see `WseClient.room`. Needs `wse-rooms.js` beside `wse.js`; not with
   * `share`.
   */
  rooms?: boolean
}

/** What members of a room show: by user, the states of the user's devices by their names. */
export type States = Record<string, Record<string, any>>

/** What the members of a room show each other. */
export interface WsePresence {
  /**
   * Show a state to the members of the room, until it is cleared, `ttl` seconds are over, or the client leaves the room or ends.
   * While the client reconnects, the newest state is kept. Throws a `WseError`: `wse.client.not-ready`, the client is not in the
   * room; `wse.unsupported`, the room has no presence; `wse.limit-exceeded`, the state is too large. A state is not null.
   */
  set(state: {} | boolean | number | string, options?: { ttl?: number }): void
  /** Take the state of this device away. */
  clear(): void
  /** The users with a state. While the client reconnects, it is what was known before. */
  readonly members: States
  /** The name of this device among those of its user; an empty string before the first connection. */
  readonly device: string
  readonly when: {
    /** The states that have changed; null for those that are gone. `members` has all states already. */
    readonly changed: WsePresenceSignal
  }
}

/** A signal of the presence of a room. */
export interface WsePresenceSignal {
  /** Listen; returns the function that unsubscribes. */
  (fn: (changes: States) => unknown): () => void
  once(fn: (changes: States) => unknown): () => void
  off(fn: (changes: States) => unknown): void
  /** Resolves with the changes when it fires next. */
  wait(): Promise<States>
}

/** A room, which the client can enter. */
export interface WseRoom {
  readonly name: string | number
  /**
   * Enter the room; the server's `room_guard` decides. When this resolves, `presence.members` has the states of the others. After a
   * reconnect the client enters it again by itself; if the server then refuses that, the error goes to `when.error`.
   */
  join(): Promise<void>
  /** Leave the room; nothing happens if the client is not in it. */
  leave(): Promise<void>
  readonly presence: WsePresence
}

/** Where a message stands in the inbox. */
export interface Kept {
  /** Its number among the messages that have been kept for the user, which count from 1. */
  readonly n: number
  /** When it was kept, in Unix seconds by the server's clock. */
  readonly at: number
  /** A name for this row of numbers: a store that has lost the inbox begins another one. */
  readonly epoch?: string
}

/** How long a session is kept without a connection, and how much of it. The server has its own settings, and may keep less. */
export interface Resume {
  /** Seconds; by default the server's. */
  window?: number
  /** Bytes of messages that are kept until the server has confirmed them, or while there is no connection; by default the server's. */
  bytes?: number
  /** The same as a number of messages. */
  messages?: number
}

/** A session that has ended, and the messages of this client that it has not delivered, calls and answers apart; the oldest first. */
export interface Loss {
  /**
   * Why it could not go on: `expired`, the client was away for too long; `overflow`, too much had to be kept; `ended`, the
   * server has closed it; `unknown`, the server has no such session, after a restart for example; `off`, it keeps no sessions;
   * `user`, the client has come back as another user; `protocol`, with another message protocol; `stuck`, the same message has
   * broken several connections; `gap` and `mismatch`, the two sides do not fit together;
   * `unreachable`, the node of the cluster that had the session does not answer.
   */
  readonly why: string
  /** Messages of which nobody knows whether the server has had them. */
  readonly uncertain: { type: any; payload: any }[]
  /** Messages that the server has certainly not had. */
  readonly unsent: { type: any; payload: any }[]
  /** Send the `unsent` ones again; with `uncertain`, first also those of which nobody knows, and the server may get them twice. */
  resend(options?: { uncertain?: boolean }): void
}

/** Credentials take part in the handshake themselves. One object serves any number of connections, one after the other. */
export interface Credentials {
  /** The identity that the first message carries. */
  start(): unknown
  /** The response to the server's quest. */
  respond(quest: any): Promise<unknown>
  /** Checks the welcome and returns the part that belongs to the application. */
  finish(welcome: any): any
}

/** When a handler of messages or calls is called. */
export interface HandlerOptions {
  /**
   * It begins when the ordered handlers of this connection that were called before have ended, those of messages and of calls;
   * false by default. It must not wait for a call that waits in the same order.
   */
  ordered?: boolean
}

/** What a procedure takes, and when it is called. */
export interface ProcedureOptions extends HandlerOptions {
  /** It takes the items of an upload, as `items` of its second argument; false by default. Not with `ordered`. */
  upload?: boolean
}

/**
 * What a client and its server say to each other, by name; `wse generate typescript` writes it from the server's contract. A
 * client without a contract knows no names, and takes all of them.
 */
export interface WseContract {
  /** The identity and the meta that the server takes, and the welcome that it gives. */
  identity?: unknown
  meta?: unknown
  welcome?: unknown
  /** Messages of the client, with the types of their payloads: `{ chat: string }`. */
  send?: object
  /** Procedures of the server: `{ add: { payload: [number, number]; result: number } }`; with `upload`, the type of its items. */
  call?: object
  /** Procedures of the server that yield: `{ tail: { payload: null; item: string } }`; with `upload` as well. */
  stream?: object
  /** Messages of the server, with the types of their payloads. */
  on?: object
  /** Procedures of the client, as `call`, or as `stream` for those that yield. */
  register?: object
}

type IsAny<T> = 0 extends 1 & T ? true : false
type Part<C, K extends keyof WseContract> = C extends { [P in K]: infer Found } ? Found : {}
/** The names in a part of a contract. */
export type WseName<C, K extends keyof WseContract> = IsAny<C> extends true ? MessageType : Extract<keyof Part<C, K>, MessageType>
type Opening<C, K extends keyof WseContract, Untyped> = IsAny<C> extends true ? Untyped : C extends { [P in K]: infer Found } ? Found : Untyped
/** An identity, or a function that is asked for one at every attempt. */
export type WseIdentity<C> = Opening<C, 'identity', any> | (() => Opening<C, 'identity', any> | Promise<Opening<C, 'identity', any>>) | Credentials
export type WseMeta<C> = Opening<C, 'meta', Record<string, any>>
export type WseWelcome<C> = Opening<C, 'welcome', any>
type Said<C, K extends keyof WseContract, N> = N extends keyof Part<C, K> ? Part<C, K>[N] : never
type Facet<E, F extends string> = E extends { [P in F]: infer Found } ? Found : never
/** The payload of a message. */
export type WseMessage<C, K extends 'send' | 'on', N, Untyped = any> = IsAny<C> extends true ? Untyped : Said<C, K, N>
/** The payload, result, item or upload of a procedure. */
export type WseFacet<C, K extends 'call' | 'stream' | 'register', N, F extends string, Untyped = any> = IsAny<C> extends true ? Untyped : Facet<Said<C, K, N>, F>
type Optional<P, Options> = null extends P ? [payload?: P, options?: Options] : [payload: P, options?: Options]
/** The arguments of a call after the name. A procedure that takes an upload must get one. */
export type WseArguments<C, K extends 'call' | 'stream', N, Options> = IsAny<C> extends true
  ? [payload?: unknown, options?: Options]
  : Said<C, K, N> extends { upload: infer U }
    ? [payload: WseFacet<C, K, N, 'payload'>, options: Omit<Options, 'upload'> & { upload: Iterable<U> | AsyncIterable<U> }]
    : Optional<WseFacet<C, K, N, 'payload'>, Omit<Options, 'upload'>>
/** What a procedure of the client returns. */
export type WseAnswer<C, N> = IsAny<C> extends true
  ? unknown
  : Said<C, 'register', N> extends { item: infer I }
    ? Iterable<I> | AsyncIterable<I>
    : Facet<Said<C, 'register', N>, 'result'> | Promise<Facet<Said<C, 'register', N>, 'result'>>

/** The listeners of plain messages, by type. */
export interface WseChannel<C = any> {
  /** Call `fn` for every message of that type. */
  on<T = any, N extends WseName<C, 'on'> = WseName<C, 'on'>>(type: N, fn: (payload: WseMessage<C, 'on', N, T>) => unknown, options?: HandlerOptions): this
  /** Call `fn` for the next message of that type only. */
  once<T = any, N extends WseName<C, 'on'> = WseName<C, 'on'>>(type: N, fn: (payload: WseMessage<C, 'on', N, T>) => unknown): this
  /** Remove the last registration of `fn` for that type; without `fn`, all listeners of the type. */
  off(type: MessageType, fn?: (payload: any) => unknown): this
  /** Remove all listeners of that type; without a type, all listeners. */
  removeAll(type?: MessageType): this
  /** The number of listeners of that type. */
  listenerCount(type: MessageType): number
  /** The original's name for `off`. */
  removeListener(type: MessageType, fn?: (payload: any) => unknown): this
  /** The original's name for `removeAll`. */
  removeAllListeners(type?: MessageType): this
}

/** Something that happens to a client. */
export interface WseSignal<Args extends any[]> {
  /** Call `fn` at every emission. Returns the function that ends this subscription. */
  (fn: (...args: Args) => unknown): () => void
  /** Call `fn` at the next emission only. */
  once(fn: (...args: Args) => unknown): () => void
  /** Remove the last subscription of `fn`. */
  off(fn: (...args: Args) => unknown): void
  /** Wait for the next emission; resolves with its arguments. Rejects with a `TimeoutError` after `timeout` seconds. */
  wait(timeout?: number): Promise<Args>
}

export interface WseSignals<C = any> {
  /** The socket is open; the welcome is still to come. */
  readonly connected: WseSignal<[]>
  /** The server has accepted us. A listener that is added while the client is READY is called at once, and `wait` resolves. */
  readonly ready: WseSignal<[welcome: WseWelcome<C>]>
  /** The client is back in its session. `ready` fires only for listeners that were added meanwhile. */
  readonly resumed: WseSignal<[welcome: WseWelcome<C>]>
  /** A session could not go on. If another one begins, `ready` follows. */
  readonly lost: WseSignal<[loss: Loss]>
  /** So many messages that were kept for this user are gone: newer ones took their place, or they expired. */
  readonly inboxLost: WseSignal<[count: number]>
  /** The connection has ended. */
  readonly closed: WseSignal<[code: number, reason: string]>
  /** Something has failed where nobody awaits it. Errors without a listener go to `console.error`. */
  readonly error: WseSignal<[err: WseError]>
  /** The client is offline and will not try again, for another reason than `close()`. A late listener is called at once. */
  readonly gaveUp: WseSignal<[err: WseError]>
  /** The same as `gaveUp`, as Python spells it. */
  readonly gave_up: WseSignal<[err: WseError]>
  /** `client.status` has changed. A late listener is called at once, with the present status. */
  readonly updated: WseSignal<[status: WseStatus]>
  /** A message has no listener. */
  readonly ignored: WseSignal<[type: any, payload: any, stamp: any]>
}

/** How a procedure is called. */
export interface CallOptions {
  /** Seconds to wait for the answer, 0 for ever; by default the client's. */
  timeout?: number
  /** The original's name for `timeout`. */
  tO?: number
  /** Gives the call up when it aborts. */
  signal?: AbortSignal
  /** Called with what the procedure reports about its progress. */
  onProgress?: (value: any) => unknown
  /** Items for a procedure that takes an upload, sent as fast as it takes them. */
  upload?: Iterable<unknown> | AsyncIterable<unknown>
}

/** How a procedure that yields is called. */
export interface StreamOptions extends Pick<CallOptions, 'signal' | 'onProgress' | 'upload'> {
  /** Items that may be on their way, or wait here; 32 by default, at most 256. */
  window?: number
  /** Seconds to wait for each item, 0 for ever; 0 by default. */
  timeout?: number
  /** Seconds for the whole stream, 0 for ever; 0 by default. */
  deadline?: number
}

/** A call of the server, as the procedure sees it. */
export interface ServedCall {
  /** Aborts when the result is no longer wanted: the server has given up or is gone, or the deadline has passed. */
  readonly signal: AbortSignal
  /** When the server gives up, in the milliseconds of `Date.now()`; Infinity if it waits for ever, or does not tell. */
  readonly deadline: number
  /** Tell the server how far the procedure is. Nothing is sent if the server has not asked for it. */
  progress(value: unknown): void
  /** What the server uploads to a procedure that is registered with `upload: true`. */
  readonly items?: AsyncIterableIterator<any>
}

/** A WSE client. With a contract, `WseClient<Contract>`, it knows names and types. */
export class WseClient<C extends WseContract = any> {
  constructor(options: WseClientOptions)

  readonly url: string
  readonly status: WseStatus
  /** The error that ended the client, if it is offline and will not try again; null after `close()`. */
  readonly gaveUp: WseError | null
  /** Whether the last welcome was a return to the session from before. */
  readonly recovered: boolean
  /**
   * Where the message stands in the inbox, inside a listener of a kept message; otherwise null. An async listener reads it before
   * its first `await`.
   */
  readonly kept: Kept | null
  readonly protocol: Protocol
  readonly channel: WseChannel<C>
  readonly when: WseSignals<C>
  /**
   * The room of that name; the same name returns the same object. Only with the option `rooms`, and from the first connection on.
   */
  readonly room: (name: string | number) => WseRoom

  /**
   * Connect; resolves with the welcome. An identity that is not given is as before, with its meta.
   *
   * The identity may be a function, sync or async, which is asked at every attempt. If it fails, the attempt counts as one at a
   * server that cannot be reached. A refusal is followed by one more attempt with a fresh identity, also without `reconnect`.
   *
   * Fails with a `WseError`: `CLIENT_ALREADY_CONNECTED`; `WS_CLIENT_ERROR`, no WebSocket could be opened;
   * `NOT_AUTHORIZED`, the server refused us; `CONNECTION_CLOSED`, closed before the welcome, with `code` and `reason`
   * in the details. With `reconnect`, it fails only if the client will not try again. A server may add its own `reason` for a
   * refusal to the details, and `retry`, whether a later attempt may succeed.
   */
  connect(identity?: WseIdentity<C>, meta?: WseMeta<C>): Promise<WseWelcome<C>>

  /** Move to another server; resolves with its welcome. Whatever is not given is as before. On an idle client it is `connect`. */
  jump(url: string | URL, identity?: WseIdentity<C>, meta?: WseMeta<C>): Promise<WseWelcome<C>>

  /** Disconnect with code 1000, and do not reconnect; resolves when the socket is closed, at the latest after 5 seconds. */
  close(reason?: string): Promise<void>

  /**
   * Wait until the client is READY; resolves with the welcome. Rejects if the client gives up or is closed, or with a
   * `TimeoutError` after `timeout` seconds.
   */
  waitReady(timeout?: number): Promise<WseWelcome<C>>
  /** Wait until the client is offline and will not try again; resolves with `gaveUp`. */
  waitClosed(timeout?: number): Promise<WseError | null>

  /**
   * Wait until the server has handled everything that has been sent until now; its handlers need not have ended. Rejects with
   * `SESSION_LOST`, with `UNSUPPORTED` if the session does not outlive its connection, or with a `TimeoutError` after
   * `timeout` seconds.
   */
  flush(timeout?: number): Promise<void>

  /** Send a message; throws `CLIENT_NOT_READY`, `PROTOCOL_VIOLATION` (a reserved type) or `MSG_PROCESSING_ERROR` (not encodable). */
  send<N extends WseName<C, 'send'>>(type: N, ...payload: null extends WseMessage<C, 'send', N> ? [payload?: WseMessage<C, 'send', N, unknown>] : [payload: WseMessage<C, 'send', N>]): void

  /**
   * Call a procedure of the server.
   *
   * Fails with the error that the procedure threw, or `CLIENT_NOT_READY`, `PROTOCOL_VIOLATION` (a reserved name),
   * `RP_NOT_REGISTERED`, `RP_TIMEOUT`, `RP_DISCONNECT` or `RP_SEND_FAILED`. With `resume`, `details.arrived` of a timeout or
   * disconnect says whether the server has had the call: true, false, or null if that is not known.
   *
   * Rejects with the reason of `options.signal` when that aborts; the server is told then, as after a timeout. A server that
   * does not know the extension `calls` is not told, and `onProgress` and `upload` fail with `UNSUPPORTED`.
   */
  call<T = any, N extends WseName<C, 'call'> = WseName<C, 'call'>>(name: N, ...args: WseArguments<C, 'call', N, CallOptions>): Promise<WseFacet<C, 'call', N, 'result', T>>

  /**
   * Call a procedure of the server that yields: `for await (const item of client.stream('tail', { file }))`.
   *
   * The call is made when the first item is asked for. Leaving the loop ends the procedure. After the items that have come, the
   * iterator throws what `call` would; also `RP_NOT_A_STREAM`, or `UNSUPPORTED` if the server does not know the extension `calls`.
   */
  stream<T = any, N extends WseName<C, 'stream'> = WseName<C, 'stream'>>(name: N, ...args: WseArguments<C, 'stream', N, StreamOptions>): AsyncIterableIterator<WseFacet<C, 'stream', N, 'item', T>>

  /**
   * Let the server call `fn` under that name. Whatever it throws, or its promise rejects with, is sent back as an error. What a
   * generator yields, async or not, is sent item by item, as fast as the server takes it.
   *
   * Nothing in JavaScript stops a function from outside: `call.signal` tells it that its result is no longer wanted. Throws
   * `RP_ALREADY_REGISTERED`, `PROTOCOL_VIOLATION` (a reserved name), or a TypeError for a generator with `ordered`.
   */
  register<N extends WseName<C, 'register'>>(name: N, fn: (payload: WseFacet<C, 'register', N, 'payload'>, call: ServedCall) => WseAnswer<C, N>, options?: ProcedureOptions): void
  /** Take a procedure away. */
  unregister(name: MessageType): void

  /** Set the handler that answers the server's quest by calling `solve` with the response, at once or later. */
  challenge(fn: (quest: any, solve: (response?: unknown) => void) => unknown): void
}

/**
 * SCRAM-SHA-256 credentials, the client's half of `wse.auth.ScramServer`: `client.connect(new Scram('ada', 'secret'))`.
 *
 * The connection fails with `NOT_AUTHORIZED` also when the server does not prove that it knows the user. Needs WebCrypto.
 */
export class Scram implements Credentials {
  /** Throws a TypeError for an empty name, or characters that SASLprep (RFC 4013) forbids. */
  constructor(username: string, password: string)
  start(): { scram: string }
  respond(quest: any): Promise<{ scram: string }>
  finish(welcome: any): any
}
