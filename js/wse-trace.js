// Traces: a message protocol whose calls carry the context of their trace, for servers with the extension `trace`. The
// application imports this module itself. MIT licence.

/**
 * The protocol, with the context of a trace in every call.
 * @param {any} protocol an object or a class
 * @param {(carrier: { traceparent?: string, tracestate?: string }) => void} inject
 */
export function traced(protocol, inject) {
  const inner = typeof protocol === 'function' ? new protocol() : protocol
  const { name, internal_types, extensions } = inner
  const { hi, call } = internal_types
  const own = new Set([...Object.values(internal_types), ...Object.values(extensions ?? {}), '~wse:ping'])
  let isAgreed = false

  return {
    name,
    internal_types,
    extensions,
    pack(message) {
      const { type, payload, stamp } = message
      if (type === hi) {
        isAgreed = false
        const ext = payload?.ext
        return inner.pack(ext?.calls ? { ...message, payload: { ...payload, ext: { ...ext, trace: {} } } } : message)
      }
      if (!isAgreed || !stamp || (own.has(type) && type !== call)) return inner.pack(message)
      const carrier = {}
      inject(carrier)
      const { traceparent: tp, tracestate: ts } = carrier
      if (!tp) return inner.pack(message)
      if (type !== call) inner.pack(message) // a payload that cannot be sent is an error, as without a trace
      const [rp, value, options] = type === call ? payload : [type, payload, {}]
      return inner.pack({ ...message, type: call, payload: [rp, value, { ...options, tp, ...(ts && { ts }) }] })
    },
    unpack(data) {
      const message = inner.unpack(data)
      const [type, payload] = Array.isArray(message) ? message : [message.type, message.payload]
      if (extensions && type === extensions.ext) isAgreed = Boolean(payload?.calls && payload.trace)
      return message
    },
  }
}
