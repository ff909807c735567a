// resumable-stream, as its README uses it, behind Node's own HTTP server: its producer yields by
// the schedule of the benchmark, whose interface this serves (see __init__.py).
import { createServer } from "node:http";
import { existsSync, readFileSync } from "node:fs";
import { createClient } from "redis";
import { createResumableStreamContext } from "resumable-stream";

const frames = JSON.parse(process.env.BENCH_FRAMES);
const publisher = createClient({ url: process.env.BENCH_REDIS_URL });
const subscriber = publisher.duplicate();
await publisher.connect();
await subscriber.connect();
const streams = createResumableStreamContext({ waitUntil: null, publisher, subscriber });
const paces = new Map();

const nowNs = () => process.hrtime.bigint();
const sleep = (ms) => new Promise((wake) => setTimeout(wake, ms));

async function opened(gate) {
  while (!existsSync(gate)) await sleep(20);
  return BigInt(readFileSync(gate, "utf8"));
}

function produced({ events, rate, phase_ns, gate }) {
  return new ReadableStream({
    async start(controller) {
      const begin = (await opened(gate)) + BigInt(phase_ns);
      for (let index = 0; index < events; index++) {
        const due = begin + BigInt(Math.trunc((index * 1e9) / rate));
        const left = Number(due - nowNs()) / 1e6;
        if (left > 0) await sleep(Math.ceil(left)); // A timer may be early by a part of one.
        const text = frames.text.replace("SEQ", index + 1);
        controller.enqueue(text.replace("TEXT", `${due} ${nowNs()} `));
      }
      const [stop, usage] = [events + 1, events + 2];
      controller.enqueue(frames.terminal.replace("SEQ", stop).replace("SEQ", usage));
      controller.enqueue("data: [DONE]\n\n");
      controller.close();
    },
  });
}

const server = createServer(async (request, response) => {
  const url = new URL(request.url, "http://localhost");
  const [, work, run] = url.pathname.split("/");
  if (work === "paced") {
    const asked = Object.fromEntries(url.searchParams);
    paces.set(run, { ...asked, events: Number(asked.events), rate: Number(asked.rate) });
    response.end();
    return;
  }
  const stream = await streams.resumableStream(run, () => produced(paces.get(run)));
  if (!stream) {
    response.writeHead(422).end();
    return;
  }
  response.writeHead(200, { "content-type": "text/event-stream" });
  response.flushHeaders();
  for await (const chunk of stream) response.write(chunk);
  response.end();
});
server.listen({ port: 0, host: "127.0.0.1", backlog: 4096 }, () =>
  console.log(`http://127.0.0.1:${server.address().port}`),
);
