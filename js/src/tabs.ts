import { changed, manyPlan } from "./many.js";
import { isHidden, onWake } from "./platform.js";
import { GRACE_MS, Life, attach, read, type Core } from "./reader.js";
import type { RunPlan } from "./run.js";
import type { Frame } from "./sse.js";
import type { RunEvent, SnapshotEvent, State } from "./types.js";

type Items = AsyncGenerator<RunEvent | SnapshotEvent, void, undefined>;
/** Yields the items of a plan like `attach`, over the shared connection once its run is known. */
export type Share = (plan: RunPlan, life: Life) => Items;

/** A message between the tabs of an origin. The tab that sent it hears it too. */
type Message =
  /** The leader is there, with the state of its connection, and asks what to read. */
  | { type: "beat"; state: State; isNew: boolean }
  | { type: "frame"; run: string; frame: Frame }
  /** A tab wants a run after its cursor. `isNew`: also if the leader is past that cursor. */
  | { type: "want"; run: string; after: number; isNew: boolean }
  /** Is there a leader? */
  | { type: "ask" };

interface Reader {
  plan: RunPlan;
  life: Life;
  frames: Frame[];
  /** The leader cannot read the run. This tab asks the server itself, and gets its own answer. */
  failed?: boolean;
  /** It waits for the leader to go back. */
  isBehind?: boolean;
}

/**
 * Share one connection between all tabs of the origin, where the browser has locks and channels. The tab
 * that has the lock leads: it reads the runs of all tabs, and passes the frames on.
 *
 * A leader that is closed or dies gives the lock to the next tab. One that is frozen keeps it, so a
 * visible tab that gets no answer steals it. Two leaders do no harm, because every tab counts the events.
 */
export function sharing(core: Core, closing: AbortSignal): Share | undefined {
  const { navigator, BroadcastChannel } = globalThis;
  if (!navigator?.locks || !BroadcastChannel) return;
  const name = `reattach ${core.url}`;
  const readers = new Set<Reader>();
  const channel = new BroadcastChannel(name);
  let lock: AbortController | undefined;
  let lead: ((message: Message) => void) | undefined;
  let heardAt = 0;

  const say = (message: Message): void => {
    if (closing.aborted) return;
    channel.postMessage(message);
    hear(message);
  };

  const want = ({ plan }: Reader, isNew = true): void =>
    say({ type: "want", run: plan.run!, after: plan.seq, isNew });

  const hear = (message: Message): void => {
    const { type } = message;
    if (type === "beat" || type === "frame") heardAt = Date.now();
    lead?.(message);
    for (const reader of readers) {
      const { life, plan, frames } = reader;
      if (type === "beat") {
        if (message.state.name !== life.state.name) life.set(message.state);
        want(reader, message.isNew);
      } else if (type === "frame" && message.run === plan.run) {
        if (message.frame.event === "run_error") reader.failed = true;
        else frames.push(message.frame);
      }
      life.wake();
    }
  };

  /** Steal the lock if the page is visible and no leader answers. */
  const check = (): void => {
    if (!readers.size || lead || isHidden()) return;
    heardAt = 0;
    say({ type: "ask" });
    setTimeout(() => {
      if (!heardAt && readers.size && !lead && !isHidden()) queue({ steal: true });
    }, GRACE_MS);
  };

  /** Lead as soon as no other tab does, or at once. */
  const queue = (options: LockOptions): void => {
    lock?.abort();
    const mine = (lock = new AbortController());
    const { signal } = mine;
    navigator.locks
      .request(name, options.steal ? options : { signal }, () => leadUntil(mine))
      .catch(() => {})
      .finally(() => {
        mine.abort();
        if (lock !== mine) return;
        lock = undefined;
        if (readers.size && !closing.aborted) queue({});
      });
  };

  const leadUntil = async (mine: AbortController): Promise<void> => {
    if (mine.signal.aborted) return;
    const wanted = new Set<string>();
    const beat = (isNew: boolean): void => say({ type: "beat", state: life.state, isNew });
    const life = new Life(({ name }) => name !== "failed" && name !== "closed" && beat(false));
    const pass = (run: string, frame: Frame): void => say({ type: "frame", run, frame });
    const plan = manyPlan(pass);
    // Tabs that have gone no longer want their runs.
    const beats = setInterval(() => {
      for (const run of plan.plans.keys()) if (!wanted.has(run)) changed(life, plan.plans.delete(run));
      if (!wanted.size) mine.abort();
      wanted.clear();
      beat(false);
    }, core.keepaliveMs);
    lead = (message) => {
      if (message.type === "ask") beat(false);
      if (message.type !== "want") return;
      const { run, after, isNew } = message;
      wanted.add(run);
      const read = plan.plans.get(run);
      // The other tabs drop the events that they have.
      if (!read || (isNew && after < read.seq)) changed(life, plan.add(run, after));
    };
    beat(true);
    try {
      for await (const _ of read(plan, life, mine.signal, attach(core, plan, life))) void _;
    } catch {
      // The server or the token does not allow it.
      if (!mine.signal.aborted) for (const run of wanted) pass(run, { event: "run_error" });
    } finally {
      clearInterval(beats);
      lead = undefined;
    }
  };

  channel.onmessage = ({ data }) => hear(data);
  onWake(check, closing);
  const checks = setInterval(check, core.keepaliveMs * 2);
  closing.addEventListener("abort", () => {
    clearInterval(checks);
    lock?.abort();
    channel.close();
  });

  return async function* (plan, life) {
    yield* attach(core, plan, life, () => plan.ended || (!!plan.run && !plan.wantsSnapshot));
    if (!plan.ended) {
      const reader: Reader = { plan, life, frames: [] };
      readers.add(reader);
      if (!lock) queue({});
      want(reader);
      check();
      try {
        while (!plan.ended && !reader.failed) {
          const frame = reader.frames.shift();
          if (!frame) {
            await new Promise<void>((resolve) => (life.wake = resolve));
            life.signal.throwIfAborted();
          } else if (parseInt(frame.id!.split(":")[1]!) > plan.seq + Number(frame.data !== "[DONE]")) {
            if (!reader.isBehind) want(reader);
            reader.isBehind = true;
          } else {
            reader.isBehind = false;
            yield* plan.take(frame, frame.data!);
          }
        }
      } finally {
        readers.delete(reader);
      }
    }
    yield* attach(core, plan, life);
  };
}
