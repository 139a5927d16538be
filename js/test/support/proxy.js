// A TCP proxy that breaks connections.
import { once } from 'node:events'
import net from 'node:net'

/**
 * `cutAfter(bytes)` cuts when so many more bytes have passed, in either direction, and cuts what comes then at once.
 * With `isSilent`, the server does not notice: its side stays open, and nothing passes any more.
 */
export const breakingProxy = async (url, { isSilent = false } = {}) => {
  const { hostname, port } = new URL(url)
  let left = Infinity
  let cuts = 0
  let noticed = () => {}
  const sockets = new Set()
  const server = net.createServer((near) => {
    const far = net.connect(port, hostname)
    let isCut = false
    const cut = () => {
      if (isCut) return
      isCut = true
      cuts++
      left = Infinity
      near.destroy()
      if (!isSilent) far.destroy()
      noticed()
    }
    for (const [from, to] of [[near, far], [far, near]]) {
      sockets.add(from)
      from.on('data', (data) => {
        if (isCut) return
        to.write(data.subarray(0, Math.min(left, data.length)))
        left -= data.length
        if (left < 0) cut()
      })
      from.on('error', () => {})
      from.on('close', () => {
        sockets.delete(from)
        if (!isCut) to.destroy()
      })
    }
  })
  await once(server.listen(0, '127.0.0.1'), 'listening')
  return {
    url: `ws://127.0.0.1:${server.address().port}`,
    get cuts() {
      return cuts
    },
    /** Resolves when it has been cut. */
    cutAfter: (bytes) => {
      left = bytes
      return new Promise((resolve) => (noticed = resolve))
    },
    close: () => {
      for (const socket of sockets) socket.destroy()
      server.close()
    },
  }
}
