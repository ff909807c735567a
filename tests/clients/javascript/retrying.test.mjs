// When a stream connects again, with which token, and when it gives up.

import assert from "node:assert/strict";
import { mock, test } from "node:test";
import { GaveUp, ReattachError, Unauthorized, connect } from "../../../js/dist/index.js";
import { Fake, RUN, URL_OF_SERVER, done, frame, frames, seqs } from "./fake.mjs";

const clientOf = (fake, options = {}) => connect({ url: URL_OF_SERVER, fetch: fake.fetch, ...options });

/** Let every promise that is settled run on. */
const settled = async () => {
  for (let at = 0; at < 50; at += 1) await new Promise(setImmediate);
};

/** Run a test with a clock of its own, and with random numbers that are as large as they can be. */
function timed(name, body) {
  test(name, async () => {
    mock.timers.enable({ apis: ["setTimeout", "setInterval", "Date"], now: 1_000_000 });
    mock.method(Math, "random", () => 1);
    try {
      await body((ms) => mock.timers.tick(ms));
    } finally {
      mock.timers.reset();
      mock.restoreAll();
    }
  });
}

/** Follow the run, and note its states. */
function follow(client, options = {}) {
  const states = [];
  const stream = client.follow({ run: RUN }, { ...options, onState: (state) => states.push(state) });
  const items = seqs(stream);
  items.catch(() => {});
  return { stream, states, items };
}

timed("the first retry is immediate, then the bound doubles up to the last one", async (tick) => {
  const fake = new Fake();
  const { stream, states, items } = follow(clientOf(fake, { giveUpMs: Infinity }));
  for (let at = 0; at < 9; at += 1) {
    (await fake.request()).fail();
    await settled();
    tick(states.at(-1).ms);
  }
  const waits = states.filter(({ name }) => name === "waiting");
  assert.deepEqual(waits.map(({ ms }) => ms), [0, 250, 500, 1000, 2000, 4000, 8000, 15_000, 15_000]);
  assert.deepEqual(waits.map(({ attempt }) => attempt), [1, 2, 3, 4, 5, 6, 7, 8, 9]);
  stream.close();
});

timed("an event resets the waits, and a 200 that ends at once does not", async (tick) => {
  const fake = new Fake();
  const { stream, states, items } = follow(clientOf(fake));
  const lose = async (text) => {
    const request = (await fake.request()).stream();
    if (text) request.write(text);
    request.end();
    await settled();
    const { ms } = states.at(-1);
    tick(ms);
    return ms;
  };
  assert.deepEqual([await lose(), await lose(), await lose()], [0, 250, 500]);
  assert.deepEqual([await lose(frame(1)), await lose(), await lose(": keepalive\n")], [0, 250, 0]);
  assert.equal(await lose(": anything else\n"), 250);
  stream.close();
});

timed("Retry-After and the retry of a body without events are least waits", async (tick) => {
  const fake = new Fake();
  const { stream, states, items } = follow(clientOf(fake));
  (await fake.request()).json(503, { detail: "draining" }, { "retry-after": "7" });
  await settled();
  assert.equal(states.at(-1).ms, 7000);
  tick(7000);
  const later = (await fake.request()).stream();
  later.write(': {"detail":"draining"}\nretry: 3000\n\n');
  later.end();
  await settled();
  assert.equal(states.at(-1).ms, 3000);
  tick(3000);
  const live = (await fake.request()).stream();
  live.write(`retry: 1000\n${frame(1)}`);
  live.cut();
  await settled();
  assert.equal(states.at(-1).ms, 0);
  stream.close();
});

timed("tryNow ends a wait", async () => {
  const fake = new Fake();
  const { stream, states, items } = follow(clientOf(fake));
  (await fake.request()).json(503, {}, { "retry-after": "60" });
  await settled();
  assert.equal(states.at(-1).name, "waiting");
  stream.tryNow();
  (await fake.request()).stream().write(frame(1) + done(1));
  assert.deepEqual(await items, [1]);
});

/** A window and a document for one test. */
async function inPage(body) {
  const target = new EventTarget();
  globalThis.addEventListener = target.addEventListener.bind(target);
  globalThis.document = { visibilityState: "visible" };
  try {
    await body((name) => target.dispatchEvent(new Event(name)));
  } finally {
    delete globalThis.addEventListener;
    delete globalThis.document;
  }
}

for (const name of ["online", "pageshow", "visibilitychange"]) {
  timed(`${name} ends a wait`, async () => {
    await inPage(async (dispatch) => {
      const fake = new Fake();
      const { items, states } = follow(clientOf(fake));
      (await fake.request()).json(503, {}, { "retry-after": "60" });
      await settled();
      globalThis.document.visibilityState = "hidden";
      dispatch("visibilitychange");
      await settled();
      assert.equal(states.at(-1).name, "waiting");
      globalThis.document.visibilityState = "visible";
      dispatch(name);
      (await fake.request()).stream().write(frame(1) + done(1));
      assert.deepEqual(await items, [1]);
    });
  });
}

