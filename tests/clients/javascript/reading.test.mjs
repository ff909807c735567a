// What a stream of events can look like, and what becomes of it.

import assert from "node:assert/strict";
import { test } from "node:test";
import { NotFound, Conflict, Gone, ReattachError, Unauthorized, connect } from "../../../js/dist/index.js";
import { Fake, OTHER, RUN, URL_OF_SERVER, done, event, frame, frames, seqs } from "./fake.mjs";

const quick = { backoff: { firstMs: 0 } };
const clientOf = (fake, options = {}) =>
  connect({ url: URL_OF_SERVER, fetch: fake.fetch, ...quick, ...options });

/** Follow the run from a fake server that answers the first request with `bytes` in two pieces. */
async function read(bytes, at) {
  const fake = new Fake();
  const stream = clientOf(fake).follow({ run: RUN });
  const items = seqs(stream);
  const request = (await fake.request()).stream();
  request.bytes(bytes.slice(0, at));
  request.bytes(bytes.slice(at));
  return [await items, stream];
}

test("line ends may be LF, CRLF or CR, and the text may be cut anywhere", async () => {
  const text = `\uFEFF: a comment\nretry: 1000\n${frame(1, { content: "ä😀\u2028" })}: keepalive\n${frame(2)}${done(2)}`;
  for (const [end, step] of [["\r\n", 1], ["\n", 7], ["\r", 7]]) {
    const bytes = new TextEncoder().encode(text.replaceAll("\n", end));
    for (let at = 0; at <= bytes.length; at += step) {
      const [items, stream] = await read(bytes, at);
      assert.deepEqual(items, [1, 2], `cut at ${at} with ${JSON.stringify(end)}`);
      assert.equal(stream.state.name, "ended");
    }
  }
});

test("data of several lines is one event, and unknown events, ids without data and names are skipped", async () => {
  const text =
    `data: {"message_type":"ping","run_id":"${RUN}",\ndata: "seq_id":1}\n\n` +
    `event: news\ndata: {"seq_id":9}\n\nid: 7\n\nevent: ping\ndata: {}\n\nnonsense\nfield: x\n\n${frame(2)}${done(2)}`;
  const [items] = await read(new TextEncoder().encode(text), 3);
  assert.deepEqual(items, [1, 2]);
});

test("a frame without its blank line is asked for again", async () => {
  const fake = new Fake();
  const items = seqs(clientOf(fake).follow({ run: RUN }));
  const first = (await fake.request()).stream();
  assert.equal(first.path, `/reattach/v1/runs/${RUN}/stream`);
  assert.equal(first.query("starting_after"), "0");
  first.write(frame(1) + frame(2).slice(0, -1));
  first.end();
  const second = (await fake.request()).stream();
  assert.equal(second.query("starting_after"), "1");
  second.write(frames(2, 3) + done(3));
  assert.deepEqual(await items, [1, 2, 3]);
});

test("events that were read before are dropped", async () => {
  const fake = new Fake();
  const items = seqs(clientOf(fake).follow({ run: RUN }, { after: 2 }));
  (await fake.request()).stream().write(frames(1, 4) + frame(3) + done(4));
  assert.deepEqual(await items, [3, 4]);
});

for (const [name, bad] of [
  ["a gap", frame(3)],
  ["an event of another run", frame(2, { run_id: OTHER })],
  ["an end after events that are missing", done(2)],
]) {
  test(`after ${name} the stream is read again from the last good event`, async () => {
    const fake = new Fake();
    const items = seqs(clientOf(fake).follow({ run: RUN }));
    (await fake.request()).stream().write(frame(1) + bad);
    const again = (await fake.request()).stream();
    assert.equal(again.query("starting_after"), "1");
    again.write(frames(2, 3) + done(3));
    assert.deepEqual(await items, [1, 2, 3]);
  });

  test(`${name} twice in a row is an error`, async () => {
    const fake = new Fake();
    const stream = clientOf(fake).follow({ run: RUN });
    const items = seqs(stream);
    (await fake.request()).stream().write(frame(1) + bad);
    (await fake.request()).stream().write(bad);
    await assert.rejects(items, (error) => error instanceof ReattachError && /broken/.test(error.message));
    assert.equal(stream.state.name, "failed");
    assert.equal(fake.count, 2);
  });
}

