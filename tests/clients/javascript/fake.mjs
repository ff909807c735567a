// A scripted server behind `fetch`: the test takes each request, and answers it as it likes.

/** A request that waits for its answer. */
class Request {
  constructor(url, init) {
    this.url = new URL(url);
    this.method = init.method ?? "GET";
    this.headers = init.headers;
    this.body = init.body === undefined ? undefined : JSON.parse(init.body);
    this.signal = init.signal;
    this.cancelled = new Promise((resolve) => (this.onCancel = resolve));
    this.pulls = 0;
    this.response = new Promise((resolve, reject) => {
      this.answer = resolve;
      this.fail = () => reject(new TypeError("fetch failed"));
      init.signal.addEventListener("abort", () => reject(init.signal.reason));
    });
  }

  get path() {
    return this.url.pathname;
  }

  query(name) {
    return this.url.searchParams.get(name);
  }

  json(status, body, headers = {}) {
    this.answer(new Response(JSON.stringify(body), { status, headers: { "content-type": "application/json", ...headers } }));
  }

  /** Answer with a stream; write, end or cut it later. */
  stream(headers = {}, type = "text/event-stream; charset=utf-8") {
    let controller;
    const body = new ReadableStream(
      {
        start: (given) => (controller = given),
        pull: () => {
          this.pulls += 1;
          if (this.isCut) this.cut();
        },
        cancel: () => this.onCancel(),
      },
      { highWaterMark: 0 },
    );
    this.signal.addEventListener("abort", () => {
      this.onCancel();
      try {
        controller.error(this.signal.reason);
      } catch {}
    });
    this.answer(new Response(body, { headers: { "content-type": type, ...headers } }));
    this.bytes = (bytes) => controller.enqueue(bytes);
    this.write = (text) => controller.enqueue(new TextEncoder().encode(text));
    this.end = () => controller.close();
    // An error would take back what was written and is not read yet.
    this.cut = () => {
      this.isCut = true;
      if (controller.desiredSize === 0) controller.error(new TypeError("terminated"));
    };
    return this;
  }
}

export class Fake {
  #requests = [];
  #waiting = [];
  count = 0;

  fetch = (url, init) => {
    if (init.signal.aborted) return Promise.reject(init.signal.reason);
    const request = new Request(url, init);
    this.count += 1;
    const waiting = this.#waiting.shift();
    if (waiting) waiting(request);
    else this.#requests.push(request);
    return request.response;
  };

  /** The next request, which may have been made already. */
  request() {
    const request = this.#requests.shift();
    return request ? Promise.resolve(request) : new Promise((resolve) => this.#waiting.push(resolve));
  }
}

export const RUN = "run-11111111-1111-4111-8111-111111111111";
export const OTHER = "run-22222222-2222-4222-8222-222222222222";
export const URL_OF_SERVER = "https://example.org/reattach";

export const event = (seq, more = {}) => ({
  message_type: "assistant_message",
  content: `t${seq} `,
  run_id: RUN,
  seq_id: seq,
  ...more,
});

/** The frame of an event, as the GET routes send it. */
export const frame = (seq, more = {}) => `id: ${seq}\ndata: ${JSON.stringify(event(seq, more))}\n\n`;
export const frames = (first, last) =>
  Array.from({ length: last - first + 1 }, (_, at) => frame(first + at)).join("");
export const done = (seq) => `event: done\nid: ${seq}-done\ndata: [DONE]\n\n`;

/** The seqs of the next items of a stream; all until its end without a number. */
export async function seqs(stream, count = Infinity) {
  const found = [];
  while (found.length < count) {
    const { done: ended, value } = await stream.next();
    if (ended) break;
    found.push(value.seq_id ?? value.message_type);
  }
  return found;
}
