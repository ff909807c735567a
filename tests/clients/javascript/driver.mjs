// The JavaScript client: each line of JSON on stdin is a call to make with a client of its own.
//
// {"id", "options": {of connect}, "method": "send", "args": [...]}
//
// Options beside those of connect: `tokens`, the answers of the token function one after the other; as
// `storage` the name of one that all calls share; `leaveAfter`, the number of events before it leaves.
//
// Answers with lines of JSON on stdout: {"id", "event"} for each item of a stream, {"id", "state"},
// {"id", "otid"}, {"id", "value"}, {"id", "error"}, and as the last one {"id"}.

import { createInterface } from "node:readline";
import { connect } from "../../../js/dist/index.js";

const say = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);

const storages = new Map();

/** A storage in memory. */
function storageOf(name) {
  const items = new Map();
  if (!storages.has(name)) {
    storages.set(name, {
      getItem: (key) => items.get(key) ?? null,
      setItem: (key, value) => items.set(key, value),
      removeItem: (key) => items.delete(key),
    });
  }
  return storages.get(name);
}

async function serve({ id, options: { tokens, storage, leaveAfter, ...options }, method, args }) {
  if (tokens) options.token = () => (tokens.length > 1 ? tokens.shift() : tokens[0]);
  if (storage) options.storage = storageOf(storage);
  const client = connect(options);
  try {
    if (method === "snapshot" || method === "cancel") {
      say({ id, value: await client[method](...args) });
    } else if (method === "many") {
      const many = client.many();
      for (const { run, after } of args) many.add(run, after);
      let ended = 0;
      for await (const event of many) {
        say({ id, event });
        ended += ["usage_statistics", "run_error"].includes(event.message_type);
        if (ended === args.length) break;
      }
    } else {
      const [target, ...rest] = args;
      const onState = ({ name }) => say({ id, state: name });
      const more = rest.pop() ?? {};
      const stream = client[method](target, ...rest, { ...more, onState });
      say({ id, otid: stream.otid ?? "" });
      let count = 0;
      for await (const event of stream) {
        say({ id, event });
        if ((count += 1) === leaveAfter) break;
      }
    }
  } catch (error) {
    const { name, message, status, code } = error;
    say({ id, error: { name, message, status, code } });
  }
  client.close();
  say({ id });
}

for await (const line of createInterface({ input: process.stdin })) serve(JSON.parse(line));
