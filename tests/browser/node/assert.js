// node:assert/strict, as far as the vectors' runner uses it.
const show = (value) => {
  try {
    return typeof value === 'string' ? value : (JSON.stringify(value) ?? String(value))
  } catch {
    return String(value)
  }
}
const fail = (message) => {
  throw new Error(`assertion failed: ${message}`)
}

const same = (a, b) => {
  if (Object.is(a, b)) return true
  if (typeof a !== 'object' || typeof b !== 'object' || a === null || b === null) return false
  if (Object.getPrototypeOf(a) !== Object.getPrototypeOf(b)) return false
  const keys = Object.keys(a)
  if (keys.length !== Object.keys(b).length || a.length !== b.length) return false
  return keys.every((key) => Object.hasOwn(b, key) && same(a[key], b[key]))
}

const matches = (error, expected) => {
  if (typeof expected === 'function') {
    if (expected(error) !== true) fail(`another error was expected than ${error}`)
  } else if (expected) {
    for (const [key, value] of Object.entries(expected)) deepEqual(error[key], value)
  }
}

export const ok = (value, message) => value || fail(message ?? `${show(value)} is falsy`)
export const equal = (actual, expected) => Object.is(actual, expected) || fail(`${show(actual)} is not ${show(expected)}`)
export const deepEqual = (actual, expected) => same(actual, expected) || fail(`${show(actual)} is not ${show(expected)}`)
export const throws = (fn, expected) => {
  let error
  try {
    fn()
  } catch (thrown) {
    error = thrown
  }
  if (!error) fail('it did not throw')
  matches(error, expected)
}
export const rejects = async (promise, expected) => {
  const error = await promise.then(
    () => fail('it was not rejected'),
    (thrown) => thrown,
  )
  matches(error, expected)
}

export default { ok, equal, deepEqual, throws, rejects }