timed("it gives up after the visible time without a sign of life, and says what the cause was", async (tick) => {
  await inPage(async () => {
    const fake = new Fake();
    const { stream, states, items } = follow(clientOf(fake, { giveUpMs: 60_000 }));
    globalThis.document.visibilityState = "hidden";
    const fail = async () => {
      (await fake.request()).fail();
      await settled();
      if (states.at(-1).name === "waiting") tick(states.at(-1).ms);
    };
    const started = Date.now();
    for (let at = 0; at < 30; at += 1) await fail();
    assert.ok(Date.now() - started > 5 * 60_000);
    globalThis.document.visibilityState = "visible";
    let attempts = 0;
    while (stream.state.name !== "failed") {
      await fail();
      attempts += 1;
    }
    assert.ok(attempts >= 4 && attempts <= 6, `${attempts}`);
    await assert.rejects(items, (error) => {
      assert.ok(error instanceof GaveUp);
      assert.equal(error.since.getTime(), started);
      assert.equal(error.last, "fetch failed");
      return true;
    });
  });
});

timed("a computer that slept has not waited all that time", async (tick) => {
  const fake = new Fake();
  const { stream, states, items } = follow(clientOf(fake));
  const request = (await fake.request()).stream();
  request.write(frame(1));
  await settled();
  mock.timers.setTime(1_000_000 + 8 * 3_600_000);
  request.cut();
  await settled();
  assert.equal(states.at(-1).name, "waiting");
  stream.close();
});

timed("a connection on which no byte comes for three keepalives is lost", async (tick) => {
  const fake = new Fake();
  const { states, items } = follow(clientOf(fake));
  const silent = await fake.request();
  tick(45_000);
  tick(1000);
  await settled();
  assert.equal(states.at(-1).reason, "nothing came for 45000 ms");
  tick(0);
  const live = (await fake.request()).stream();
  await settled();
  for (let at = 0; at < 10; at += 1) {
    tick(40_000);
    live.write(": keepalive\n");
    await settled();
  }
  assert.equal(states.at(-1).name, "live");
  tick(45_000);
  tick(1000);
  await live.cancelled;
  await settled();
  tick(0);
  (await fake.request()).stream().write(frame(1) + done(1));
  assert.deepEqual(await items, [1]);
  assert.ok(silent.signal.aborted);
});

timed("a consumer that asks for nothing does not lose its connection by that", async (tick) => {
  const fake = new Fake();
  const stream = clientOf(fake).follow({ run: RUN });
  const first = stream.next();
  const request = (await fake.request()).stream();
  request.write(frame(1));
  await first;
  tick(3_600_000);
  await settled();
  assert.equal(request.signal.aborted, false);
  const rest = seqs(stream);
  request.write(frame(2) + done(2));
  assert.deepEqual(await rest, [2]);
  assert.equal(fake.count, 1);
});

timed("after a sleep, bytes that came meanwhile are read before the connection counts as lost", async (tick) => {
  const fake = new Fake();
  const { items } = follow(clientOf(fake));
  const request = (await fake.request()).stream();
  await settled();
  tick(8 * 3_600_000);
  request.write(frames(1, 2) + done(2));
  assert.deepEqual(await items, [1, 2]);
  assert.equal(fake.count, 1);
});

timed("a page that is seen again expects a byte sooner", async (tick) => {
  await inPage(async (dispatch) => {
    const fake = new Fake();
    const { items } = follow(clientOf(fake));
    (await fake.request()).stream();
    await settled();
    dispatch("visibilitychange");
    tick(22_500);
    tick(1000);
    await settled();
    tick(0);
    (await fake.request()).stream().write(frame(1) + done(1));
    assert.deepEqual(await items, [1]);
  });
});

// Tokens.

timed("a refused token is renewed once, and a refused fresh one is final", async () => {
  const fake = new Fake();
  const asked = [];
  const token = async ({ fresh }) => {
    asked.push(fresh);
    return `t${asked.length}`;
  };
  const client = clientOf(fake, { token });
  const { stream, states, items } = follow(client);
  const first = await fake.request();
  assert.equal(first.headers.authorization, "Bearer t1");
  first.json(401, { detail: "expired" });
  const second = await fake.request();
  assert.equal(second.headers.authorization, "Bearer t2");
  second.stream().write(frame(1) + done(1));
  assert.deepEqual(await items, [1]);
  assert.deepEqual(states.map(({ name }) => name), ["connecting", "renewing", "live", "ended"]);
  const refused = follow(client);
  (await fake.request()).json(401, { detail: "expired" });
  (await fake.request()).json(401, { detail: "expired" });
  await assert.rejects(refused.items, Unauthorized);
  assert.deepEqual(asked, [false, true, true]);
  assert.equal(stream.state.name, "ended");
});

