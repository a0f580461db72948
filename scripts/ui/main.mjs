// Runs every check against the server at HWM_URL; the exit status says whether all hold.
import { Browser } from './browser.mjs'
import { demo } from './demo.mjs'
import { screens, serialLines, terminals, foreignPages } from './consoles.mjs'
import { swagger } from './swagger.mjs'

const browser = await Browser.launch(process.env.HWM_URL, process.env.HWM_TOKEN, process.env.HWM_SCREENSHOTS)
let failed = 0
// The resources are as the demo makes them only until Swagger UI has changed them.
for (const check of [demo, screens, serialLines, terminals, foreignPages, swagger]) {
  const begin = Date.now()
  try {
    const said = await check(browser)
    console.log(`ok      ${check.name}: ${said} (${((Date.now() - begin) / 1000).toFixed(1)} s)`)
  } catch (error) {
    failed += 1
    console.log(`FAILED  ${check.name}: ${error.stack}`)
  }
}
await browser.close()
process.exit(failed ? 1 : 0)
