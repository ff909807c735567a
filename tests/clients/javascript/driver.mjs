// The JavaScript client: each line of JSON on stdin is a call to make with a client of its own.
//
// {"id", "options": {of connect}, "method": "send", "args": [...]}
//
// Answers with lines of JSON on stdout: {"id", "event"} for each item of a stream, {"id", "state"},
// {"id", "otid"}, {"id", "value"}, {"id", "error"}, and as the last one {"id"}.

import { createInterface } from "node:readline";
import { connect } from "../../../js/dist/index.js";

const say = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);

async function serve({ id, options, method, args }) {
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
      for await (const event of stream) say({ id, event });
    }
  } catch (error) {
    const { name, message, status, code } = error;
    say({ id, error: { name, message, status, code } });
  }
  client.close();
  say({ id });
}

for await (const line of createInterface({ input: process.stdin })) serve(JSON.parse(line));
