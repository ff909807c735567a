// The official TypeScript SDK: each line of JSON on stdin is a call to make.
//
// {"id", "client": {options of the SDK}, "path": ["conversations", "messages", "create"],
//  "args": [...], "iterate": true}
//
// Answers with lines of JSON on stdout, several calls at once if so asked: {"id", "chunk"} for each
// item of a stream or pager, {"id", "value"}, {"id", "error"}, and as the last one {"id", "end"}:
// how many requests were made, and the bytes of the stream as they came over the wire, in base64.

import { createInterface } from "node:readline";
import { Letta, APIError } from "@letta-ai/letta-client";

const say = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);

function recordingFetch(record) {
  return async (url, init) => {
    record.requests += 1;
    const response = await fetch(url, init);
    record.headers = Object.fromEntries(response.headers);
    if (!response.headers.get("content-type")?.startsWith("text/event-stream")) return response;
    const noting = new TransformStream({
      transform(bytes, controller) {
        record.body.push(Buffer.from(bytes));
        controller.enqueue(bytes);
      },
    });
    return new Response(response.body.pipeThrough(noting), response);
  };
}

function described(error) {
  return {
    name: error.constructor.name,
    is_api_error: error instanceof APIError,
    status: error.status ?? null,
    body: error.error ?? null,
    message: String(error.message),
  };
}

async function serve({ id, client, path, args, iterate }) {
  const record = { requests: 0, body: [], headers: {} };
  const sdk = new Letta({ ...client, fetch: recordingFetch(record) });
  try {
    const names = [...path];
    const method = names.pop();
    const resource = names.reduce((at, name) => at[name], sdk);
    const result = await resource[method](...args);
    if (iterate) {
      for await (const chunk of result) say({ id, chunk });
    } else {
      say({ id, value: result ?? null });
    }
  } catch (error) {
    say({ id, error: described(error) });
  }
  const body = Buffer.concat(record.body).toString("base64");
  say({ id, end: { requests: record.requests, headers: record.headers, body } });
}

for await (const line of createInterface({ input: process.stdin })) serve(JSON.parse(line));
