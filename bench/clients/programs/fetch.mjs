// Follows a run with nothing but `fetch`, as docs/browser.md says: sends the last id, and treats a
// body that ends without `done` as cut off.

import { existsSync, readFileSync, renameSync, writeFileSync } from "node:fs";

const { server, conversation, tokens, kept } = JSON.parse(process.argv[2]);
const address = `${server}/v1/conversations/${conversation}/stream`;
const state = existsSync(kept) ? JSON.parse(readFileSync(kept, "utf8")) : { text: "", lastId: "" };
const newToken = async () => (await (await fetch(tokens)).json()).token;
let token = await newToken();
let refused = 0;
let retryMs = 1000;

function keep() {
  writeFileSync(`${kept}.new`, JSON.stringify(state));
  renameSync(`${kept}.new`, kept);
}

/** Show an event; return whether it is the end. */
function take(frame) {
  const fields = { event: "message", data: "" };
  for (const line of frame.split("\n")) {
    const [name, value] = line.split(/: ?(.*)/s);
    if (name !== "") fields[name] = value;
  }
  if (fields.retry) retryMs = Number(fields.retry);
  if (fields.id) state.lastId = fields.id;
  if (fields.event === "done") return true;
  if (fields.event !== "message" || fields.data === "") return false;
  const event = JSON.parse(fields.data);
  if (event.message_type === "assistant_message") state.text += event.content;
  keep();
  return false;
}

/** Read one response; return how it ended, or undefined if it was cut off. */
async function read() {
  const headers = { Authorization: `Bearer ${token}` };
  if (state.lastId) headers["Last-Event-ID"] = state.lastId;
  const response = await fetch(address, { headers });
  if (response.status === 204) return "ended";
  if (response.status === 401 && ++refused < 2) {
    token = await newToken();
    return undefined;
  }
  if (response.status >= 500) return undefined;
  if (response.status !== 200) return `${(await response.json()).code} (${response.status})`;
  refused = 0;
  let rest = "";
  for await (const text of response.body.pipeThrough(new TextDecoderStream())) {
    const frames = (rest + text).split("\n\n");
    rest = frames.pop();
    for (const frame of frames) {
      if (take(frame)) {
        keep();
        return "ended";
      }
    }
  }
  return undefined;
}

const deadline = Date.now() + 120_000;
let end;
while (end === undefined && Date.now() < deadline) {
  try {
    end = await read();
  } catch (error) {
    if (!(error instanceof TypeError)) throw error; // `fetch` reports lost connections so.
  }
  if (end === undefined) await new Promise((resolve) => setTimeout(resolve, retryMs));
}
console.log(end ?? "it gave up after two minutes");
process.exit();
