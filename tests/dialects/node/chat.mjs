// OpenAI's Node client against one agent: prints what each way of asking for an answer gives.
//
//   node chat.mjs <base URL> <agent>

import OpenAI from "openai";

const [, , baseURL, model] = process.argv;
const asked = [{ role: "user", content: "[chunks=3]" }];
const look = { type: "function", function: { name: "look", parameters: { type: "object" } } };

/** Break the next answer after `frames` frames; with -1, lose it as a whole. */
let frames = null;
const retryCounts = [];

async function breakingFetch(url, init) {
  retryCounts.push(new Headers(init.headers).get("x-stainless-retry-count"));
  const response = await fetch(url, init);
  if (frames === null) return response;
  const left = frames;
  frames = null;
  if (left < 0) {
    await response.body.cancel();
    throw new TypeError("fetch failed");
  }
  return new Response(ReadableStream.from(brokenAfter(left, response.body)), response);
}

async function* brokenAfter(left, body) {
  const decoder = new TextDecoder();
  const encoder = new TextEncoder();
  let rest = "";
  for await (const bytes of body) {
    rest += decoder.decode(bytes, { stream: true });
    for (let end; left > 0 && (end = rest.indexOf("\n\n")) >= 0; left -= 1) {
      yield encoder.encode(rest.slice(0, end + 2));
      rest = rest.slice(end + 2);
    }
    if (left === 0) throw new TypeError("terminated");
  }
}

const client = (maxRetries) =>
  new OpenAI({ baseURL, apiKey: "none", maxRetries, fetch: breakingFetch });
const sdk = client(0);

async function streamed(stream) {
  let text = "";
  try {
    for await (const chunk of stream) text += chunk.choices[0]?.delta.content ?? "";
    return { text };
  } catch (error) {
    return { text, error: error.message, isApiError: error instanceof OpenAI.APIError };
  }
}

async function whole() {
  const answer = await sdk.chat.completions.create({ model, messages: asked });
  const stream = await sdk.chat.completions.create({ model, messages: asked, stream: true });
  const helper = sdk.chat.completions.stream({
    model,
    messages: asked,
    stream_options: { include_usage: true },
  });
  const final = await helper.finalChatCompletion();
  return {
    json: answer.choices[0].message.content,
    stream: (await streamed(stream)).text,
    helper: final.choices[0].message.content,
    usage: [answer.usage.total_tokens, final.usage.total_tokens],
  };
}

async function cutAt(count) {
  frames = count;
  const { data, response } = await sdk.chat.completions
    .create(
      { model, messages: asked, stream: true },
      { headers: { "X-Reattach-Chat-Key": `node ${count}` } },
    )
    .withResponse();
  const got = await streamed(data);
  const header = (name) => response.headers.get(name);
  return { ...got, run: header("x-run-id"), conversation: header("x-conversation-id") };
}

async function helperCut() {
  frames = 3;
  try {
    await sdk.chat.completions.stream({ model, messages: asked }).finalContent();
    return null;
  } catch (error) {
    return error.constructor.name;
  }
}

async function tools() {
  const called = [];
  const run = (text) => (called.push(text), "calm");
  const runner = sdk.chat.completions.runTools({
    model,
    messages: [{ role: "user", content: '[client_tool=look][arguments={"at":"sea"}] Where?' }],
    tools: [{ type: "function", function: { ...look.function, function: run } }],
  });
  return { text: await runner.finalContent(), called };
}

async function retried() {
  retryCounts.length = 0;
  frames = -1;
  const messages = [{ role: "user", content: "retried" }];
  const answer = await client(2).chat.completions.create({ model, messages });
  return { text: answer.choices[0].message.content, counts: [...retryCounts] };
}

async function failed() {
  const messages = [{ role: "user", content: "[fail=2]" }];
  const create = (body) => client(2).chat.completions.create(body);
  const inStream = await streamed(await create({ model, messages, stream: true }));
  const status = await create({ model, messages }).catch((error) => error.status);
  const unknown = await create({ model: "nobody", messages }).catch((error) => error.code);
  return { inStream, status, unknown };
}

const cuts = [];
for (let count = 1; count <= 5; count += 1) cuts.push(await cutAt(count));
const results = {
  whole: await whole(),
  cuts,
  helperCut: await helperCut(),
  tools: await tools(),
  retried: await retried(),
  failed: await failed(),
};
process.stdout.write(JSON.stringify(results));
