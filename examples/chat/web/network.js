// A network that the page can cut, to show what a session that outlives its connection is good for.

const sockets = new Set()
let isCut = false

/** Cut the connections of the page, or let them through again. The server does not notice, as with a cable that is pulled. */
export const cutNetwork = (cut) => {
  isCut = cut
  if (!isCut) return void dispatchEvent(new Event('online'))
  for (const socket of sockets) {
    const { onclose } = socket
    Object.assign(socket, { onmessage: null, onclose: null })
    onclose({ code: 1006, reason: '' })
  }
  sockets.clear()
}

/** Called with `new`, like the class WebSocket. */
export function CuttableSocket(url, protocol) {
  const socket = isCut ? { readyState: 3, close: () => {} } : new WebSocket(url, protocol)
  if (isCut) setTimeout(() => socket.onclose({ code: 1006, reason: '' }))
  else sockets.add(socket)
  return socket
}
