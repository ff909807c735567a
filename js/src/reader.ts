import { GaveUp, Lost, ReattachError, Unauthorized, refusal } from "./errors.js";
import { isHidden, link, onWake } from "./platform.js";
import { parser, type Frame } from "./sse.js";
import type { State, TokenSource } from "./types.js";

/** What the streams of a client share. */
export interface Core {
  url: string;
  fetch: typeof fetch;
  source: TokenSource | undefined;
  /** Return the token, or a fresh one. Concurrent calls share one answer. Raises Lost. */
  token: (fresh: boolean, signal: AbortSignal) => Promise<string | undefined>;
  /** When to renew the token, in milliseconds since 1970; NaN: never. */
  renewAt: number;
  firstMs: number;
  lastMs: number;
  keepaliveMs: number;
  giveUpMs: number;
  /** Whether the server itself has answered before. */
  wasAttached?: boolean;
}

/** A path and, for a POST, its body. */
export type Request = [path: string, body?: unknown, init?: RequestInit | undefined];

/** Something to read over as many connections as it takes. */
export interface Plan<T> {
  /** Everything was taken; the connection is closed, whatever else it sends. */
  ended: boolean;
  status?: string | undefined;
  /** The request of the next connection, or nothing while there is nothing to ask for. */
  request(): Request | undefined;
  /** Called with the run that the response names. */
  know(run: string | null): void;
  /** Forget the position, which leads nowhere. */
  forget?(): void;
  /** Go on with another run after a refusal, if there is one. */
  fallBack?(): boolean;
  /** Return the items that a frame with data gives. Raises Lost if it cannot be the next one. */
  take(frame: Frame, data: string): T[];
}

/** One reading: its end from outside, and its state. */
export class Life {
  readonly controller = new AbortController();
  readonly signal = this.controller.signal;
  state: State = { name: "idle" };
  /** Ends a wait, or asks a connection for a sign of life. */
  wake = (): void => {};
  /** Ends the connection, for another one at once. */
  interrupt = (): void => {};

  constructor(readonly onState?: (state: State) => void) {}

  set(state: State): void {
    this.state = state;
    this.onState?.(state);
  }
}

type Items<T> = AsyncGenerator<T, void, undefined>;

/** How long a page takes at most to read what came while it slept, and to answer another page. */
export const GRACE_MS = 1000;

/** Yield the items of a plan, and keep the state of the reading. */
export async function* read<T>(
  plan: Plan<T>,
  life: Life,
  signal: AbortSignal | undefined,
  items: Items<T>,
): Items<T> {
  let last: State = { name: "closed" };
  const wake = (): void => life.wake();
  link(signal, life.controller);
  onWake(wake, life.signal);
  life.signal.addEventListener("abort", wake);
  try {
    life.signal.throwIfAborted();
    yield* items;
    last = { name: "ended", status: plan.status };
  } catch (error) {
    if (life.signal.aborted) throw life.signal.reason;
    last = { name: "failed", error: error as ReattachError };
    if ((error as ReattachError).status > 401) plan.forget?.();
    throw error;
  } finally {
    life.set(last);
    life.controller.abort();
  }
}

