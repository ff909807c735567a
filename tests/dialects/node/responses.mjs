// Runs the cases of OpenAI's Node client in one process and prints their outcomes as JSON.
// Arguments: the base URL, the model, the input.
import OpenAI from "openai";

const [baseURL, model, input] = process.argv.slice(2);
const retryCounts = [];

/** A fetch whose next answer breaks after some frames, or is lost as a whole. */
const network = { frames: null, losesHead: false };
async function cuttingFetch(url, init) {
  retryCounts.push(new Headers(init?.headers).get("x-stainless-retry-count"));
  const response = await fetch(url, init);
  if (network.losesHead) {
    network.losesHead = false;
    await response.body?.cancel();
    throw new TypeError("fetch failed");
  }
  if (network.frames === null) return response;
  let left = network.frames;
  network.frames = null;
  const decoder = new TextDecoder();
  const encoder = new TextEncoder();
  let rest = "";
  const cut = new TransformStream({
    transform(data, controller) {
      rest += decoder.decode(data, { stream: true });
      for (let end = rest.indexOf("\n\n"); left > 0 && end >= 0; end = rest.indexOf("\n\n")) {
        controller.enqueue(encoder.encode(rest.slice(0, end + 2)));
        rest = rest.slice(end + 2);
        left -= 1;
      }
      if (left === 0) controller.error(new TypeError("terminated"));
    },
  });
  return new Response(response.body.pipeThrough(cut), response);
}

const client = new OpenAI({ apiKey: "none", baseURL, maxRetries: 0, fetch: cuttingFetch });
const fails = async (promise) => {
  try {
    await promise;
  } catch (error) {
    return `${error.constructor.name} ${error.status ?? ""} ${error.code ?? ""}`.trim();
  }
  return "nothing failed";
};

async function read(stream, into) {
  for await (const event of stream) into.push(event);
  return into;
}

async function cutAtEveryEvent() {
  const differing = [];
  let length = 2;
  let cuts = 0;
  for (; cuts < length; cuts += 1) {
    network.frames = cuts + 1;
    const joined = [];
    const stream = await client.responses.create({ model, input, background: true, stream: true });
    const broke = await read(stream, joined).then(
      () => false,
      () => true,
    );
    const { id } = joined[0].response;
    const last = joined.at(-1).sequence_number;
    await read(await client.responses.retrieve(id, { stream: true, starting_after: last }), joined);
    const whole = await read(await client.responses.retrieve(id, { stream: true }), []);
    if (!broke || JSON.stringify(joined) !== JSON.stringify(whole)) differing.push(cuts);
    length = whole.length;
  }
  return { cuts, differing };
}

async function helper() {
  const first = await client.responses.stream({ model, input }).finalResponse();
  const again = client.responses.stream({ response_id: first.id, starting_after: 5 });
  const numbers = [];
  again.on("event", (event) => numbers.push(event.sequence_number));
  const final = await again.finalResponse();
  return {
    same: JSON.stringify(final.output) === JSON.stringify(first.output),
    first: numbers[0],
    text: final.output_text,
    kinds: final.output.map((item) => item.type),
  };
}

async function cancelledTwice() {
  const hanging = "[chunks=2][hang=1] Hi";
  const { id, status } = await client.responses.create({ model, input: hanging, background: true });
  const statuses = [status];
  for (let time = 0; time < 2; time += 1) statuses.push((await client.responses.cancel(id)).status);
  const ended = await client.responses.stream({ response_id: id }).finalResponse();
  return [...statuses, ended.status];
}

async function racing() {
  const options = { headers: { "Idempotency-Key": "node-1" } };
  const body = { model, input };
  const both = await Promise.all([1, 2].map(() => client.responses.create(body, options)));
  return new Set(both.map((one) => one.id)).size;
}

async function retried() {
  network.losesHead = true;
  retryCounts.length = 0;
  const body = { model, input: "Sent again by the client" };
  const { status } = await client.responses.create(body, { maxRetries: 2 });
  return { status, retryCounts: [...retryCounts] };
}

async function toolOfTheClient() {
  const tools = [{ type: "function", name: "look", parameters: { type: "object" }, strict: false }];
  const asked = await client.responses
    .stream({ model, input: "[client_tool=look] Where?", tools })
    .finalResponse();
  const call = asked.output.at(-1);
  const output = [{ type: "function_call_output", call_id: call.call_id, output: "Marstal" }];
  const done = await client.responses.create({
    model,
    tools,
    input: output,
    previous_response_id: asked.id,
  });
  return done.output_text;
}

async function failures() {
  const failed = client.responses.stream({ model, input: "[chunks=2][fail=1] Hi" });
  return {
    unknown: await fails(client.responses.create({ model: "nobody", input })),
    invalid: await fails(client.responses.create({ model, input: [] })),
    failed: (await failed.finalResponse()).status,
  };
}

async function conversation() {
  const { id } = await client.conversations.create({ metadata: { agent_id: model } });
  await client.responses.create({ model, input: "Hi", conversation: id });
  const items = [];
  for await (const item of client.conversations.items.list(id, { order: "asc", limit: 1 })) {
    items.push(item.role);
  }
  await client.conversations.delete(id);
  return { items, gone: await fails(client.conversations.retrieve(id)) };
}

const outcome = {};
for (const run of [
  cutAtEveryEvent,
  helper,
  cancelledTwice,
  racing,
  retried,
  toolOfTheClient,
  failures,
  conversation,
]) {
  outcome[run.name] = await run();
}
process.stdout.write(JSON.stringify(outcome));
