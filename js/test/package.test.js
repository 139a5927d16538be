// What is published: its size, its content, and that it runs where nothing but the module is allowed.
import assert from 'node:assert/strict'
import { execFileSync, spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { gzipSync } from 'node:zlib'
import { python } from './support/server.js'

const root = fileURLToPath(new URL('..', import.meta.url))
const source = readFileSync(new URL('../wse.js', import.meta.url), 'utf8')
const manifest = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8'))

test('it is under 11 KiB gzipped', () => {
  const size = gzipSync(source, { level: 9 }).length
  assert.ok(size < 11 * 1024, `${size} bytes`)
})

test('the package holds the module, its types and its description, and nothing else', () => {
  const output = execFileSync('npm', ['pack', '--dry-run', '--json'], { cwd: root, encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] })
  const result = JSON.parse(output)
  const [packed] = Array.isArray(result) ? result : Object.values(result)
  assert.equal(`${packed.name}@${packed.version}`, 'wse-js@0.1.0')
  assert.deepEqual(packed.files.map(({ path }) => path).sort(), ['LICENSE', 'README.md', 'package.json', 'wse-hub.js', 'wse-inbox.js', 'wse-resume.js', 'wse-rooms.js', 'wse-share.js', 'wse-streams.js', 'wse-trace.cjs', 'wse-trace.d.cts', 'wse-trace.d.ts', 'wse-trace.js', 'wse.cjs', 'wse.d.cts', 'wse.d.ts', 'wse.js'])
})

test('it depends on nothing, and every tool has one version', () => {
  assert.equal(manifest.dependencies, undefined)
  for (const version of Object.values(manifest.devDependencies)) assert.match(version, /^(npm:typescript@)?\d+\.\d+\.\d+$/)
  const loads = /import\('\.\/wse-(share|resume|streams|inbox|rooms)\.js'\)/g
  assert.equal(source.match(loads)?.length, 5)
  assert.doesNotMatch(source.replace(/\/\*\*.*?\*\//g, '').replace(loads, ''), /\bimport\s*[({*'"]|\brequire\s*\(|\bprocess\./)
})

test('the types need no TypeScript above 5.0', () => {
  const tsc = fileURLToPath(new URL('../node_modules/typescript-5.0/bin/tsc', import.meta.url))
  const options = ['--noEmit', '--strict', '--target', 'es2022', '--lib', 'es2022,dom', '--module', 'nodenext', '--typeRoots', 'test/none']
  const { status, stdout } = spawnSync(process.execPath, [tsc, ...options, 'wse.d.ts', 'wse-trace.d.ts'], { cwd: root, encoding: 'utf8' })
  assert.equal(status, 0, stdout)
})

test('its constants have every code and reason of the Python package', async () => {
  const { WSE_ERROR, WSE_REASON } = await import('../wse.js')
  const program = `
import json, wse
print(json.dumps([{name: str(member) for name, member in kind.__members__.items()} for kind in (wse.ErrorCode, wse.CloseReason)]))`
  const [codes, reasons] = JSON.parse(execFileSync(python, ['-c', program], { encoding: 'utf8' }))
  assert.deepEqual({ ...WSE_ERROR, ...codes }, { ...WSE_ERROR })
  assert.deepEqual({ ...WSE_REASON, ...reasons }, { ...WSE_REASON })
})

test('its constants are those of the types, and cannot be changed', async () => {
  const declared = readFileSync(new URL('../wse.d.ts', import.meta.url), 'utf8')
  const module = await import('../wse.js')
  for (const name of ['WSE_ERROR', 'WSE_REASON', 'WSE_STATUS']) {
    const [, body] = new RegExp(`export const ${name}: \\{([^}]*)\\}`).exec(declared)
    const members = [...body.matchAll(/readonly (\w+): '([^']*)'/g)].map(([, key, value]) => [key, value])
    assert.deepEqual({ ...module[name] }, Object.fromEntries(members))
    assert.ok(Object.isFrozen(module[name]))
  }
})

test('it is imported by the name of the package', async () => {
  const { WseClient } = await import('wse-js')
  assert.equal(WseClient, (await import('../wse.js')).WseClient)
})

test('CommonJS requires it, where Node can require a module, and has its types', { skip: !process.features.require_module }, () => {
  const program = "const { WseClient } = require('wse-js'); import('wse-js').then((m) => process.exit(m.WseClient === WseClient ? 0 : 1))"
  const { status, stderr } = spawnSync(process.execPath, ['--input-type=commonjs', '-e', program], { cwd: root, encoding: 'utf8' })
  assert.equal(status, 0, stderr)
})

test('CommonJS has the same types, which packing copies', () => {
  execFileSync('npm', ['run', '--silent', 'prepare'], { cwd: root })
  const types = (name) => readFileSync(new URL(`../${name}`, import.meta.url), 'utf8')
  for (const name of ['wse', 'wse-trace']) assert.equal(types(`${name}.d.cts`), types(`${name}.d.ts`))
})

test('it runs where code from strings is forbidden, as a strict Content-Security-Policy has it', () => {
  const program = `
    import { WseClient, WseJSON } from './wse.js'
    new WseJSON().unpack(new WseJSON().pack({ type: 't' }))
    new WseClient({ url: 'ws://x', WebSocket: class {} }).register('p', () => {})
    try { new Function('return 1')(); process.exit(2) } catch (error) { if (!(error instanceof EvalError)) throw error }`
  const { status, stderr } = spawnSync(process.execPath, ['--disallow-code-generation-from-strings', '--input-type=module', '-e', program], { cwd: root })
  assert.equal(status, 0, String(stderr))
})
