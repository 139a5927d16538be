// Starts the Python servers of server.py.
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'

const script = fileURLToPath(new URL('server.py', import.meta.url))
export const python = process.env.PYTHON || fileURLToPath(new URL('../../../.venv/bin/python', import.meta.url))

/** Start them, the plain one on that port; resolves with their URLs, and `stop()`, or `kill()` without a farewell. */
export const startServers = async (port) => {
  const child = spawn(python, port ? [script, port] : [script], { stdio: ['pipe', 'pipe', 'inherit'] })
  const exited = once(child, 'exit')
  process.once('exit', () => child.kill('SIGKILL'))
  child.unref() // a test that fails must not wait for its server
  let line = ''
  for await (const chunk of child.stdout) {
    line += chunk
    if (line.includes('\n')) break
  }
  if (!line) throw new Error(`${python} ${script} has not started: is the Python package set up (make setup)?`)
  return {
    ...JSON.parse(line),
    stop: async () => {
      child.ref()
      child.stdin.end()
      await exited
    },
    kill: async () => {
      child.ref()
      child.kill('SIGKILL')
      await exited
    },
  }
}
