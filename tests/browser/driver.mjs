// A headless Chromium: each line of JSON on stdin is an order, `{"id", "do", ...arguments}`.
//
// Answers with lines of JSON on stdout, in the order in which they are ready: {"id", "value"} or
// {"id", "error"}. The first line is {"ready": version}. The browser ends with stdin.

import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

const say = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);

// Every name below .example is this machine, so pages of other sites can be served here.
const browser = await chromium.launch({
  executablePath: process.argv[2],
  args: ["--disable-gpu", "--host-resolver-rules=MAP *.example 127.0.0.1"],
});
const pages = [];
const WAIT_MS = 15_000;
const LOOK_MS = 20;

const orders = {
  // A tab, in a profile of its own or in that of the page `beside`.
  async open({ url, beside }) {
    const context =
      beside === null ? await browser.newContext({ locale: "en-US" }) : pages[beside].page.context();
    const tab = { page: await context.newPage(), log: [], requests: [] };
    tab.page.setDefaultTimeout(WAIT_MS);
    tab.page.on("console", (message) => tab.log.push(`${message.type()}: ${message.text()}`));
    tab.page.on("pageerror", (error) => tab.log.push(`pageerror: ${error.stack}`));
    tab.page.on("request", (request) => tab.requests.push(`${request.method()} ${request.url()}`));
    tab.page.on("dialog", (dialog) => dialog.accept());
    pages.push(tab);
    if (url !== null) await tab.page.goto(url);
    return pages.length - 1;
  },
  async goto({ page, url }) {
    await pages[page].page.goto(url);
  },
  async reload({ page }) {
    await pages[page].page.reload();
  },
  async evaluate({ page, code, argument }) {
    return await pages[page].page.evaluate(`(${code})(${JSON.stringify(argument)})`);
  },
  // An action of Playwright on an element, once it can be done: fill, click, press …
  async act({ page, selector, action, args }) {
    return await pages[page].page.locator(selector)[action](...args);
  },
  async wait_until({ page, code, argument }) {
    // Pages with a strict policy refuse Playwright's own loop, which evaluates strings within the page.
    const { page: tab } = pages[page];
    const called = `(${code})(${JSON.stringify(argument)})`;
    for (const end = Date.now() + WAIT_MS; ; await new Promise((resolve) => setTimeout(resolve, LOOK_MS))) {
      try {
        if (await tab.evaluate(called)) return;
      } catch (error) {
        if (!/context was destroyed|navigat/i.test(error.message)) throw error;
      }
      if (Date.now() > end) throw new Error(`not within ${WAIT_MS} ms: ${called}`);
    }
  },
  async resize({ page, width, height }) {
    await pages[page].page.setViewportSize({ width, height });
  },
  async prefer({ page, scheme }) {
    await pages[page].page.emulateMedia({ colorScheme: scheme, reducedMotion: "reduce" });
  },
  async screenshot({ page, path }) {
    await pages[page].page.screenshot({ path });
  },
  async requests({ page }) {
    return pages[page].requests;
  },
  // What the page has cost so far, counted from the first call on. The heap is that after a collection.
  async metrics({ page }) {
    const tab = pages[page];
    if (!tab.session) {
      tab.session = await tab.page.context().newCDPSession(tab.page);
      await tab.session.send("Performance.enable");
    }
    await tab.session.send("HeapProfiler.collectGarbage");
    const { metrics } = await tab.session.send("Performance.getMetrics");
    const of = Object.fromEntries(metrics.map(({ name, value }) => [name, value]));
    return {
      seconds: of.Timestamp,
      script_seconds: of.ScriptDuration,
      task_seconds: of.TaskDuration,
      heap_bytes: of.JSHeapUsedSize,
    };
  },
  async bring_to_front({ page }) {
    await pages[page].page.bringToFront();
  },
  async close({ page }) {
    const { page: tab } = pages[page];
    const context = tab.context();
    await tab.close();
    if (context.pages().length === 0) await context.close();
  },
  async log({ page }) {
    return pages[page].log;
  },
  async renderers() {
    const session = await browser.newBrowserCDPSession();
    const { processInfo } = await session.send("SystemInfo.getProcessInfo");
    await session.detach();
    return processInfo.filter(({ type }) => type === "renderer").map(({ id }) => id);
  },
};

async function follow({ id, do: order, ...given }) {
  try {
    say({ id, value: (await orders[order](given)) ?? null });
  } catch (error) {
    say({ id, error: String(error.stack ?? error) });
  }
}

say({ ready: browser.version() });
for await (const line of createInterface({ input: process.stdin })) follow(JSON.parse(line));
await browser.close();
