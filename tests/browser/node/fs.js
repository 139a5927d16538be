// The files that the page came with.
const files = JSON.parse(document.getElementById('files').textContent)

export const readFileSync = (url) => files[url.pathname.split('/').at(-1)]
export const readdirSync = () => Object.keys(files)
