// A headless Chromium and the API, for the checks.
import { readFile } from 'node:fs/promises'
import path from 'node:path'
import { chromium } from 'playwright-core'

const MODULES = new URL('node_modules', import.meta.url).pathname
const FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
  '--disable-component-update', '--disable-sync',
  // Pages that a test makes up count as public, and would not reach loopback.
  '--disable-features=LocalNetworkAccessChecks,LocalNetworkAccessChecksWebSockets']
const TYPES = { '.js': 'text/javascript', '.mjs': 'text/javascript', '.css': 'text/css', '.html': 'text/html' }

export class Browser {
  static async launch(url, token, screenshots) {
    const chrome = await chromium.launch({ executablePath: '/usr/bin/chromium', headless: true, args: FLAGS })
    return Object.assign(new Browser(), { chrome, url, token, screenshots })
  }

  close() {
    return this.chrome.close()
  }

  /** Asks the API; answers status and JSON (or text), and fails when the status is another one. */
  async ask(method, where, { status = 200, body, headers } = {}) {
    const answer = await fetch(this.url + where, {
      method,
      headers: { authorization: `Bearer ${this.token}`, 'content-type': 'application/json', ...headers },
      body: body && JSON.stringify(body),
    })
    const text = await answer.text()
    equal(answer.status, status, `${method} ${where}: ${text}`)
    return answer.headers.get('content-type')?.includes('json') ? JSON.parse(text) : text
  }

  /** The id of a demo resource. */
  async id(name) {
    const { data } = await this.ask('GET', `/resources?search=${encodeURIComponent(name)}`)
    equal(data.length, 1, `resources named ${name}`)
    return data[0]._id
  }

  /** An empty page of the server's origin (or another one), with npm's modules below /modules/. */
  async page(html, origin = this.url) {
    const page = await this.chrome.newPage({ viewport: { width: 1100, height: 700 } })
    page.setDefaultTimeout(120_000)
    page.problems = []
    page.on('pageerror', error => page.problems.push(String(error)))
    await page.route(`${origin}/modules/**`, async route => {
      const file = path.join(MODULES, new URL(route.request().url()).pathname.slice('/modules/'.length))
      await route.fulfill({ body: await readFile(file), contentType: TYPES[path.extname(file)] })
    })
    await page.route(`${origin}/page`, route => route.fulfill({ body: html, contentType: 'text/html' }))
    if (html) await page.goto(`${origin}/page`)
    return page
  }

  async shoot(page, name) {
    if (this.screenshots) await page.screenshot({ path: path.join(this.screenshots, `${name}.png`) })
  }
}

export function equal(found, wanted, what) {
  if (JSON.stringify(found) !== JSON.stringify(wanted)) throw new Error(`${what}: ${JSON.stringify(found)} instead of ${JSON.stringify(wanted)}`)
}

export function check(holds, what) {
  if (!holds) throw new Error(what)
}