/** Yield the items of a plan until it is over, over as many connections as it takes. */
export async function* attach<T>(
  core: Core,
  plan: Plan<T>,
  life: Life,
  isOver: () => boolean = () => plan.ended,
): Items<T> {
  const { keepaliveMs } = core;
  let failures = 0;
  let spentMs = 0;
  let since = Date.now();
  let mark = since;
  while (!isOver()) {
    const stop = new AbortController();
    const { signal } = stop;
    let timer: ReturnType<typeof setTimeout> | undefined;
    let renewal: ReturnType<typeof setTimeout> | undefined;
    let retryMs = 0;
    const lose = (message?: string): void => stop.abort(new Lost(message));
    /** Expect a byte. After a sleep, timers run before the bytes that came meanwhile are read. */
    const expect = (ms: number): void => {
      clearTimeout(timer);
      timer = setTimeout(() => (timer = setTimeout(lose, GRACE_MS, `nothing came for ${ms} ms`)), ms);
    };
    link(life.signal, stop);
    life.interrupt = lose;
    try {
      const request = plan.request();
      if (!request) {
        life.set({ name: "idle" });
        await new Promise((resolve) => signal.addEventListener("abort", resolve));
        signal.throwIfAborted();
      }
      life.set({ name: "connecting" });
      expect(keepaliveMs * 3);
      const response = await ask(core, request!, signal, () => life.set({ name: "renewing" }));
      const { status, ok, headers, body } = response;
      if (!ok) {
        const error = await refusal(response, core.wasAttached);
        throw !(error instanceof Lost) && plan.fallBack?.() ? new Lost() : error;
      }
      if (status === 204) {
        // A token that has expired is answered in the same way, so that an EventSource stops.
        if (core.source) throw new Unauthorized("The token expired.");
        plan.ended = true;
        return;
      }
      const type = headers.get("content-type");
      if (!/^text.event-stream/.test(type!)) throw new Lost(`the answer was ${type}`);
      core.wasAttached = true;
      plan.know(headers.get("x-run-id"));
      if (isOver()) return;
      life.set({ name: "live" });
      life.wake = () => timer && expect(keepaliveMs * 1.5);
      const renewMs = core.renewAt - Date.now();
      if (renewMs < 2 ** 31) {
        // If that fails, the token is renewed when the server refuses it.
        renewal = setTimeout(() => core.token(true, signal).then(() => lose()).catch(() => {}), renewMs);
      }
      const reader = body!.getReader();
      signal.addEventListener("abort", () => reader.cancel().catch(() => {}));
      const decoder = new TextDecoder();
      const parse = parser();
      for (;;) {
        // It reads only when the consumer asks for more, and expects bytes only then.
        expect(keepaliveMs * 3);
        const { done, value } = await reader.read();
        clearTimeout(timer);
        timer = undefined;
        signal.throwIfAborted();
        // A server that is about to stop ends the body at once, and says when to come back.
        if (done) throw new Lost(plan.request() && "the stream broke", retryMs);
        for (const frame of parse(decoder.decode(value, { stream: true }))) {
          const { event, data, retry } = frame;
          if (retry) retryMs = Number(retry);
          const isPing = event === "ping";
          const items = isPing || data === undefined ? [] : plan.take(frame, data);
          if (isPing || items.length) {
            failures = spentMs = retryMs = 0;
            since = mark = Date.now();
          }
          yield* items;
          if (isOver()) return;
        }
      }
    } catch (raised) {
      const error = (signal.aborted ? signal.reason : raised) as Lost;
      if (life.signal.aborted || (error instanceof ReattachError && !(error instanceof Lost))) throw error;
      const { ms: leastMs = 0, message: reason } = error;
      if (!reason) continue;
      const bound = Math.min(core.firstMs * 2 ** (failures - 1), core.lastMs);
      const ms = Math.max(leastMs, failures++ ? Math.random() * bound : 0);
      // More time than that: the computer slept.
      if (!isHidden()) spentMs += Math.min(Date.now() - mark, keepaliveMs * 3 + core.lastMs);
      mark = Date.now();
      if (spentMs + ms > core.giveUpMs) throw new GaveUp(new Date(since), reason);
      life.set({ name: "waiting", attempt: failures, ms, reason });
      clearTimeout(timer);
      await new Promise<void>((resolve) => {
        timer = setTimeout(resolve, ms);
        life.wake = resolve;
      });
    } finally {
      clearTimeout(timer);
      timer = undefined;
      clearTimeout(renewal);
      stop.abort();
    }
  }
}

/**
 * Send a request with the token, once more with a fresh one if it was refused or has expired.
 *
 * Raises TypeError, or Lost, if there is no answer.
 */
export async function ask(
  { url, source, token, fetch }: Core,
  [path, body, init]: Request,
  signal: AbortSignal,
  onRenewal = (): void => {},
): Promise<Response> {
  const headers: Record<string, string> = {};
  if (body) {
    headers["content-type"] = "application/json";
    init = { ...init, method: "POST", body: JSON.stringify(body) };
  }
  for (let fresh = false; ; fresh = true) {
    signal.throwIfAborted();
    const bearer = await token(fresh, signal);
    if (bearer) headers.authorization = `Bearer ${bearer}`;
    const response = await fetch(url + path, { ...init, headers, signal, cache: "no-store" });
    const { status } = response;
    if (fresh || typeof source !== "function" || (status !== 401 && status !== 204)) return response;
    onRenewal();
  }
}