test("a conversation is resolved once: a reconnect names the run", async () => {
  const fake = new Fake();
  const stream = clientOf(fake).follow({ conversation: "default", agent: "agent-1" });
  const items = seqs(stream);
  const first = (await fake.request()).stream();
  assert.equal(first.path, "/reattach/v1/conversations/default/stream");
  assert.equal(first.query("agent_id"), "agent-1");
  first.write(frame(1));
  first.cut();
  const second = (await fake.request()).stream();
  assert.equal(second.path, `/reattach/v1/runs/${RUN}/stream`);
  second.write(frame(2) + done(2));
  assert.deepEqual(await items, [1, 2]);
  assert.equal(await stream.runId, RUN);
});

test("an id of the address bar cannot lead to another address", async () => {
  const fake = new Fake();
  const client = clientOf(fake);
  const stream = client.follow({ run: "run/../../agents?x=1&" });
  const items = seqs(stream);
  assert.equal((await fake.request()).url.pathname, "/reattach/v1/runs/run%2F..%2F..%2Fagents%3Fx%3D1%26/stream");
  const other = seqs(client.follow({ conversation: "a/b", agent: "c&d" }));
  const { url } = await fake.request();
  assert.deepEqual([url.pathname, url.searchParams.get("agent_id")], ["/reattach/v1/conversations/a%2Fb/stream", "c&d"]);
  client.close();
  for (const one of [items, other]) await assert.rejects(one, { name: "AbortError" });
});

test("what follows the end is ignored, and the connection is closed", async () => {
  const fake = new Fake();
  const stream = clientOf(fake).follow({ run: RUN });
  const items = seqs(stream);
  const request = (await fake.request()).stream();
  request.write(frame(1, { message_type: "stop_reason", stop_reason: "end_turn" }) + done(1) + frame(2));
  assert.deepEqual(await items, [1]);
  assert.deepEqual(stream.state, { name: "ended", status: "end_turn" });
  await request.cancelled;
});

test("a consumer that does not ask for more reads no more", async () => {
  const fake = new Fake();
  const stream = clientOf(fake).follow({ run: RUN });
  const first = stream.next();
  const request = (await fake.request()).stream();
  for (let seq = 1; seq <= 100; seq += 1) request.write(frame(seq));
  assert.equal((await first).value.seq_id, 1);
  assert.equal((await stream.next()).value.seq_id, 2);
  await new Promise(setImmediate);
  assert.ok(request.pulls <= 3, `${request.pulls} pieces were pulled for two events`);
  await stream.return();
  await request.cancelled;
  assert.equal(stream.state.name, "closed");
});

test("a snapshot comes first and the events after it next, over a cut within the snapshot", async () => {
  const fake = new Fake();
  const stream = clientOf(fake).follow({ conversation: "conv-1" }, { snapshot: true });
  const reading = (async () => {
    const items = [];
    for await (const item of stream) items.push(item);
    return items;
  })();
  const snapshot = { run_id: RUN, conversation_id: "conv-1", status: "running", stop_reason: null, seq: 7, messages: [] };
  const text = `event: snapshot\nid: ${RUN}:7\ndata: ${JSON.stringify(snapshot)}\n\n`;
  const first = (await fake.request()).stream();
  assert.equal(first.query("from"), "snapshot");
  first.write(text.slice(0, 40));
  first.cut();
  const second = (await fake.request()).stream();
  assert.equal(second.query("from"), "snapshot");
  second.write(text + frame(8));
  second.cut();
  const third = (await fake.request()).stream();
  assert.equal(third.query("from"), null);
  assert.equal(third.query("starting_after"), "8");
  third.write(frame(9) + done(9));
  assert.deepEqual(await reading, [{ ...snapshot, message_type: "snapshot" }, event(8), event(9)]);
});

