// The ten demo resources are as the contract lists them, and every endpoint answers for each of them.
import { equal } from './browser.mjs'

const [VM, CONTAINER] = ['virtual-machine', 'application-container']
const STATUSES = {
  'Demo Ubuntu GPU Server': [VM, 'running'],
  'Demo Windows Server 2022': [VM, 'stopped'],
  'Demo CentOS Dev Environment': [VM, 'running'],
  'Demo Debian ML Workstation': [VM, 'deploying'],
  'Demo Ubuntu Test VM': [VM, 'queued'],
  'Demo PostgreSQL Database': [CONTAINER, 'running'],
  'Demo Redis Cache': [CONTAINER, 'running'],
  'Demo Nginx Web Server': [CONTAINER, 'running'],
  'Demo MongoDB Instance': [CONTAINER, 'stopped'],
  'Demo Elasticsearch Cluster': [CONTAINER, 'failed'],
}

export async function demo(browser) {
  const { data, statistics } = await browser.ask('GET', '/resources?limit=200&sortBy=createdAt&sortOrder=asc')
  equal(data.map(r => r.name).join(), Object.keys(STATUSES).join(), 'the names')
  equal(statistics.byStatus, { queued: 1, deploying: 1, running: 5, stopping: 0, stopped: 2, failed: 1, error: 0 }, 'byStatus')
  equal(statistics.byType, { [VM]: 5, [CONTAINER]: 5, 'inference-container': 0 }, 'byType')
  let asked = 0
  for (const { _id, name, errorMessage } of data) {
    const [type, status] = STATUSES[name]
    const [running, machine] = [status === 'running', type === VM]
    const get = (where, code = 200) => {
      asked += 1
      return browser.ask('GET', `/resources/${_id}${where}`, { status: code })
    }
    const resource = await get('')
    equal([resource.resourceType, resource.status], [type, status], name)
    equal(resource.config.type, type, name)
    equal((await get('/status')).status, status, `${name}, observed`)
    equal((await get('/logs')).resourceId, _id, `${name}, log`)
    const { metrics } = await get('/metrics')
    equal(metrics.memory.usedMB !== null, running, `${name}, memory in use is known`)
    if (status === 'failed') equal(errorMessage, 'Out of memory on node', name)
    // A screen and a shell need something that runs; snapshots are of machines, commands of containers.
    const console_ = await get('/console', machine ? (running ? 200 : 409) : 422)
    if (machine && running) equal(console_.type, 'vnc', name)
    const snapshots = await get('/snapshots', machine ? 200 : 422)
    if (machine) equal(snapshots.snapshots, [], name)
    const ran = await browser.ask('POST', `/resources/${_id}/exec`, {
      status: machine ? 422 : running ? 200 : 409,
      body: { command: 'echo hello; exit 3' },
    })
    if (!machine && running) equal([ran.stdout, ran.exitCode], ['hello\n', 3], name)
  }
  const { data: operations } = await browser.ask('GET', '/operations')
  equal(operations.filter(o => o.status === 'running').length, 1, 'operations under way')
  const { data: nodes } = await browser.ask('GET', '/nodes')
  equal(nodes.length, 1, 'nodes')
  return `ten resources in their statuses, ${asked} reads as promised`
}