timed("a token is renewed at 80 % of its life, on one more connection for each stream", async (tick) => {
  const fake = new Fake();
  let asked = 0;
  const token = () => ({
    token: `t${(asked += 1)}`,
    expires_at: new Date(Date.now() + 100_000).toISOString(),
  });
  const client = clientOf(fake, { token });
  const [one, two] = [follow(client), follow(client)];
  const before = [(await fake.request()).stream(), (await fake.request()).stream()];
  for (const request of before) request.write(frame(1));
  await settled();
  tick(30_000);
  for (const request of before) request.write(": keepalive\n");
  await settled();
  tick(30_000);
  for (const request of before) request.write(": keepalive\n");
  await settled();
  assert.equal(fake.count, 2);
  tick(20_000);
  for (let at = 0; at < 2; at += 1) {
    const request = (await fake.request()).stream();
    assert.equal(request.headers.authorization, "Bearer t2");
    assert.equal(request.query("starting_after"), "1");
    request.write(frame(2) + done(2));
  }
  assert.deepEqual([await one.items, await two.items], [[1, 2], [1, 2]]);
  assert.equal(asked, 2);
  assert.ok(!one.states.some(({ name }) => name === "waiting"));
});

timed("a stream whose token expired after all gets a fresh one when the server ends it", async (tick) => {
  const fake = new Fake();
  let asked = 0;
  const { items } = follow(clientOf(fake, { token: () => `t${(asked += 1)}` }));
  const first = (await fake.request()).stream();
  first.write(`${frame(1)}event: expiring\ndata: {"expires_at":"x"}\n\nevent: expired\ndata: {}\n\n`);
  first.end();
  await settled();
  tick(0);
  (await fake.request()).answer(new Response(null, { status: 204 }));
  const last = await fake.request();
  assert.equal(last.headers.authorization, "Bearer t2");
  last.stream().write(frame(2) + done(2));
  assert.deepEqual(await items, [1, 2]);
});

timed("a token function that fails or never returns is asked again", async (tick) => {
  const fake = new Fake();
  const answers = [() => new Promise(() => {}), () => Promise.reject(new Error("offline")), () => "good"];
  const { states, items } = follow(clientOf(fake, { token: () => answers.shift()() }));
  await settled();
  tick(10_000);
  await settled();
  assert.match(states.at(-1).reason, /token function failed: no answer within 10000 ms/);
  tick(0);
  await settled();
  assert.match(states.at(-1).reason, /token function failed: Error: offline/);
  tick(states.at(-1).ms);
  (await fake.request()).stream().write(frame(1) + done(1));
  assert.deepEqual(await items, [1]);
});

timed("a ReattachError of the token function ends the stream", async () => {
  const fake = new Fake();
  const error = new ReattachError("signed out");
  const { items } = follow(clientOf(fake, { token: () => Promise.reject(error) }));
  await assert.rejects(items, (raised) => raised === error);
  assert.equal(fake.count, 0);
});

timed("a clock that is ahead renews no token before the server says that it is due", async (tick) => {
  const fake = new Fake();
  let asked = 0;
  const token = () => ({ token: `t${(asked += 1)}`, expires_at: new Date(Date.now() - 1000).toISOString() });
  const { items } = follow(clientOf(fake, { token }));
  const first = (await fake.request()).stream();
  for (let at = 0; at < 10; at += 1) {
    first.write(": keepalive\n");
    await settled();
    tick(10_000);
    await settled();
  }
  assert.deepEqual([asked, fake.count], [1, 1]);
  first.write(frame(1) + done(1));
  assert.deepEqual(await items, [1]);
});

// Ends from outside.

timed("an abort ends the iteration with its reason, also while it waits for a token or a retry", async () => {
  const fake = new Fake();
  const reason = new Error("enough");
  const begin = (client) => {
    const controller = new AbortController();
    return { ...follow(client, { signal: controller.signal }), controller };
  };
  const waitsForToken = begin(clientOf(fake, { token: () => new Promise(() => {}) }));
  await settled();
  const connecting = begin(clientOf(fake));
  await fake.request();
  const live = begin(clientOf(fake));
  const request = (await fake.request()).stream();
  request.write(frame(1));
  const waiting = begin(clientOf(fake));
  (await fake.request()).json(503, {}, { "retry-after": "60" });
  await settled();
  for (const one of [waitsForToken, connecting, live, waiting]) {
    one.controller.abort(reason);
    await assert.rejects(one.items, (error) => error === reason);
    assert.equal(one.stream.state.name, "closed");
  }
  await request.cancelled;
  assert.equal(fake.count, 3);
});

timed("close of the client ends all its streams, and nothing is asked any more", async () => {
  const fake = new Fake();
  const client = clientOf(fake);
  const { items } = follow(client);
  (await fake.request()).stream();
  await settled();
  client.close();
  client.close();
  await assert.rejects(items, { name: "AbortError" });
  await assert.rejects(client.follow({ run: RUN }).next(), { name: "AbortError" });
  assert.equal(fake.count, 1);
});
