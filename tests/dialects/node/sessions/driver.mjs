// Sessions of the Node clients: each line of JSON on stdin is a call, and each line on stdout its answer.
//
// {"id", "session", "open": {"client", "url", "server", "agent", "kept"}} opens a session, and
// {"id", "session", "call", "args"} calls a method of it. Answers are {"id", "value"} and {"id", "error"}.
//
// A session has the methods `send(text)`, `resume()`, `repeat()`, `approve()` and `cancel()`. All but the last return
// how the answer ended for the client: "completed", "asked", "cancelled", "failed: …", "broke: …" or "hangs". `kept` is
// what an application stores of it for the next page, and `shown` is what its user sees.
import { createInterface } from "node:readline";

process.on("unhandledRejection", () => {}); // Some clients reject twice when a body breaks.
const written = process.stdout.write.bind(process.stdout);
for (const level of ["log", "info", "warn", "error", "debug"]) console[level] = () => {};

const FAMILIES = ["openai", "ai_sdk", "ag_ui", "durable_streams", "letta"];
const clients = {};
const sessions = new Map();

async function opened(options) {
    for (const family of FAMILIES) {
        if (clients[options.client]) break;
        const module = await import(`./${family}.mjs`);
        if (options.client in module.CLIENTS) Object.assign(clients, module.CLIENTS);
    }
    return await clients[options.client](options);
}

async function answer({ id, session, open, call, args = [] }) {
    try {
        let value = null;
        if (open) sessions.set(session, await opened(open));
        else if (call === "view") value = { kept: sessions.get(session).kept, shown: sessions.get(session).shown };
        else value = (await sessions.get(session)[call](...args)) ?? null;
        written(`${JSON.stringify({ id, value })}\n`);
    } catch (error) {
        written(`${JSON.stringify({ id, error: error?.stack ?? String(error) })}\n`);
    }
}

for await (const line of createInterface({ input: process.stdin })) answer(JSON.parse(line));
