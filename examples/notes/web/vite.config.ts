import { fileURLToPath } from 'node:url'
import { defineConfig } from 'vite'

// In this repository, wse-js is a folder; tsconfig.json says so as well. Elsewhere it is a package: `npm install wse-js`.
const wse = fileURLToPath(new URL('../../../js/', import.meta.url))
const server = 'http://127.0.0.1:8000'

export default defineConfig({
  resolve: { alias: { 'wse-js': `${wse}wse.js` } },
  build: { target: 'es2022' },
  // `npm run dev` serves the page, and passes on what uvicorn answers.
  server: { fs: { allow: ['.', wse] }, proxy: { '/login': server, '/ws': { target: server, ws: true } } },
})
