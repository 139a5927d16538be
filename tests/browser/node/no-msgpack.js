// Where @msgpack/msgpack is not installed: nothing is run that would call these.
export const encode = () => {
  throw new Error('@msgpack/msgpack is not installed')
}
export const decode = encode
export const missing = true
