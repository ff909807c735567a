import { Lost, ReattachError, refusal } from "./errors.js";
import { changed, manyPlan } from "./many.js";
import { link, randomId } from "./platform.js";
import { Life, ask, attach, read, type Core } from "./reader.js";
import { encoded, runPlan, type Kept, type Position, type RunPlan } from "./run.js";
import { streamOf, type Many, type RunStream } from "./stream.js";
import { sharing } from "./tabs.js";
import type {
  FollowOptions,
  Input,
  Options,
  RunError,
  RunEvent,
  SendOptions,
  Snapshot,
  SnapshotEvent,
  State,
  StreamOptions,
  Target,
  TokenSource,
} from "./types.js";

type Item = RunEvent | SnapshotEvent;

/** The part of its life after which a token is renewed. */
const RENEW_AT = 0.8;
/** The least time from a new token to the next one. */
const LEAST_LIFE_MS = 1000;

/** Sends messages, and follows runs through lost connections. */
export interface Client {
  /**
   * Send a message and follow its run. It starts exactly one run, however often the connection breaks.
   *
   * The request is made at once. With a `storage`, a message that was sent before a reload, and whose
   * run is not known, keeps its OTID when the same input is sent again.
   */
  send(
    conversation: string,
    input: Input,
    options?: SendOptions,
  ): RunStream<RunEvent> & { readonly otid: string };
  /**
   * Follow a run from a cursor, or from a snapshot, to its end.
   *
   * Without `after` and `snapshot`, and with a `storage`, it goes on after the last event that the page
   * has processed.
   */
  follow(target: Target, options: FollowOptions & { snapshot: true }): RunStream<Item>;
  follow(target: Target, options?: FollowOptions): RunStream<RunEvent>;
  /**
   * Follow any number of runs over one connection.
   *
   * The iteration goes on until `close()`, also while there is no run to follow. A run leaves by itself
   * when it ends, or with a `run_error`.
   */
  many(options?: StreamOptions): Many<RunEvent | RunError>;
  /** Return the messages of a run so far. Raises ReattachError, or TypeError without a network. */
  snapshot(target: Named): Promise<Snapshot>;
  /**
   * Cancel a run, or the active run of a conversation. Return the state of each cancelled run.
   *
   * A request that has begun goes on when the page is closed.
   */
  cancel(target: Named): Promise<Record<string, string>>;
  /** Disconnect all streams; their iterations end with an AbortError. The runs go on. Idempotent. */
  close(): void;
}

