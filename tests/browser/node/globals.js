// What the vectors' runner needs of Node's globals.
const toHex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('')

globalThis.Buffer = {
  from: (value, encoding) => {
    if (encoding === 'hex') return Uint8Array.from(value.match(/../g) ?? [], (pair) => parseInt(pair, 16))
    return { toString: () => toHex(value) }
  },
  byteLength: (text) => new TextEncoder().encode(text).length,
}

// Every promise that is settled by now has its turn before the next task.
const waiting = []
const { port1, port2 } = new MessageChannel()
port1.onmessage = () => waiting.shift()()
globalThis.setImmediate = (fn) => {
  waiting.push(fn)
  port2.postMessage(null)
}
