// node:test, as far as the vectors' runner uses it.
import * as msgpack from '@msgpack/msgpack'

const tests = []
let suite = ''

export const describe = (name, fn) => {
  suite = name
  fn()
}

export const test = (name, ...rest) => {
  const fn = rest.at(-1)
  const { skip = false } = rest.length > 1 ? rest[0] : {}
  const needsMsgpack = msgpack.missing && suite === 'msgpack.json'
  tests.push({ suite, name, fn, skipped: Boolean(skip || needsMsgpack) })
}

// One after the other: fake timers are everybody's.
export const results = async () => {
  const done = []
  for (const { suite, name, fn, skipped } of tests) {
    let error = null
    try {
      if (!skipped) await fn()
    } catch (thrown) {
      error = String(thrown.stack ?? thrown)
    }
    done.push({ suite, name, skipped, error })
  }
  return done
}

// Timers that the test moves.

const real = { setTimeout: globalThis.setTimeout, clearTimeout: globalThis.clearTimeout }
let now = 0
let last = 0
const timers = new Map()

const next = (end) => [...timers].filter(([, { at }]) => at <= end).sort(([, a], [, b]) => a.at - b.at)[0]

export const mock = {
  timers: {
    enable: () => {
      now = 0
      globalThis.setTimeout = (fn, milliseconds = 0, ...args) => {
        timers.set(++last, { at: now + Math.max(1, milliseconds), fn: () => fn(...args) })
        return last
      }
      globalThis.clearTimeout = (id) => timers.delete(id)
    },
    // As in Node, a timer that is set meanwhile begins at the end of the tick.
    tick: (milliseconds) => {
      now += milliseconds
      for (let due = next(now); due; due = next(now)) {
        const [id, { fn }] = due
        timers.delete(id)
        fn()
      }
    },
    reset: () => {
      timers.clear()
      Object.assign(globalThis, real)
    },
  },
}