for (const [status, body, kind, members] of [
  [404, { detail: "Run not found", code: "not_found" }, NotFound, {}],
  [409, { detail: "ahead", code: "cursor_ahead", last_seq: 3 }, Conflict, { last_seq: 3 }],
  [410, { detail: "gone", code: "expired", expired_at: "2026-11-29T00:00:00Z" }, Gone, { expired_at: "2026-11-29T00:00:00Z" }],
  [410, { detail: "lost", code: "events_lost", earliest_seq: 5 }, Gone, { earliest_seq: 5 }],
  [400, { detail: "No active runs found" }, ReattachError, {}],
  [422, { detail: "bad" }, ReattachError, {}],
  [501, { detail: "not offered" }, ReattachError, {}],
  [401, { detail: "key" }, Unauthorized, {}],
]) {
  test(`a refusal with ${status} is final: ${body.detail}`, async () => {
    const fake = new Fake();
    const stream = clientOf(fake).follow({ run: RUN });
    const items = seqs(stream);
    (await fake.request()).json(status, body);
    const error = await items.catch((error) => error);
    assert.equal(error.constructor, kind);
    assert.equal(error.status, status);
    assert.equal(error.code, body.code);
    assert.match(error.message, new RegExp(body.detail));
    for (const [name, value] of Object.entries(members)) assert.equal(error[name], value);
    assert.deepEqual(stream.state, { name: "failed", error });
  });
}

test("errors have their names", () => {
  for (const kind of [NotFound, Conflict, Gone, ReattachError, Unauthorized]) {
    assert.match(new kind("x").name, /^(NotFound|Conflict|Gone|ReattachError|Unauthorized)$/);
  }
  assert.equal(new Gone("x").name, "Gone");
});

test("an answer without an event stream, as of a captive portal, is tried again", async () => {
  const fake = new Fake();
  const states = [];
  const stream = clientOf(fake).follow({ run: RUN }, { onState: ({ name, reason }) => states.push(reason ?? name) });
  const items = seqs(stream);
  (await fake.request()).answer(new Response("<html>", { headers: { "content-type": "text/html" } }));
  (await fake.request()).answer(new Response("<html>502</html>", { status: 502 }));
  (await fake.request()).fail();
  (await fake.request()).stream().write(frame(1) + done(1));
  assert.deepEqual(await items, [1]);
  assert.deepEqual(states, [
    ...["connecting", "the answer was text/html", "connecting", "the server answered 502"],
    ...["connecting", "fetch failed", "connecting", "live", "ended"],
  ]);
});

test("a 404 of another program is final at first, and passes once the server has answered", async () => {
  const page = () => new Response("404 page not found", { status: 404 });
  const fake = new Fake();
  const client = clientOf(fake);
  const wrong = seqs(client.follow({ run: RUN }));
  (await fake.request()).answer(page());
  await assert.rejects(wrong, /404: Another program answered/);
  const items = seqs(client.follow({ run: RUN }));
  const first = (await fake.request()).stream();
  first.write(frame(1));
  first.cut();
  (await fake.request()).answer(page());
  (await fake.request()).stream().write(frame(2) + done(2));
  assert.deepEqual(await items, [1, 2]);
});

test("without a token 204 is the end, and with one it is an expired token", async () => {
  const fake = new Fake();
  const stream = clientOf(fake).follow({ run: RUN });
  const items = seqs(stream);
  (await fake.request()).answer(new Response(null, { status: 204 }));
  assert.deepEqual(await items, []);
  assert.equal(stream.state.name, "ended");
  const refused = seqs(clientOf(fake, { token: "key" }).follow({ run: RUN }));
  (await fake.request()).answer(new Response(null, { status: 204 }));
  await assert.rejects(refused, Unauthorized);
});

