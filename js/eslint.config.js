import js from '@eslint/js'
import globals from 'globals'

export default [
  { ignores: ['node_modules/', 'test/types/'] },
  js.configs.recommended,
  {
    languageOptions: { ecmaVersion: 2022, sourceType: 'module' },
    linterOptions: { reportUnusedDisableDirectives: 'error' },
    rules: {
      eqeqeq: ['error', 'always', { null: 'ignore' }],
      'no-eval': 'error',
      'no-misleading-character-class': ['error', { allowEscape: true }],
      'no-implied-eval': 'error',
      'no-new-func': 'error',
      'no-unused-vars': ['error', { caughtErrors: 'all' }],
      'no-var': 'error',
      'object-shorthand': 'error',
      'prefer-const': ['error', { destructuring: 'all' }],
      'prefer-template': 'off',
      'no-restricted-imports': 'error',
    },
  },
  // The module itself: nothing but what browsers and Node both have, and of imports only those that an option or a call asks for.
  { files: ['wse.js'], languageOptions: { globals: globals['shared-node-browser'] }, rules: { 'no-restricted-syntax': ['error', 'ImportDeclaration', "ImportExpression[source.value!='./wse-share.js'][source.value!='./wse-resume.js'][source.value!='./wse-streams.js'][source.value!='./wse-inbox.js'][source.value!='./wse-rooms.js']"] } },
  { files: ['wse-resume.js', 'wse-streams.js', 'wse-inbox.js', 'wse-rooms.js', 'wse-trace.js'], languageOptions: { globals: globals['shared-node-browser'] }, rules: { 'no-restricted-syntax': ['error', 'ImportDeclaration', 'ImportExpression'] } },
  { files: ['wse-hub.js'], languageOptions: { globals: globals.browser }, rules: { 'no-restricted-syntax': ['error', "ImportDeclaration[source.value!='./wse-resume.js']", 'ImportExpression'] } },
  { files: ['wse-share.js'], languageOptions: { globals: globals.browser }, rules: { 'no-restricted-syntax': ['error', "ImportDeclaration[source.value!='./wse-hub.js']", 'ImportExpression'] } },
  { files: ['wse.cjs', 'wse-trace.cjs'], languageOptions: { globals: globals.node, sourceType: 'commonjs' } },
  { files: ['test/**', 'eslint.config.js'], languageOptions: { globals: globals.node } },
]
