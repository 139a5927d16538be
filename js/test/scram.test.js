// SCRAM-SHA-256 by itself: the exchange of RFC 7677, hostile servers, and SASLprep beside Python's.
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { test } from 'node:test'
import { Scram, WSE_ERROR } from '../wse.js'
import { failure } from './support/fake.js'
import { python } from './support/server.js'

/** A Scram that has begun with this nonce. */
const begun = (t, username, password, nonce) => {
  t.mock.method(crypto, 'getRandomValues', () => Buffer.from(nonce, 'base64'), { times: 1 })
  const scram = new Scram(username, password)
  return { scram, first: scram.start() }
}

const NONCE = 'rOprNGfwEbeRWgbNEkqO'
const FIRST = `r=${NONCE}%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096`
const FINAL = 'v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4='

test('the exchange of RFC 7677', async (t) => {
  const { scram, first } = begun(t, 'user', 'pencil', NONCE)
  assert.deepEqual(first, { scram: `n,,n=user,r=${NONCE}` })
  const proof = 'c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ='
  assert.deepEqual(await scram.respond({ scram: FIRST }), { scram: proof })
  assert.deepEqual(scram.finish({ scram: FINAL, welcome: { hello: 1 } }), { hello: 1 })
})

test('a server that does not prove itself', async (t) => {
  const { scram } = begun(t, 'user', 'pencil', NONCE)
  const refused = { code: WSE_ERROR.NOT_AUTHORIZED }
  for (const early of [{ scram: '' }, { scram: FINAL }, null]) assert.throws(() => scram.finish(early), refused)
  await scram.respond({ scram: FIRST })
  for (const wrong of [null, 'x', {}, { scram: '' }, { scram: 'v=' }, { scram: 'e=other-error' }, { scram: `${FINAL.slice(0, -2)}A=` }, { scram: 5 }]) {
    assert.throws(() => scram.finish(wrong), (error) => error.code === WSE_ERROR.NOT_AUTHORIZED || error instanceof TypeError)
  }
})

const REST = 's=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096'
for (const quest of [
  null,
  {},
  { scram: 5 },
  { scram: '' },
  { scram: `r=${NONCE},${REST}` },
  { scram: `r=other${NONCE},${REST}` },
  { scram: `m=ext,r=${NONCE}x,${REST}` },
  { scram: `r=${NONCE}x,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4095` },
  { scram: `r=${NONCE}x,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=10000001` },
  { scram: `r=${NONCE}x,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=5e3` },
  { scram: `r=${NONCE}x,s=W22ZaJ0SNY7soEsUEjb6gQ==` },
  { scram: `r=${NONCE}x,s=!!!,i=4096` },
]) {
  test(`a quest that is none: ${JSON.stringify(quest)}`, async (t) => {
    const { scram } = begun(t, 'user', 'pencil', NONCE)
    const error = await failure(scram.respond(quest))
    assert.ok(error.code === WSE_ERROR.INVALID_CRA_HANDLER || error.name === 'InvalidCharacterError', String(error))
  })
}

test('one start gives one answer', async (t) => {
  const { scram } = begun(t, 'user', 'pencil', NONCE)
  await scram.respond({ scram: FIRST })
  assert.equal((await failure(scram.respond({ scram: FIRST }))).code, WSE_ERROR.INVALID_CRA_HANDLER)
  assert.notEqual(scram.start().scram, scram.start().scram)
})

test('names and passwords that cannot be', () => {
  for (const text of ['a\u0000', '\u0007', '\ue000', '\ud800', '\ufffe', '\u2028', '\u{e0041}', '\u202e']) {
    assert.throws(() => new Scram(text, 'x'), TypeError)
    assert.throws(() => new Scram('x', text), TypeError)
  }
  assert.throws(() => new Scram('', 'x'), TypeError)
  assert.throws(() => new Scram('\u00ad', 'x'), TypeError)
})

test('without WebCrypto it says so', (t) => {
  t.mock.getter(globalThis, 'crypto', () => ({}))
  assert.throws(() => new Scram('a', 'b'), /WebCrypto/)
})

test('every character that the Python side takes is prepared as it is there', () => {
  const program = `
import json, sys
from scramp.utils import saslprep
taken = {}
for code in range(0x110000):
    try:
        taken[code] = saslprep("x" + chr(code) + "x")
    except Exception:
        pass
json.dump(taken, sys.stdout)`
  const taken = JSON.parse(execFileSync(python, ['-c', program], { encoding: 'utf8', maxBuffer: 1e9 }))
  assert.ok(Object.keys(taken).length > 90_000)
  // Normalized otherwise in Unicode 3.2: corrigendum 4.
  const corrected = [0x2f868, 0x2f874, 0x2f91f, 0x2f95f, 0x2f9bf]
  for (const [code, prepared] of Object.entries(taken)) {
    if (corrected.includes(Number(code))) continue
    const { scram } = new Scram(`x${String.fromCodePoint(Number(code))}x`, '').start()
    const name = scram.slice('n,,n='.length, scram.lastIndexOf(',r=')).replaceAll('=2C', ',').replaceAll('=3D', '=')
    assert.equal(name, prepared, `U+${Number(code).toString(16)}`)
  }
})
