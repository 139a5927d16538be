// For `require`, which loads ES modules in Node from 20.19 and 22.12 on. Elsewhere: `await import('wse-js/wse-trace.js')`.
module.exports = require('./wse-trace.js')
