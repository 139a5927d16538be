import { WSE_STATUS, WseClient } from '/wse/wse.js'

const { status, ask, prompt, stop, answer, end } = Object.fromEntries([...document.querySelectorAll('[id]')].map((element) => [element.id, element]))

// With `resume`, an answer goes on after a lost connection, and every word comes once.
const scheme = location.protocol === 'https:' ? 'wss:' : 'ws:'
const client = new WseClient({ url: `${scheme}//${location.host}/ws`, reconnect: true, resume: true })

const STATUS = { [WSE_STATUS.READY]: 'Connected', [WSE_STATUS.CONNECTING]: 'Connecting…', [WSE_STATUS.RE_CONNECTING]: 'Reconnecting…' }
client.when.updated((now) => (status.textContent = STATUS[now] ?? 'Not connected'))
client.when.error((error) => console.info(error.message)) // attempts that will be repeated

// What the generator at the server says at its end.
client.channel.on('answered', (said) => {
  end.textContent = said.end === 'stopped' ? `The server has stopped after ${said.words} words.` : `The answer has ${said.words} words.`
})

let controller

ask.addEventListener('submit', async (event) => {
  event.preventDefault()
  controller?.abort()
  const { signal } = (controller = new AbortController())
  answer.textContent = end.textContent = ''
  stop.disabled = false
  try {
    for await (const token of client.stream('answer', prompt.value, { signal })) answer.append(token)
  } catch (error) {
    if (!signal.aborted) end.textContent = `The answer has failed: ${error.message}`
  }
  if (controller.signal === signal) stop.disabled = true // else there is another question already
})

stop.addEventListener('click', () => controller.abort())

await client.connect(crypto.randomUUID())
