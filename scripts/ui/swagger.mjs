// Presses "Execute" on every request of Swagger UI, with what the page itself fills in, and reads what it then shows.
import { check, equal } from './browser.mjs'

/** Streams: the page waits for an end that does not come. */
const ASIDE = { streamEvents: 'an endless stream', openTerminal: 'a WebSocket' }

/**
 * The requests, in an order in which each finds what it needs: the answer and the path's parameters. A body is the
 * page's own example. `$x` is what a request before has made.
 */
const REQUESTS = [
  ['getHealth', 200],
  ['getReadiness', 200],
  ['getMetrics', 200],
  ['listNodes', 200],
  ['getNode', 200, { id: '$node' }],
  ['recoverGpu', 200, { id: '$node', gpu: '$gpu' }],
  ['listResources', 200],
  ['createResource', 201],
  ['getResource', 200, { id: '$created' }],
  ['updateResource', 200, { id: '$created' }],
  ['getResourceStatus', 200, { id: '$nginx' }],
  ['getResourceLogs', 200, { id: '$nginx' }],
  ['getResourceMetrics', 200, { id: '$nginx' }],
  ['runCommand', 200, { id: '$nginx' }],
  ['createTicket', 201, { id: '$nginx' }],
  ['stopResource', 200, { id: '$nginx' }],
  ['startResource', 200, { id: '$nginx' }],
  ['restartResource', 200, { id: '$nginx' }],
  ['getResourceConsole', 200, { id: '$machine' }],
  ['createSnapshot', 201, { id: '$machine' }],
  ['listSnapshots', 200, { id: '$machine' }],
  ['restoreSnapshot', 200, { id: '$machine', snapshotId: '$snapshot' }],
  ['deleteSnapshot', 200, { id: '$machine', snapshotId: '$snapshot' }],
  ['listOperations', 200],
  ['getOperation', 200, { id: '$deploying' }],
  ['cancelOperation', 200, { id: '$deploying' }],
  ['deleteResource', 200, { id: '$created' }],
]

export async function swagger(browser) {
  const documented = operations(await browser.ask('GET', '/api-docs-json'))
  const known = [...REQUESTS.map(([operation]) => operation), ...Object.keys(ASIDE)]
  equal(Object.keys(documented).sort(), known.sort(), 'the operations of the document')

  const page = await browser.page()
  await page.goto(`${browser.url}/api-docs`)
  await page.click('.btn.authorize')
  await page.fill('.modal-ux input', browser.token)
  await page.click('.modal-ux .btn.authorize')
  await page.click('.modal-ux .btn-done')

  const made = await things(browser)
  for (const [operation, status, parameters = {}] of REQUESTS) {
    const { tag, statuses } = documented[operation]
    check(statuses.includes(String(status)), `${operation}: ${status} is not documented`)
    const block = page.locator(`#operations-${tag}-${operation}`)
    await block.locator('.opblock-summary-control').click()
    const tryIt = block.locator('.try-out__btn:not(.cancel)')
    if (await tryIt.count()) await tryIt.click()
    for (const [name, value] of Object.entries(parameters)) {
      await block.locator(`tr[data-param-name="${name}"][data-param-in="path"] input`).fill(made[value.slice(1)])
    }
    await block.locator('.btn.execute').click()
    const live = block.locator('.live-responses-table tbody tr.response')
    const shown = { status: (await live.locator('.response-col_status').innerText()).trim().split(/\s/)[0] }
    shown.body = await live.locator('.response-col_description').innerText()
    equal(shown.status, String(status), `${operation}: ${shown.body}`)
    check(!/Undocumented/.test(await live.innerText()), `${operation}: the page calls it undocumented`)
    check(/Response body/.test(shown.body), `${operation}: the page shows no body`)
    if (operation === 'createResource') made.created = /"_id": "([^"]+)"/.exec(shown.body)[1]
    if (operation === 'createSnapshot') made.snapshot = /"id": "([^"]+)"/.exec(shown.body)[1]
    if (operation === 'runCommand') {
      await live.scrollIntoViewIfNeeded()
      await browser.shoot(page, 'swagger')
    }
    await block.locator('.opblock-summary-control').click()
  }
  equal(page.problems, [], 'errors of the page')
  await page.close()
  return `${REQUESTS.length} of ${known.length} requests executed; aside: ${Object.keys(ASIDE).join(', ')}`
}

/** Tag and documented statuses of every operation. */
function operations(document) {
  const found = {}
  for (const methods of Object.values(document.paths)) {
    for (const { operationId, tags, responses } of Object.values(methods)) {
      found[operationId] = { tag: tags[0], statuses: Object.keys(responses) }
    }
  }
  return found
}

/** Ids of what is there. */
async function things(browser) {
  const { data: [node] } = await browser.ask('GET', '/nodes')
  const { data: all } = await browser.ask('GET', '/operations')
  return {
    node: node.id,
    gpu: node.gpus[0].uuid,
    nginx: await browser.id('Demo Nginx Web Server'),
    machine: await browser.id('Demo CentOS Dev Environment'),
    deploying: all.find(operation => operation.status === 'running').id,
  }
}
