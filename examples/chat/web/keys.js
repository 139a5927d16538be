// What a server stores of a password (RFC 5802, section 3), made where the password is.
import { Scram } from '/wse.js'

const ITERATIONS = 600_000 // as the server has it
const utf8 = (text) => new TextEncoder().encode(text)
const base64 = (buffer) => btoa(String.fromCharCode(...new Uint8Array(buffer)))

const hmac = async (key, text) => {
  const imported = await crypto.subtle.importKey('raw', key, { name: 'HMAC', hash: 'SHA-256' }, false, ['sign'])
  return crypto.subtle.sign('HMAC', imported, utf8(text))
}

/** SASLprep (RFC 4013), as Scram prepares the password when it logs in. */
const prepare = (text) =>
  text
    .replace(/[\u00AD\u034F\u1806\u180B-\u180D\u200B-\u200D\u2060\uFE00-\uFE0F\uFEFF]/g, '')
    .replace(/\p{Zs}/gu, ' ')
    .normalize('NFKC')

/** Throws a TypeError for characters that SASLprep forbids. */
export const signUpKeys = async (name, password) => {
  new Scram(name, password) // throws it
  const { subtle } = crypto
  const salt = crypto.getRandomValues(new Uint8Array(16))
  const key = await subtle.importKey('raw', utf8(prepare(password)), 'PBKDF2', false, ['deriveBits'])
  const salted = await subtle.deriveBits({ name: 'PBKDF2', hash: 'SHA-256', salt, iterations: ITERATIONS }, key, 256)
  return {
    salt: base64(salt),
    stored_key: base64(await subtle.digest('SHA-256', await hmac(salted, 'Client Key'))),
    server_key: base64(await hmac(salted, 'Server Key')),
    iterations: ITERATIONS,
  }
}
