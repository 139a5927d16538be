// The contract of a Python application, read by the public parser of AsyncAPI; and the client that is generated from it.
import assert from 'node:assert/strict'
import { execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync } from 'node:fs'
import { copyFile, mkdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { promisify } from 'node:util'
import { Parser } from '@asyncapi/parser'
import WebSocket from 'ws'
import { python } from './support/server.js'

const run = promisify(execFile)
const here = (path) => fileURLToPath(new URL(path, import.meta.url))
const folder = pathToFileURL(`${mkdtempSync(join(tmpdir(), 'wse-contract-'))}/`)
const support = here('../../tests/support')

const wse = (...args) => run(python, ['-m', 'wse', ...args, '--app-dir', support], { maxBuffer: 1 << 24 })

/** Compile a program beside the generated client; resolves with what the compiler says. */
const compiled = async (name) => {
  await copyFile(new URL(`support/${name}.ts.txt`, import.meta.url), new URL(`${name}.ts`, folder))
  const tsc = here('../node_modules/typescript/bin/tsc')
  const options = { strict: true, noUncheckedIndexedAccess: true, exactOptionalPropertyTypes: true, target: 'es2022', lib: ['es2022', 'dom'], module: 'nodenext', types: [] }
  await writeFile(new URL('tsconfig.json', folder), JSON.stringify({ compilerOptions: options, files: [`${name}.ts`] }))
  const { stdout } = await run(process.execPath, [tsc, '--pretty', 'false'], { cwd: fileURLToPath(folder) }).catch((error) => error)
  return stdout
}

before(async () => {
  await writeFile(new URL('package.json', folder), '{"type":"module"}')
  await mkdir(new URL('node_modules/wse-js/', folder), { recursive: true })
  for (const name of ['package.json', 'wse.js', 'wse.d.ts', 'wse-streams.js', 'wse-resume.js']) await copyFile(new URL(`../${name}`, import.meta.url), new URL(`node_modules/wse-js/${name}`, folder))
  await wse('generate', 'typescript', 'shop:server', '-o', fileURLToPath(new URL('api.ts', folder)))
})
after(() => rm(folder, { recursive: true, force: true }))

test('the AsyncAPI parser takes the contract, with operations of both directions and their replies', async () => {
  const { stdout } = await wse('contract', 'shop:server')
  const { document, diagnostics } = await new Parser().parse(stdout)
  assert.deepEqual(diagnostics.filter(({ severity }) => severity < 2).map(({ message, path }) => [message, path.join('.')]), [])
  const operations = Object.fromEntries(document.operations().all().map((each) => [each.id(), each]))
  const messages = (id) => operations[id].reply()?.messages().all().map((each) => each.id())
  assert.deepEqual(Object.keys(operations), [
    'open', 'receiveCall.count', 'receiveCall.introduce', 'receiveCall.notes.load', 'receiveCall.notes.missed', 'receiveCall.notes.tail',
    'receiveCall.pay', 'receiveCall.same', 'receiveCall.whoami', 'receiveMessage.notes.write',
    'sendCall.full-name', 'sendCall.ticks', 'sendMessage.note-added',
  ])
  const missed = operations['receiveCall.notes.missed']
  assert.deepEqual([missed.action(), missed.summary(), missed.tags().all().map((tag) => tag.name())], ['receive', 'What came while you were away. The oldest first.'.split(' The')[0], ['notes']])
  assert.deepEqual(missed.messages().all()[0].examples().all().map((each) => each.payload()), [{ after: 3, size: 20 }])
  assert.deepEqual(messages('receiveCall.notes.missed'), ['result', 'error'])
  assert.deepEqual(messages('receiveCall.notes.tail'), ['item'])
  assert.deepEqual(messages('sendCall.full-name'), ['clientResult', 'clientError'])
  assert.equal(messages('sendMessage.note-added'), undefined)
})

test('the generated client talks to a real server', async () => {
  assert.equal(await compiled('shop_usage'), '')
  const child = spawn(python, [`${support}/shop.py`], { stdio: ['pipe', 'pipe', 'inherit'] })
  const exited = once(child, 'exit')
  try {
    let output = ''
    for await (const chunk of child.stdout) {
      output += chunk
      if (/ws:.*\n/.test(output)) break
    }
    const { main } = await import(new URL('shop_usage.js', folder))
    assert.deepEqual(await main(output.match(/ws:.*/)[0], WebSocket), [
      'ada on a page',
      ['added', 'Hello'],
      [{ id: 42, text: 'Lunch?' }],
      'notes.closed',
      [1, 2],
      4,
      'ok',
      'Ada 1',
      'Ada Lovelace',
      [0, 1, 2],
    ])
  } finally {
    child.stdin.end()
    await exited
  }
})

test('a wrong name or payload is an error of the compiler', async () => {
  const errors = (await compiled('shop_mistakes')).split('\n').filter((line) => line.startsWith('shop_mistakes')).map((line) => line.replace(/^\S+\((\d+),.*?error /, '$1 '))
  assert.deepEqual(errors, (await readFile(new URL('support/shop_mistakes.txt', import.meta.url), 'utf8')).trimEnd().split('\n'))
})

test('the same contract makes the same client, from the file as well', async () => {
  const file = fileURLToPath(new URL('contract.json', folder))
  await wse('contract', 'shop:server', '-o', file)
  const { stdout } = await wse('generate', 'typescript', file)
  assert.equal(stdout, await readFile(new URL('api.ts', folder), 'utf8'))
  await wse('generate', 'typescript', 'shop:server', '--check', '-o', fileURLToPath(new URL('api.ts', folder)))
})
