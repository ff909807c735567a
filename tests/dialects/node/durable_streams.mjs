// Reads logs with the client of Durable Streams and prints the outcomes as JSON.
// Arguments: the URL of the server.
import { stream } from "@durable-streams/client";

const [server] = process.argv.slice(2);
// The pause is for the clients to connect, also on a busy machine.
const INPUT = "[chunks=12][wait=1.5][rate=40]";

async function post(path, body) {
  const response = await fetch(`${server}${path}`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
  });
  if (!response.ok) throw new Error(`${path}: ${response.status} ${await response.text()}`);
  return response;
}

const agent = (await (await post("/v1/agents/", {})).json()).id;

/** Begin a run in a conversation of its own, and return the URL of its log. */
async function begin(input = INPUT) {
  const made = await (await post(`/v1/conversations/?agent_id=${agent}`, {})).json();
  const body = { input, background: true, stream_tokens: true };
  const sent = await post(`/v1/conversations/${made.id}/messages`, body);
  await sent.body.cancel();
  return `${server}/v1/runs/${sent.headers.get("x-run-id")}/log`;
}

const whole = async (url) => {
  const response = await fetch(url);
  if (response.headers.get("stream-closed") !== "true") throw new Error("the run has not ended");
  return response.json();
};

/** A fetch whose first event stream ends or breaks after some frames. */
function cutting(frames, breaks) {
  const found = { streams: 0, wasCut: false };
  found.fetch = async (url, init) => {
    const response = await fetch(url, init);
    if (!String(url).includes("live=sse")) return response;
    found.streams += 1;
    if (found.streams > 1) return response;
    let left = frames;
    const reader = response.body.getReader();
    const decoder = new TextDecoder();
    const encoder = new TextEncoder();
    let rest = "";
    const body = new ReadableStream({
      async pull(controller) {
        let end = rest.indexOf("\n\n");
        while (end < 0) {
          const { done, value } = await reader.read();
          if (done) return controller.close();
          rest += decoder.decode(value, { stream: true });
          end = rest.indexOf("\n\n");
        }
        if (left > 0) {
          left -= 1;
          controller.enqueue(encoder.encode(rest.slice(0, end + 2)));
          rest = rest.slice(end + 2);
          return;
        }
        found.wasCut = true;
        await reader.cancel();
        if (breaks) controller.error(new TypeError("terminated"));
        else controller.close();
      },
      cancel: () => reader.cancel(),
    });
    return new Response(body, response);
  };
  return found;
}

const backoffOptions = { initialDelay: 1, maxDelay: 10, multiplier: 1 };
const sseResilience = { backoffBaseDelay: 1, backoffMaxDelay: 5, maxShortConnections: 100 };

/** Read to the end of the run, and open again after the last event whenever the client gives up. */
async function readAll(url, { live = "sse", fetch: through = fetch } = {}) {
  const events = [];
  let offset = "-1";
  let opened = 0;
  for (; opened < 5; opened += 1) {
    const log = await stream({ url, offset, live, fetch: through, backoffOptions, sseResilience });
    log.closed.catch(() => {}); // The loop raises the same.
    try {
      for await (const event of log.jsonStream()) events.push(event);
      return { events, opened: opened + 1, offset: log.offset };
    } catch {
      offset = String(events.length).padStart(16, "0"); // `log.offset` may be ahead of the events.
    }
  }
  throw new Error("the client gave up too often");
}

async function differs(url, read) {
  const events = await whole(url);
  const same = JSON.stringify(read.events) === JSON.stringify(events);
  return !same || Number(read.offset) !== events.length;
}

/** Cut the event stream of a live run after each of its frames. */
async function cutAtEveryFrame(breaks) {
  const cutAfter = async (frames) => {
    const url = await begin();
    const network = cutting(frames, breaks);
    const read = await readAll(url, { fetch: network.fetch });
    const { streams, wasCut } = network;
    return { frames, differs: await differs(url, read), opened: read.opened, streams, wasCut };
  };
  // The server ends a body after a control event only, and those are every second frame.
  const counts = Array.from({ length: 24 }, (_, index) => index + 1);
  const wanted = breaks ? counts : counts.filter((count) => count % 2 === 1);
  const outcomes = await Promise.all(wanted.map(cutAfter));
  const cut = outcomes.filter((one) => one.wasCut);
  return {
    cuts: cut.length,
    differing: outcomes.filter((one) => one.differs),
    opened: [...new Set(cut.map((one) => one.opened))],
    reconnected: cut.every((one) => breaks || one.streams > 1),
  };
}

/** Long-poll while every second request is lost before its answer. */
async function longPoll() {
  const url = await begin();
  let requests = 0;
  const lossy = async (address, init) => {
    requests += 1;
    const response = await fetch(address, init);
    if (requests % 2 === 0) return response;
    await response.body?.cancel();
    throw new TypeError("fetch failed");
  };
  const read = await readAll(url, { live: "long-poll", fetch: lossy });
  return { differs: await differs(url, read), opened: read.opened, requests };
}

/** Read an ended run in all ways, and from each of its offsets. */
async function ended() {
  const url = await begin("[chunks=3]");
  await readAll(url);
  const events = await whole(url);
  const outcomes = {};
  for (const live of [true, "sse", "long-poll"]) {
    outcomes[live] = !(await differs(url, await readAll(url, { live })));
  }
  const rests = [];
  for (let seq = 0; seq <= events.length; seq += 1) {
    const log = await stream({ url, offset: String(seq).padStart(16, "0"), live: false });
    rests.push(JSON.stringify(await log.json()) === JSON.stringify(events.slice(seq)));
  }
  return { ...outcomes, rests: rests.every(Boolean), closed: events.at(-1).message_type };
}

async function refused(path) {
  try {
    await stream({ url: `${server}${path}`, live: false });
  } catch (error) {
    return error.status;
  }
  return 200;
}

const unknown = "/v1/runs/run-123e4567-e89b-42d3-8456-426614174000/log";
const [broken, endedEarly, polled, atEnd, missing] = await Promise.all([
  cutAtEveryFrame(true),
  cutAtEveryFrame(false),
  longPoll(),
  ended(),
  refused(unknown),
]);
process.stdout.write(JSON.stringify({ broken, endedEarly, polled, atEnd, missing }));
