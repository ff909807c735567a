// A message starts one run; a page that comes back goes on where it was.

import assert from "node:assert/strict";
import { test } from "node:test";
import { Conflict, NotFound, connect } from "../../../js/dist/index.js";
import { Fake, OTHER, RUN, URL_OF_SERVER, done, frame, frames, seqs } from "./fake.mjs";

const CONVERSATION = "conv-33333333-3333-4333-8333-333333333333";
const clientOf = (fake, options = {}) =>
  connect({ url: URL_OF_SERVER, fetch: fake.fetch, backoff: { firstMs: 0 }, ...options });

class Store {
  items = new Map();
  getItem = (key) => this.items.get(key) ?? null;
  setItem = (key, value) => void this.items.set(key, value);
  removeItem = (key) => void this.items.delete(key);
}

test("a send is made at once, and again with its OTID until the run is known", async () => {
  const fake = new Fake();
  const stream = clientOf(fake).send(CONVERSATION, "hello", {
    clientTools: [{ name: "t" }],
    body: { override_model: "m" },
  });
  const first = await fake.request();
  assert.deepEqual([first.method, first.path], ["POST", `/reattach/v1/conversations/${CONVERSATION}/messages`]);
  const { messages, ...rest } = first.body;
  assert.deepEqual(messages, [{ role: "user", content: "hello", otid: stream.otid }]);
  assert.deepEqual(rest, {
    ...{ client_tools: [{ name: "t" }], override_model: "m" },
    ...{ background: true, stream_tokens: true, streaming: true },
  });
  first.fail();
  const second = await fake.request();
  assert.deepEqual(second.body, first.body);
  second.json(503, { detail: "starting" });
  const third = (await fake.request()).stream({ "x-run-id": RUN });
  assert.deepEqual(third.body, first.body);
  assert.equal(await stream.runId, RUN);
  third.cut();
  const items = seqs(stream);
  const resumed = (await fake.request()).stream();
  assert.deepEqual([resumed.method, resumed.path], ["GET", `/reattach/v1/runs/${RUN}/stream`]);
  resumed.write(frames(1, 2) + done(2));
  assert.deepEqual(await items, [1, 2]);
});

test("each message of a list has an OTID, and those of the application stay", async () => {
  const fake = new Fake();
  const input = [{ type: "approval", approvals: [] }, { role: "user", content: "b" }, { role: "user", content: "c", otid: "mine" }];
  const stream = clientOf(fake).send("default", input, { otid: "o", agent: "agent-1" });
  const { body } = await fake.request();
  assert.equal(body.agent_id, "agent-1");
  assert.deepEqual(body.messages.map(({ otid }) => otid), ["o", "o-1", "mine"]);
  stream.close();
});

test("OTIDs differ, also where there is no crypto", async () => {
  const client = clientOf(new Fake());
  const otids = new Set();
  const { crypto } = globalThis;
  Object.defineProperty(globalThis, "crypto", { value: undefined, configurable: true, writable: true });
  try {
    for (let at = 0; at < 100; at += 1) otids.add(client.send(CONVERSATION, "x").otid);
  } finally {
    globalThis.crypto = crypto;
  }
  for (let at = 0; at < 100; at += 1) otids.add(client.send(CONVERSATION, "x").otid);
  client.close();
  assert.equal(otids.size, 200);
  for (const otid of otids) assert.match(otid, /^[\d-]{20,80}$/);
});

test("a busy conversation is a Conflict with the active run, which can be followed", async () => {
  const fake = new Fake();
  const client = clientOf(fake);
  const stream = client.send(CONVERSATION, "hello");
  const items = seqs(stream);
  (await fake.request()).json(409, { detail: "busy", code: "conversation_busy", run_id: OTHER });
  const error = await items.catch((error) => error);
  assert.ok(error instanceof Conflict);
  await assert.rejects(stream.runId);
  const active = client.follow({ run: error.run_id }).next();
  const request = await fake.request();
  assert.equal(request.path, `/reattach/v1/runs/${OTHER}/stream`);
  client.close();
  await assert.rejects(active);
});

test("a page that is loaded again goes on after the last event that it had processed", async () => {
  const fake = new Fake();
  const storage = new Store();
  const before = clientOf(fake, { storage }).send(CONVERSATION, "hello");
  const first = (await fake.request()).stream({ "x-run-id": RUN });
  first.write(frames(1, 5));
  assert.deepEqual(await seqs(before, 3), [1, 2, 3]);
  const again = clientOf(fake, { storage }).follow({ conversation: CONVERSATION });
  const items = seqs(again);
  const second = (await fake.request()).stream();
  assert.equal(second.path, `/reattach/v1/runs/${RUN}/stream`);
  assert.equal(second.query("starting_after"), "2");
  second.write(frames(3, 5) + done(5));
  assert.deepEqual(await items, [3, 4, 5]);
  before.close();
  // The run has ended, and is what the page shows again unless another one is active.
  const shown = seqs(clientOf(fake, { storage }).follow({ conversation: CONVERSATION }, { snapshot: true }));
  const asked = await fake.request();
  assert.equal(asked.path, `/reattach/v1/conversations/${CONVERSATION}/stream`);
  asked.json(400, { detail: "No active runs" });
  const third = await fake.request();
  assert.equal(third.path, `/reattach/v1/runs/${RUN}/stream`);
  assert.deepEqual([third.query("from"), third.query("starting_after")], ["snapshot", "0"]);
  third.stream().write(`event: snapshot\nid: 5\ndata: ${JSON.stringify({ run_id: RUN, seq: 5, messages: [] })}\n\n${done(5)}`);
  assert.deepEqual(await shown, ["snapshot"]);
});

