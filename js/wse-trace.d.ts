/** What a call carries of its trace, as the W3C has it: the headers `traceparent` and `tracestate`. */
export interface TraceCarrier {
  traceparent?: string
  tracestate?: string
}

/**
 * The protocol, with the context of a trace in every call. Servers that do not trace see the same bytes as without this.
 *
 * `inject` is called for each call, inside of it, and puts the context into the object that it gets. With OpenTelemetry:
 * `(carrier) => propagation.inject(context.active(), carrier)`. Each client needs a protocol of its own. Not with `share`.
 */
export function traced<P extends object>(protocol: P | (new () => P), inject: (carrier: TraceCarrier) => void): P