/** Make a client of a Reattach server. It opens no connection by itself. */
export function connect({
  url,
  token: source,
  fetch = globalThis.fetch,
  storage,
  share,
  backoff,
  keepaliveMs = 15_000,
  giveUpMs = 600_000,
  tokenMs = 10_000,
}: Options): Client {
  if (!/^https?:/i.test(url)) throw new ReattachError(`The URL is not http: ${url}`);
  const closing = new AbortController();
  const core: Core = {
    url: url.replace(/\/*(\/v1)?\/*$/, ""),
    fetch,
    source,
    token: tokens(source, tokenMs, (at) => (core.renewAt = at)),
    renewAt: NaN,
    firstMs: 250,
    lastMs: 15_000,
    ...backoff,
    keepaliveMs,
    giveUpMs,
  };
  const shared = share && sharing(core, closing.signal);
  const attached = shared || ((plan: RunPlan, life: Life) => attach<Item>(core, plan, life));

  /** Return the position in a conversation; or in a run, which is forgotten at its end. */
  const positionIn = (name: string, agent = "", isRun?: unknown): Position => {
    const key = `reattach ${core.url} ${name} ${agent}`;
    return (change) => {
      let kept: Kept = {};
      // Private windows and full stores raise errors: the page can still follow.
      try {
        kept = Object(JSON.parse(storage!.getItem(key)!));
      } catch {}
      change(kept);
      try {
        isRun && kept.isOver ? storage!.removeItem(key) : storage!.setItem(key, JSON.stringify(kept));
      } catch {}
      return kept;
    };
  };

  const begin = (onState?: (state: State) => void): Life => {
    const life = new Life(onState);
    link(closing.signal, life.controller);
    return life;
  };

  const open = <M extends object>(
    plan: RunPlan,
    { signal, onState }: StreamOptions,
    more?: M,
  ): RunStream<any> & M => {
    const life = begin(onState);
    const runId = new Promise<string>((resolve, reject) => {
      plan.onRun = resolve;
      if (plan.run) resolve(plan.run);
      life.signal.addEventListener("abort", () => reject(life.signal.reason));
    });
    runId.catch(() => {});
    const members = {
      runId,
      ...more!,
      get seq() {
        return plan.seq;
      },
      get state() {
        return life.state;
      },
    };
    return streamOf(read(plan, life, signal, attached(plan, life)), life, members, () => plan.settle(), !!more);
  };

  const call = async (path: string, target: Named, init?: RequestInit): Promise<any> => {
    const query = "agent" in target ? `?agent_id=${encoded(target.agent!)}` : "";
    const response = await ask(core, [path + query, undefined, init], closing.signal);
    if (response.ok) return response.json();
    throw await refusal(response);
  };

  return {
    send(conversation, input, options = {}) {
      const { agent, clientTools, body } = options;
      const position = positionIn(conversation, agent);
      const text = JSON.stringify(input);
      let otid = options.otid!;
      position((kept) => {
        const sent = (kept.sent ??= {});
        otid ??= Object.keys(sent).find((one) => sent[one] === text) ?? randomId();
        sent[otid] = text;
      });
      const list = typeof input === "string" ? [{ role: "user", content: input }] : input;
      const request = {
        agent_id: agent,
        client_tools: clientTools,
        ...body,
        messages: list.map((item, at) => ({ otid: at ? `${otid}-${at}` : otid, ...item })),
        background: true,
        stream_tokens: true,
        streaming: true,
      };
      const plan = runPlan(undefined, 0, [`${pathOf({ conversation })}/messages`, request], position);
      plan.otid = otid;
      return open(plan, options, { otid });
    },

    follow(target: Target, options: FollowOptions = {}) {
      const { after, snapshot } = options;
      const { run, conversation = "default", agent, otid } = target as Record<string, string | undefined>;
      const position = positionIn(run ?? otid ?? conversation, agent, run ?? otid);
      const kept = position(() => {});
      const name = otid ?? Object.keys(kept.sent ?? {}).pop();
      const query = (agent ? `agent_id=${encoded(agent)}&` : "") + (name ? `otid=${encoded(name)}&` : "");
      const known = run ?? (kept.isOver ? undefined : kept.run);
      const seq = Math.max(after ?? (snapshot ? 0 : (kept.seq ?? 0)), 0);
      const plan = runPlan(known, known || after ? seq : 0, [`${pathOf({ conversation })}/stream?${query}`], position, snapshot);
      if (!known) {
        plan.otid = name;
        // No run is active: what this page has shown last is still there.
        plan.fallBack = () => {
          if (plan.run) return false;
          plan.seq = seq;
          plan.know(kept.run!);
          return !!kept.run;
        };
      }
      return open(plan, options);
    },

    many({ signal, onState } = {}) {
      const life = begin(onState);
      const plan = manyPlan();
      const members = {
        add(run: string, after = 0) {
          if (plan.plans.has(run)) return;
          if (plan.plans.size > 99) throw new ReattachError("More than 100 runs.");
          changed(life, plan.add(run, after));
        },
        drop: (run: string) => changed(life, plan.plans.delete(run)),
        get state() {
          return life.state;
        },
      };
      return streamOf(read(plan, life, signal, attach(core, plan, life)), life, members);
    },

    snapshot: (target) => call(`${pathOf(target)}/snapshot`, target),

    cancel: (target) => call(`${pathOf(target)}/cancel`, target, { method: "POST", keepalive: true }),

    close: () => closing.abort(),
  };
}

type Named = { run: string } | { conversation: string; agent?: string };

function pathOf(target: Named): string {
  return "run" in target
    ? `/v1/runs/${encoded(target.run)}`
    : `/v1/conversations/${encoded(target.conversation)}`;
}

/** Return a function that asks the application for tokens, and keeps the last one. */
function tokens(
  source: TokenSource | undefined,
  limitMs: number,
  renewAt: (at: number) => void,
): Core["token"] {
  let kept: string | undefined;
  let asking: Promise<string | undefined> | undefined;
  const renew = async (fresh: boolean): Promise<string | undefined> => {
    let timer: ReturnType<typeof setTimeout>;
    const limit = new Promise<never>((_, reject) => {
      timer = setTimeout(reject, limitMs, `no answer within ${limitMs} ms`);
    });
    try {
      const got = await Promise.race([typeof source === "function" ? source({ fresh }) : source, limit]);
      if (!got || typeof got === "string") return (kept = got);
      const now = Date.now();
      const life = Date.parse(got.expires_at) - now;
      // A new token that has expired shows that the clock is wrong; the server says when it is due.
      renewAt(life > 0 ? now + Math.max(life * RENEW_AT, LEAST_LIFE_MS) : NaN);
      return (kept = got.token);
    } catch (error) {
      throw error instanceof ReattachError ? error : new Lost(`the token function failed: ${error}`);
    } finally {
      clearTimeout(timer!);
      asking = undefined;
    }
  };
  return async (fresh, signal) =>
    (!fresh && kept) ||
    Promise.race([
      (asking ??= renew(fresh)),
      new Promise<never>((_, reject) => signal.addEventListener("abort", reject)),
    ]);
}
