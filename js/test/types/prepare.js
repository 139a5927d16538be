// Beside wse.d.ts the type checker never reads what wse.js exports, so a copy is compared with the declarations.
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'

const source = new URL('../../wse.js', import.meta.url)
const directory = new URL('generated/', import.meta.url)
mkdirSync(directory, { recursive: true })
writeFileSync(new URL('implementation.js', directory), readFileSync(source))
for (const name of ['wse-share.js', 'wse-hub.js', 'wse-resume.js', 'wse-streams.js', 'wse-inbox.js', 'wse-rooms.js']) writeFileSync(new URL(name, directory), readFileSync(new URL(name, source)))
writeFileSync(
  new URL('matches.ts', directory),
  `import * as implementation from './implementation.js'
import type * as declared from 'wse-js'

export const matches: typeof declared = implementation
`,
)
