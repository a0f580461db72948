// What a portal does with our WebSockets: noVNC on a machine's screen, xterm.js on its serial line, a terminal.
import { check, equal } from './browser.mjs'

const MACHINE = 'Demo CentOS Dev Environment'

/** A page with noVNC on a console's answer, and the desktop's name. */
export async function openScreen(browser, where) {
  equal(where.type, 'vnc', 'type')
  const page = await browser.page('<body style="margin:0"><div id="screen" style="width:800px;height:600px"></div>')
  const name = await page.evaluate(async ({ url, password }) => {
    const { default: RFB } = await import('/modules/@novnc/novnc/core/rfb.js')
    return new Promise((resolve, reject) => {
      const rfb = new RFB(document.getElementById('screen'), url, { credentials: { password } })
      rfb.addEventListener('desktopname', event => resolve(event.detail.name))
      rfb.addEventListener('securityfailure', event => reject(new Error(event.detail.reason)))
      rfb.addEventListener('disconnect', event => reject(new Error(`disconnected: ${JSON.stringify(event.detail)}`)))
    })
  }, where)
  return { page, name }
}

/** A page with xterm.js on a serial line; `drawn()` in it answers what it shows. */
export async function openLine(browser, url) {
  const page = await browser.page(`<link rel="stylesheet" href="/modules/@xterm/xterm/css/xterm.css">
    <body style="margin:0"><div id="line"></div>`)
  await page.evaluate(async url => {
    const { Terminal } = await import('/modules/@xterm/xterm/lib/xterm.mjs')
    const terminal = new Terminal({ cols: 100, rows: 30 })
    terminal.open(document.getElementById('line'))
    const socket = new WebSocket(url)
    socket.binaryType = 'arraybuffer'
    socket.onmessage = event => terminal.write(new Uint8Array(event.data))
    terminal.onData(typed => socket.send(typed))
    terminal.focus()
    const buffer = terminal.buffer.active
    window.drawn = () => Array.from({ length: buffer.length }, (_, row) => buffer.getLine(row).translateToString(true)).join('\n')
  }, url)
  return page
}

/** noVNC authenticates and shows the eight colour bars of the simulated screen. */
export async function screens(browser) {
  const where = await browser.ask('GET', `/resources/${await browser.id(MACHINE)}/console`)
  const { page, name } = await openScreen(browser, where)
  equal(name, MACHINE, "the desktop's name")
  const bars = await page.waitForFunction(() => {
    const canvas = document.querySelector('canvas')
    const { data } = canvas.getContext('2d').getImageData(0, canvas.height / 4, canvas.width, 1)
    const colours = new Set()
    for (let at = 0; at < data.length; at += 4) colours.add(data.slice(at, at + 3).join())
    return colours.size >= 8 && { width: canvas.width, height: canvas.height, colours: colours.size }
  })
  const { width, height, colours } = await bars.jsonValue()
  await browser.shoot(page, 'screen')
  await page.close()
  return `noVNC shows "${name}", ${width} x ${height}, ${colours} colours across`
}

/** xterm.js, typed into: a login and a command, whose answer is read from what is drawn. */
export async function serialLines(browser) {
  const where = await browser.ask('GET', `/resources/${await browser.id(MACHINE)}/console?type=serial`)
  equal(where.type, 'serial', 'type')
  const page = await openLine(browser, where.url)
  const shows = text => page.waitForFunction(wanted => window.drawn().includes(wanted), text)
  await shows('login: ')
  await page.keyboard.type('centos\n')
  await shows('\n# ')
  await page.keyboard.type('uname\n')
  await shows('\nLinux')
  await browser.shoot(page, 'serial')
  const last = (await page.evaluate(() => window.drawn())).trim().split('\n').slice(-4).join(' | ')
  await page.close()
  return `xterm.js shows "${last}"`
}

/** A container's terminal by the subprotocol of Kubernetes, opened with a ticket. */
export async function terminals(browser) {
  const id = await browser.id('Demo Nginx Web Server')
  const { ticket } = await browser.ask('POST', `/resources/${id}/tickets`, { status: 201, body: { for: 'exec' } })
  const page = await browser.page('<title>terminal</title>')
  const open = (command, tty) => page.evaluate(attach, `${browser.url.replace('http', 'ws')}/resources/${id}/exec?` +
    new URLSearchParams({ command, tty, ticket }))
  const { protocol, channels } = await open('echo out; echo err >&2; exit 3', 'false')
  equal(protocol, 'v4.channel.k8s.io', 'the protocol')
  equal(channels[1], 'out\n', 'stdout')
  equal(channels[2], 'err\n', 'stderr')
  equal(JSON.parse(channels[3]).exitCode, 3, 'the exit code')
  const again = await open('id', 'false').catch(error => error)
  check(again instanceof Error, 'a ticket is good once')
  await page.close()
  return `stdout, stderr and exit status come on channels 1 to 3: ${channels[3]}`
}

/** Pages of other origins get no socket, whatever they hold. */
export async function foreignPages(browser) {
  const where = await browser.ask('GET', `/resources/${await browser.id(MACHINE)}/console`)
  const page = await browser.page('<title>elsewhere</title>', 'http://portal.example')
  const refused = await page.evaluate(attach, where.url).catch(error => error)
  check(refused instanceof Error && /closed/.test(refused.message), `it got a socket: ${JSON.stringify(refused)}`)
  await page.close()
  return 'a page of another origin is refused'
}

/** In the page: opens a socket, collects what each channel says, until it is closed. */
function attach(url) {
  return new Promise((resolve, reject) => {
    const socket = new WebSocket(url, ['v4.channel.k8s.io'])
    const channels = ['', '', '', '']
    let opened = false
    socket.binaryType = 'arraybuffer'
    socket.onopen = () => { opened = true }
    socket.onmessage = ({ data }) => {
      const [channel, ...bytes] = new Uint8Array(data)
      channels[channel] += new TextDecoder().decode(new Uint8Array(bytes))
    }
    socket.onclose = ({ code }) => opened ? resolve({ protocol: socket.protocol, channels }) : reject(new Error(`closed: ${code}`))
  })
}
