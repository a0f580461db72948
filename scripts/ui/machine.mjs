// A real machine in a browser's page: noVNC shows its boot, xterm.js logs in on its serial line.
//
// HWM_URL, HWM_TOKEN: the server. HWM_MACHINE: the body of the machine. HWM_SCREENSHOTS: where to put pictures.
import { Browser, check, equal } from './browser.mjs'
import { openLine, openScreen } from './consoles.mjs'

const browser = await Browser.launch(process.env.HWM_URL, process.env.HWM_TOKEN, process.env.HWM_SCREENSHOTS)
const made = await browser.ask('POST', '/resources', {
  status: 201, body: JSON.parse(process.env.HWM_MACHINE), headers: { prefer: 'wait=60' },
})
const where = `/resources/${made._id}`

/** How many points of the screen are lit: text, since all else of a text screen is black. */
function lit() {
  const canvas = document.querySelector('canvas')
  const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height)
  let points = 0
  for (let at = 0; at < data.length; at += 4) if (data[at] + data[at + 1] + data[at + 2] > 240) points += 1
  return points
}

async function screen() {
  const { page, name } = await openScreen(browser, await browser.ask('GET', `${where}/console`))
  check(name.includes(made._id), `the desktop's name is ${name}`)
  await page.waitForFunction(`(${lit})() > 300`)
  const booting = await page.evaluate(lit)
  check(booting > 300, `the screen stays dark: ${booting} points`)
  await browser.shoot(page, 'machine-boot')
  await ready()
  await page.waitForTimeout(1500)
  const up = await page.evaluate(lit)
  await browser.shoot(page, 'machine-up')
  check(up > 300, `the screen went dark: ${up} points`)
  // What is typed comes on.
  await page.click('canvas')
  await page.keyboard.type('clear; uname -a; uname -a; uname -a\n', { delay: 60 })
  await page.waitForTimeout(2500)
  const typed = await page.evaluate(lit)
  await browser.shoot(page, 'machine-typed')
  check(typed !== up, 'the keyboard changes the screen')
  equal(page.problems, [], 'problems of the page')
  await page.close()
  return `noVNC shows "${name}": ${booting} lit points while it boots, ${up} when it is up, ${typed} after typing`
}

async function ready() {
  for (let tries = 0; tries < 240; tries += 1) {
    const { logs } = await browser.ask('GET', `${where}/logs`)
    if (logs.some(line => line.message.includes('guest ready'))) return
    await new Promise(resolve => setTimeout(resolve, 500))
  }
  throw new Error('the guest does not come up')
}

async function line() {
  const { url } = await browser.ask('GET', `${where}/console?type=serial`)
  const page = await openLine(browser, url)
  const shows = text => page.waitForFunction(wanted => window.drawn().includes(wanted), text)
  await shows('guest ready')
  await page.keyboard.type('\n')
  await shows('login: ')
  await page.keyboard.type('root\n', { delay: 20 })
  await shows('# ')
  await page.keyboard.type('echo sum=$((40+2)); uname -s\n', { delay: 20 })
  await shows('sum=42\nLinux')
  await browser.shoot(page, 'machine-serial')
  const last = (await page.evaluate(() => window.drawn())).trim().split('\n').slice(-4).join(' | ')
  equal(page.problems, [], 'problems of the page')
  await page.close()
  return `xterm.js shows "${last}"`
}

let failed = 0
for (const [name, run] of Object.entries({ screen, line })) {
  const begin = Date.now()
  try {
    console.log(`ok      ${name}: ${await run()} (${((Date.now() - begin) / 1000).toFixed(1)} s)`)
  } catch (error) {
    failed += 1
    console.log(`FAILED  ${name}: ${error.stack}`)
  }
}
await browser.ask('DELETE', where, { headers: { prefer: 'wait=60' } })
await browser.close()
process.exit(failed ? 1 : 0)
