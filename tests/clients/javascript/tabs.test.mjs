// One connection for all tabs. Each client here is a tab; the channels are those of Node, and the locks
// follow the Web Locks API.

import assert from "node:assert/strict";
import { afterEach, beforeEach, test } from "node:test";
import { NotFound, connect } from "../../../js/dist/index.js";
import { Fake, OTHER, RUN, event, seqs } from "./fake.mjs";

class Locks {
  #held = new Map();
  #queued = [];

  request(name, { steal, signal }, use) {
    return new Promise((resolve, reject) => {
      const aborted = () => reject(new DOMException("robbed or withdrawn", "AbortError"));
      const request = { name, use, resolve, reject, aborted };
      signal?.addEventListener("abort", () => {
        if (!this.#queued.includes(request)) return;
        this.#queued.splice(this.#queued.indexOf(request), 1);
        aborted();
      });
      if (steal) {
        this.#held.get(name)?.aborted();
        this.#grant(request);
      } else {
        this.#queued.push(request);
        this.#next(name);
      }
    });
  }

  #next(name) {
    const next = this.#queued.find((request) => request.name === name);
    if (this.#held.has(name) || !next) return;
    this.#queued.splice(this.#queued.indexOf(next), 1);
    this.#grant(next);
  }

  #grant(request) {
    const { name } = request;
    this.#held.set(name, request);
    queueMicrotask(async () => {
      await Promise.resolve(request.use()).then(request.resolve, request.reject);
      if (this.#held.get(name) !== request) return;
      this.#held.delete(name);
      this.#next(name);
    });
  }
}

let clients;
let number = 0;
let url;
let navigator;

beforeEach(() => {
  clients = [];
  url = `https://example.org/${(number += 1)}`;
  navigator = globalThis.navigator;
  Object.defineProperty(globalThis, "navigator", {
    value: { locks: new Locks() },
    configurable: true,
    writable: true,
  });
});

afterEach(() => {
  for (const client of clients) client.close();
  globalThis.navigator = navigator;
});

/** A tab with a server of its own behind `fetch`, so that the test sees which tab asks. */
function tab(options = {}) {
  const fake = new Fake();
  const client = connect({ url, fetch: fake.fetch, share: "tabs", backoff: { firstMs: 0 }, ...options });
  clients.push(client);
  const follow = (after = 0) => {
    const stream = client.follow({ run: RUN }, { after });
    const items = seqs(stream);
    items.catch(() => {});
    return { stream, items };
  };
  return { fake, client, follow };
}

const frame = (seq, run = RUN) => `id: ${run}:${seq}\ndata: ${JSON.stringify(event(seq, { run_id: run }))}\n\n`;
const frames = (first, last) => {
  let text = "";
  for (let seq = first; seq <= last; seq += 1) text += frame(seq);
  return text;
};
const done = (seq, run = RUN) => `event: done\nid: ${run}:${seq}-done\ndata: [DONE]\n\n`;

/** Wait until a condition holds. */
async function until(holds) {
  while (!holds()) await new Promise((resolve) => setTimeout(resolve, 1));
}

/** The next request of a tab for the runs of all tabs; it may ask anew while tabs come and go. */
async function asked(fake, cursors) {
  for (;;) {
    const request = (await fake.request()).stream();
    assert.equal(request.path.split("/").slice(2).join("/"), "v1/streams");
    const runs = Object.fromEntries(request.body.runs.map(({ run_id, starting_after }) => [run_id, starting_after]));
    if (JSON.stringify(runs) === JSON.stringify(cursors)) return request;
  }
}

test("three tabs share one connection, and the next one leads when the first is closed", async () => {
  const [one, two, three] = [tab(), tab(), tab()];
  const first = one.follow();
  const request = await asked(one.fake, { [RUN]: 0 });
  const others = [two.follow(), three.follow()];
  await until(() => others.every(({ stream }) => stream.state.name === "live"));
  request.write(frames(1, 3));
  await until(() => others.every(({ stream }) => stream.seq === 3) && first.stream.seq === 3);
  assert.deepEqual([two.fake.count, three.fake.count], [0, 0]);
  one.client.close();
  await assert.rejects(first.items, { name: "AbortError" });
  await request.cancelled;
  const next = await asked(two.fake, { [RUN]: 3 });
  next.write(frames(4, 5) + done(5));
  for (const { items } of others) assert.deepEqual(await items, [1, 2, 3, 4, 5]);
  assert.equal(three.fake.count, 0);
});

test("for a tab that comes late the leader goes back, and the others drop what they have", async () => {
  const [one, two] = [tab(), tab()];
  const early = one.follow();
  (await asked(one.fake, { [RUN]: 0 })).write(frames(1, 4));
  await until(() => early.stream.seq === 4);
  const late = two.follow(2);
  const again = await asked(one.fake, { [RUN]: 2 });
  again.write(frames(3, 5) + done(5));
  assert.deepEqual(await early.items, [1, 2, 3, 4, 5]);
  assert.deepEqual(await late.items, [3, 4, 5]);
  assert.equal(two.fake.count, 0);
});

test("several runs of several tabs come over one connection", async () => {
  const [one, two] = [tab(), tab()];
  const first = one.follow();
  await asked(one.fake, { [RUN]: 0 });
  const second = seqs(two.client.follow({ run: OTHER }, { after: 7 }));
  const request = await asked(one.fake, { [RUN]: 0, [OTHER]: 7 });
  request.write(frame(1) + frame(8, OTHER) + done(8, OTHER) + done(1));
  assert.deepEqual(await first.items, [1]);
  assert.deepEqual(await second, [8]);
});

test("a send moves to the shared connection as soon as its run is known", async () => {
  const { fake, client } = tab();
  const stream = client.send("conv-1", "hello");
  const items = seqs(stream);
  const post = (await fake.request()).stream({ "x-run-id": RUN });
  assert.equal(post.method, "POST");
  await post.cancelled;
  (await asked(fake, { [RUN]: 0 })).write(frames(1, 2) + done(2));
  assert.deepEqual(await items, [1, 2]);
});

test("a visible tab takes the lead from a tab that is frozen and does not answer", async () => {
  const frozen = globalThis.navigator.locks.request(`reattach ${url}`, {}, () => new Promise(() => {}));
  const { fake, follow } = tab();
  const { items } = follow();
  await assert.rejects(frozen, { name: "AbortError" });
  (await asked(fake, { [RUN]: 0 })).write(frames(1, 2) + done(2));
  assert.deepEqual(await items, [1, 2]);
});

test("a leader that is robbed follows the new one", async () => {
  const [one, two] = [tab(), tab()];
  const first = one.follow();
  const old = await asked(one.fake, { [RUN]: 0 });
  old.write(frame(1));
  await until(() => first.stream.seq === 1);
  let release;
  const robber = globalThis.navigator.locks.request(
    `reattach ${url}`,
    { steal: true },
    () => new Promise((resolve) => (release = resolve)),
  );
  await old.cancelled;
  release();
  await robber;
  const second = two.follow(1);
  (await asked(one.fake, { [RUN]: 1 })).write(frame(2) + done(2));
  assert.deepEqual(await first.items, [1, 2]);
  assert.deepEqual(await second.items, [2]);
});

test("where the server does not offer it, each tab has its own connection", async () => {
  const [one, two] = [tab(), tab()];
  const streams = [one.follow(), two.follow()];
  (await one.fake.request()).json(404, { detail: "Not Found" });
  for (const { fake } of [one, two]) {
    let request = await fake.request();
    if (request.path.endsWith("/streams")) {
      request.json(404, { detail: "Not Found" });
      request = await fake.request();
    }
    assert.ok(request.path.endsWith(`/v1/runs/${RUN}/stream`));
    request.stream().write(frames(1, 2) + done(2));
  }
  for (const { items } of streams) assert.deepEqual(await items, [1, 2]);
});

test("a run that the leader may not read is asked for by its own tab, which gets its own answer", async () => {
  const [one, two] = [tab(), tab()];
  const first = one.follow();
  await asked(one.fake, { [RUN]: 0 });
  const refused = seqs(two.client.follow({ run: OTHER }));
  const request = await asked(one.fake, { [RUN]: 0, [OTHER]: 0 });
  const error = { run_id: OTHER, status: 404, code: "not_found", detail: "no" };
  request.write(`event: run_error\ndata: ${JSON.stringify(error)}\n\n`);
  (await two.fake.request()).json(404, { detail: "Run not found" });
  await assert.rejects(refused, NotFound);
  request.write(frame(1) + done(1));
  assert.deepEqual(await first.items, [1]);
});

test("runs of tabs that are gone are dropped after two keepalives, and then the lead", async () => {
  const [one, two] = [tab({ keepaliveMs: 30 }), tab({ keepaliveMs: 30 })];
  const first = one.follow();
  await asked(one.fake, { [RUN]: 0 });
  const gone = seqs(two.client.follow({ run: OTHER }));
  await asked(one.fake, { [RUN]: 0, [OTHER]: 0 });
  two.client.close();
  await assert.rejects(gone);
  const request = await asked(one.fake, { [RUN]: 0 });
  first.stream.close();
  await assert.rejects(first.items);
  await request.cancelled;
  await globalThis.navigator.locks.request(`reattach ${url}`, {}, () => {});
});
