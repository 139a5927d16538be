/** The JavaScript client of WSE (WebSocket Everywhere). */

/** What a type of message, or the name of a procedure, may be: a string, or what a custom protocol uses instead. */
export type MessageType = string | number | bigint | boolean

/** Why something failed. The members are those of `wse.ErrorCode` in Python. */
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
}
export type WseErrorCode = (typeof WSE_ERROR)[keyof typeof WSE_ERROR]

/** Why a connection was closed: the reason of the close. */
export const WSE_REASON: {
  readonly NO_REASON: ''
  readonly CLIENTS_CONCURRENCY: 'wse.clients-concurrency'
  readonly NOT_AUTHORIZED: 'wse.not-authorized'
  readonly AUTH_TIMEOUT: 'wse.auth-timeout'
  readonly PROTOCOL_ERROR: 'wse.protocol-error'
  readonly BY_CLIENT: 'wse.by-client'
  readonly BY_SERVER: 'wse.by-server'
}

/** What a client is doing. */
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
  /** What a program may want to know, `rp` (the procedure) for example. */
  details: Record<string, any>
  /** What was behind it, if anything. */
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

/** A message protocol: how one message becomes the data of a WebSocket message, and back. Keeps no state of a connection. */
export interface Protocol {
  /** The WebSocket subprotocol that stands for it. */
  readonly name: string
  readonly internal_types: InternalTypes
  /** Throws whatever it likes if the payload cannot be encoded. */
  pack(message: Message): string | ArrayBufferLike | ArrayBufferView
  /** Throws whatever it likes if the data is no message; the connection is then closed. */
  unpack(data: string | ArrayBuffer): Message
}

/** The default protocol, `wse-default-json`: JSON arrays `[type, payload, stamp]`. */
export class WseJSON implements Protocol {
  readonly name: string
  readonly internal_types: InternalTypes
  pack: (message: Message) => string
  unpack: (data: string | ArrayBuffer) => Message
}

/** MessagePack, `wse-msgpack`, with an encoder of the application's choice: `new WseMsgpack(await import('@msgpack/msgpack'))`. */
export class WseMsgpack implements Protocol {
  constructor(codec: { encode(value: unknown): Uint8Array; decode(data: Uint8Array): unknown })
  readonly name: string
  readonly internal_types: InternalTypes
  pack: (message: Message) => Uint8Array<ArrayBuffer>
  unpack: (data: string | ArrayBuffer) => Message
}

/** Exponential backoff with full jitter: the n-th wait is random, up to `base * factor ** n` seconds, at most `cap`. */
export interface Backoff {
  /** Seconds that the first wait lasts at most; 1 by default. */
  base?: number
  /** Seconds that any wait lasts at most; 30 by default. */
  cap?: number
  /** What the bound grows by with every attempt; 2 by default. */
  factor?: number
  /** Returns a number from 0 to 1; `Math.random` by default. */
  random?: () => number
}

/** What WSE needs of a WebSocket class: that of browsers, Node 22, Deno and Bun, or of the `ws` package. */
export type WebSocketClass = new (url: any, protocols?: any) => any

export interface WseClientOptions {
  /** Where the server is. */
  url: string | URL
  /** Reconnect when the connection is lost; false by default. */
  re?: boolean
  /** Seconds that a call waits for its answer and a socket may take to open; 20 by default, 0 for ever. */
  tO?: number
  /** The message protocol, an object or a class; `WseJSON` by default. */
  protocol?: Protocol | (new () => Protocol)
  /** The WebSocket class; by default the global one, which Node has from version 22 on. */
  WebSocket?: WebSocketClass
  /** How long to wait before each attempt to reconnect. */
  backoff?: Backoff
  /** Send stack traces of failing procedures to the server; false by default. */
  debug?: boolean
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

/** The listeners of plain messages, by type. */
export interface WseChannel {
  /** Call `fn` for every message of that type. */
  on<T = any>(type: MessageType, fn: (payload: T) => unknown): this
  /** Call `fn` for the next message of that type only. */
  once<T = any>(type: MessageType, fn: (payload: T) => unknown): this
  /** Do not call `fn` for that type any more; without `fn`, none of its listeners. */
  off(type: MessageType, fn?: (payload: any) => unknown): this
}

/** Calling it subscribes, and returns the function that ends the subscription. */
export type WseSignal<Args extends any[]> = (fn: (...args: Args) => unknown) => () => void

export interface WseSignals {
  /** The socket is open; the welcome is still to come. */
  readonly connected: WseSignal<[]>
  /** The server has accepted us. A listener that is added later is called at once, with the last welcome. */
  readonly ready: WseSignal<[welcome: any]>
  /** The connection has ended. */
  readonly closed: WseSignal<[code: number, reason: string]>
  /** Something has failed; `cause` is what was behind it. Errors without a listener go to `console.error`. */
  readonly error: WseSignal<[err: WseError]>
  /** `client.status` has changed. */
  readonly updated: WseSignal<[status: WseStatus]>
  /** A message came that nobody listens to. */
  readonly ignored: WseSignal<[type: any, payload: any, stamp: any]>
}

/** A WSE client. */
export class WseClient {
  constructor(options: WseClientOptions)

  readonly url: string
  readonly status: WseStatus
  readonly protocol: Protocol
  readonly channel: WseChannel
  readonly when: WseSignals

  /**
   * Connect; resolves with the welcome. What is not given is as before.
   *
   * Fails with a `WseError`: `CLIENT_ALREADY_CONNECTED`; `WS_CLIENT_ERROR`, no WebSocket could be opened;
   * `NOT_AUTHORIZED`, the server refused us; `CONNECTION_CLOSED`, closed before the welcome, with `code` and `reason`
   * in the details. With `re`, only what will not be tried again fails it.
   */
  connect(identity?: any, meta?: Record<string, any>): Promise<any>

  /** Move to another server; resolves with its welcome. What is not given is as before. On an idle client it is `connect`. */
  jump(url: string | URL, identity?: any, meta?: Record<string, any>): Promise<any>

  /** Disconnect with code 1000, and do not reconnect; resolves when the socket is closed. */
  close(reason?: string): Promise<void>

  /** Send a message; throws `CLIENT_NOT_READY`, `PROTOCOL_VIOLATION` (a reserved type) or `MSG_PROCESSING_ERROR` (not encodable). */
  send(type: MessageType, payload?: unknown): void

  /**
   * Call a procedure of the server.
   *
   * Fails with what the procedure threw, or `CLIENT_NOT_READY`, `PROTOCOL_VIOLATION` (a reserved name),
   * `RP_NOT_REGISTERED`, `RP_TIMEOUT`, `RP_DISCONNECT` or `RP_SEND_FAILED`.
   *
   * @param options tO: seconds to wait for the answer, 0 for ever; by default the client's.
   */
  call<T = any>(name: MessageType, payload?: unknown, options?: { tO?: number }): Promise<T>

  /** Let the server call `fn` under that name. What it throws, or its promise rejects with, is sent back as an error. */
  register(name: MessageType, fn: (payload: any) => unknown): void
  /** Take a procedure away. */
  unregister(name: MessageType): void

  /** Set the handler that answers the server's quest by calling `solve` with the response, then or later. */
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
