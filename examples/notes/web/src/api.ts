// Made by `wse generate typescript`. Changes are lost when it is made again.
import { WseClient, type WseErrorCode } from 'wse-js'

/** What a device says of itself. */
export interface Device {
  kind: 'page' | 'terminal'
  name: string
}

/** The identity of a client. */
export interface Login {
  token: string
}

export interface NewNote {
  text: string
}

/** A note, as its readers see it. */
export interface Note {
  id: number
  owner: string
  text: string
  at: string
}

/** Names a note. */
export interface NoteRef {
  note: number
}

/** A part of the notes, the newest first. */
export interface Page {
  before?: number | null
  size?: number
}

export interface Presence {
  user: string
  online: boolean
}

/** A note, and the user who may read it. */
export interface Share {
  note: number
  user: string
}

/** What a client gets when it is let in. */
export interface Welcome {
  user: string
}

/** The codes of errors: those that procedures declare, and those of WSE. */
export type ErrorCode = 'notes.not-yours' | 'sharing.no-such-user' | WseErrorCode

/** What notes_app.main and its clients say to each other. */
export interface Contract {
  /** What the server asks of a client: `client.connect(identity)`. */
  identity: Login
  /** What it gets: `const welcome = await client.connect(identity)`. */
  welcome: Welcome
  /** Messages that the client sends: `client.send(name, payload)`. */
  send: {}
  /** Procedures of the server: `await client.call(name, payload)`. */
  call: {
    /** The user's devices. Every one is asked; one that does not answer is left out. */
    'account.devices': { payload: null; result: Device[] }
    /** End the session: its token is worth nothing from now on, here and in other tabs. */
    'account.log_out': { payload: null; result: null }
    /** The users who are connected. */
    'account.online': { payload: null; result: string[] }
    /** Add a note. All devices of the user hear of it. */
    'notes.add': { payload: NewNote; result: Note }
    /** The notes of the user, and those that others share with the user. The newest come first. */
    'notes.list': { payload: Page; result: Note[] }
    /** Remove a note, after a question to the user if others read it. Returns whether it is gone. */
    'notes.remove': { payload: NoteRef; result: boolean }
    /** Let a user read a note. The devices of that user hear of it. */
    'sharing.share': { payload: Share; result: null }
    /** Take a note from the list of a user. */
    'sharing.unshare': { payload: Share; result: null }
  }
  /** Procedures of the server that yield: `for await (const item of client.stream(name, payload))`. */
  stream: {}
  /** Messages that the server sends: `client.channel.on(name, (payload) => ...)`. */
  on: {
    /** A user has come, or has gone. */
    'account.presence': Presence
    /** There is a note that the user may read. */
    'notes.added': Note
    /** A note is gone; its id. */
    'notes.removed': number
  }
  /** Procedures of the client: `client.register(name, (payload) => ...)`. */
  register: {
    /** Ask the user a question. */
    confirm: { payload: string; result: boolean }
    /** Which device this is. */
    device: { payload: null; result: Device }
  }
}

/** A client of notes_app.main. */
export class Client extends WseClient<Contract> {}