test("many runs share one body, and each ends by itself", async () => {
  const fake = new Fake();
  const many = clientOf(fake).many();
  const long = (run, seq) => `id: ${run}:${seq}\ndata: ${JSON.stringify(event(seq, { run_id: run }))}\n\n`;
  const end = (run, seq) => `event: done\nid: ${run}:${seq}-done\ndata: [DONE]\n\n`;
  const third = "run-33333333-3333-4333-8333-333333333333";
  const next = async () => {
    const { value } = await many.next();
    return [value.run_id, value.seq_id ?? value.code];
  };
  many.add(RUN);
  many.add(OTHER, 4);
  let item = next();
  const first = (await fake.request()).stream();
  assert.equal(first.path, "/reattach/v1/streams");
  assert.deepEqual(first.body.runs, [
    { run_id: RUN, starting_after: 0 },
    { run_id: OTHER, starting_after: 4 },
  ]);
  first.write(long(RUN, 1) + long(OTHER, 5) + long(RUN, 1) + end(OTHER, 5));
  assert.deepEqual(await item, [RUN, 1]);
  assert.deepEqual(await next(), [OTHER, 5]);
  item = next();
  await new Promise(setImmediate);
  many.add(third);
  const second = (await fake.request()).stream();
  assert.deepEqual(second.body.runs, [
    { run_id: RUN, starting_after: 1 },
    { run_id: third, starting_after: 0 },
  ]);
  await first.cancelled;
  second.write(`event: run_error\ndata: ${JSON.stringify({ run_id: third, status: 404, code: "not_found", detail: "x" })}\n\n`);
  assert.deepEqual(await item, [third, "not_found"]);
  item = next();
  second.write(long(RUN, 2) + end(RUN, 2));
  assert.deepEqual(await item, [RUN, 2]);
  item = many.next();
  second.end();
  await new Promise(setImmediate);
  assert.equal(fake.count, 2);
  many.close();
  await assert.rejects(item, { name: "AbortError" });
});

test("a run that is added again keeps its cursor, and the 101st run is refused", async () => {
  const fake = new Fake();
  const many = clientOf(fake).many();
  many.add(RUN, 7);
  many.add(RUN);
  for (let at = 1; at < 100; at += 1) many.add(`run-${at}`);
  assert.throws(() => many.add(OTHER), ReattachError);
  const item = many.next();
  const { runs } = (await fake.request()).body;
  assert.deepEqual([runs.length, runs[0]], [100, { run_id: RUN, starting_after: 7 }]);
  many.close();
  await assert.rejects(item, { name: "AbortError" });
});

test("a URL without http or https is refused at once", () => {
  for (const url of ["localhost:8283", "/reattach", "ws://localhost", ""]) {
    assert.throws(() => connect({ url }), ReattachError);
  }
});

test("snapshot and cancel are single calls with the server's errors", async () => {
  const fake = new Fake();
  const client = clientOf(fake, { token: "key" });
  const snapshot = client.snapshot({ conversation: "default", agent: "agent-1" });
  const asked = await fake.request();
  assert.equal(asked.url.href, `${URL_OF_SERVER}/v1/conversations/default/snapshot?agent_id=agent-1`);
  assert.equal(asked.headers.authorization, "Bearer key");
  asked.json(200, { seq: 3 });
  assert.deepEqual(await snapshot, { seq: 3 });
  const cancelled = client.cancel({ run: RUN });
  const cancelling = await fake.request();
  assert.deepEqual([cancelling.method, cancelling.path], ["POST", `/reattach/v1/runs/${RUN}/cancel`]);
  cancelling.json(200, { [RUN]: "cancelled" });
  assert.deepEqual(await cancelled, { [RUN]: "cancelled" });
  const idle = client.cancel({ conversation: "conv-1" });
  const refused = await fake.request();
  assert.deepEqual([refused.method, refused.path], ["POST", "/reattach/v1/conversations/conv-1/cancel"]);
  refused.json(409, { detail: "nothing is active" });
  await assert.rejects(idle, Conflict);
});