test("a run that was followed by its id is forgotten at its end", async () => {
  const fake = new Fake();
  const storage = new Store();
  const items = seqs(clientOf(fake, { storage }).follow({ run: RUN }));
  (await fake.request()).stream().write(frame(1) + done(1));
  assert.deepEqual(await items, [1]);
  assert.equal(storage.items.size, 0);
});

test("a stream whose run is known later takes over, and the one before writes no more", async () => {
  const fake = new Fake();
  const storage = new Store();
  const client = clientOf(fake, { storage });
  const before = client.send(CONVERSATION, "hello");
  (await fake.request()).stream({ "x-run-id": RUN }).write(frames(1, 3) + done(3));
  assert.deepEqual(await seqs(before, 3), [1, 2, 3]);
  const after = client.send(CONVERSATION, "more");
  (await fake.request()).stream({ "x-run-id": OTHER });
  await after.runId;
  assert.deepEqual(await seqs(before), []);
  const again = clientOf(fake, { storage }).follow({ conversation: CONVERSATION });
  again.next().catch(() => {});
  assert.equal((await fake.request()).path, `/reattach/v1/runs/${OTHER}/stream`);
  again.close();
  client.close();
});

test("a page that asks for a snapshot gets it of the run that it followed", async () => {
  const fake = new Fake();
  const storage = new Store();
  const before = clientOf(fake, { storage }).send(CONVERSATION, "hello");
  (await fake.request()).stream({ "x-run-id": RUN });
  await before.runId;
  const again = clientOf(fake, { storage }).follow({ conversation: CONVERSATION }, { snapshot: true });
  const first = again.next();
  const request = await fake.request();
  assert.equal(request.path, `/reattach/v1/runs/${RUN}/stream`);
  assert.equal(request.query("from"), "snapshot");
  assert.equal(request.query("starting_after"), "0");
  again.close();
  before.close();
  await assert.rejects(first);
});

test("a message whose run was not known before a reload keeps its OTID", async () => {
  const fake = new Fake();
  const storage = new Store();
  const before = clientOf(fake, { storage }).send(CONVERSATION, "hello");
  await fake.request();
  before.close();
  const follower = clientOf(fake, { storage }).follow({ conversation: CONVERSATION });
  const items = seqs(follower);
  const asked = await fake.request();
  assert.equal(asked.query("otid"), before.otid);
  asked.json(503, {});
  (await fake.request()).fail();
  follower.close();
  await assert.rejects(items);
  const same = clientOf(fake, { storage }).send(CONVERSATION, "hello");
  assert.equal(same.otid, before.otid);
  const other = clientOf(fake, { storage }).send(CONVERSATION, "something else");
  assert.notEqual(other.otid, before.otid);
  same.close();
  other.close();
});

test("a run that is gone is forgotten, so that the next follow asks the conversation", async () => {
  const fake = new Fake();
  const storage = new Store();
  const before = clientOf(fake, { storage }).send(CONVERSATION, "hello");
  (await fake.request()).stream({ "x-run-id": RUN });
  await before.runId;
  before.close();
  const lost = seqs(clientOf(fake, { storage }).follow({ conversation: CONVERSATION }));
  (await fake.request()).json(404, { detail: "gone" });
  await assert.rejects(lost, NotFound);
  const next = clientOf(fake, { storage }).follow({ conversation: CONVERSATION });
  next.next().catch(() => {});
  assert.equal((await fake.request()).path, `/reattach/v1/conversations/${CONVERSATION}/stream`);
  next.close();
});

test("a store that raises errors changes nothing else", async () => {
  const fail = () => {
    throw new Error("QuotaExceededError");
  };
  for (const storage of [{ getItem: fail, setItem: fail, removeItem: fail }, { getItem: () => "{", setItem: fail, removeItem: fail }]) {
    const fake = new Fake();
    const items = seqs(clientOf(fake, { storage }).send(CONVERSATION, "hello"));
    (await fake.request()).stream({ "x-run-id": RUN }).write(frame(1) + done(1));
    assert.deepEqual(await items, [1]);
  }
});

test("without locks and channels, tabs read for themselves", async () => {
  const fake = new Fake();
  const { navigator } = globalThis;
  Object.defineProperty(globalThis, "navigator", { value: {}, configurable: true, writable: true });
  try {
    const items = seqs(clientOf(fake, { share: "tabs" }).follow({ run: RUN }));
    const request = await fake.request();
    assert.equal(request.path, `/reattach/v1/runs/${RUN}/stream`);
    request.stream().write(frame(1) + done(1));
    assert.deepEqual(await items, [1]);
  } finally {
    globalThis.navigator = navigator;
  }
});
