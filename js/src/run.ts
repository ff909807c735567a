import { Lost, ReattachError } from "./errors.js";
import type { Plan, Request } from "./reader.js";
import type { RunEvent, SnapshotEvent } from "./types.js";

/** An id for a path or query, from wherever the application has it. */
export const encoded = encodeURIComponent;

/** Where a page was in a conversation or run. */
export interface Kept {
  run?: string | undefined;
  /** The last event of `run` that the page has processed. */
  seq?: number;
  isOver?: boolean;
  /** Messages whose run is not known: the input of each, by its OTID. */
  sent?: Record<string, string> | undefined;
}

/** Let a function change what is kept, and return it. */
export type Position = (change: (kept: Kept) => void) => Kept;

/** One run, which may not be known yet, from a cursor on. */
export interface RunPlan extends Plan<RunEvent | SnapshotEvent> {
  run: string | undefined;
  /** The position of the last event that was taken. */
  seq: number;
  wantsSnapshot: boolean | undefined;
  /** The message whose run this is, while the run is not known. */
  otid?: string | undefined;
  /** Called when the run is known. */
  onRun?: (run: string) => void;
  /** Note that the consumer has everything that was taken. */
  settle(): void;
}

/**
 * Make the plan of a run after `seq`.
 *
 * `first` is the request until the run is known. `position` outlives a reload. Several plans may share it:
 * the newest one to know its run has it, and the others change nothing of that.
 */
export function runPlan(
  run: string | undefined,
  seq: number,
  first?: Request,
  position: Position = () => ({}),
  wantsSnapshot?: boolean,
): RunPlan {
  let hasFault = false;
  /** Raise Lost, to read again from the last good event. A second fault in a row is an error. */
  const fault = (what: string): never => {
    if (hasFault) throw new ReattachError(`The stream is broken: ${what}.`);
    hasFault = true;
    throw new Lost(what);
  };
  const plan: RunPlan = {
    run,
    seq,
    wantsSnapshot,
    ended: false,

    request() {
      if (!plan.run && first![1]) return first!;
      const path = plan.run ? `/v1/runs/${encoded(plan.run)}/stream?` : first![0];
      return [`${path}starting_after=${plan.seq}${plan.wantsSnapshot ? "&from=snapshot" : ""}`];
    },

    know(run) {
      if (!run || plan.run) return;
      plan.run = run;
      position((kept) => {
        delete kept.sent?.[plan.otid!];
        kept.run = run;
      });
      plan.settle();
      plan.onRun?.(run);
    },

    take({ event, id }, data) {
      if (data === "[DONE]") {
        const [, last] = /(\d+)-done$/.exec(id!) ?? [];
        if (Number(last) > plan.seq) fault(`the end came after ${plan.seq}`);
        plan.ended = true;
        plan.settle();
        return [];
      }
      if (event && event !== "error" && event !== "snapshot") return [];
      const item = JSON.parse(data);
      const seq = item.seq_id ?? item.seq;
      plan.know(item.run_id);
      if (event === "snapshot") {
        plan.wantsSnapshot = false;
        item.message_type = event;
      } else {
        if (!(seq > plan.seq)) return [];
        if (seq > plan.seq + 1 || item.run_id !== plan.run) {
          fault(`${seq} of ${item.run_id} came after ${plan.seq}`);
        }
      }
      hasFault = false;
      plan.seq = seq;
      plan.status = item.stop_reason ?? plan.status;
      return [item];
    },

    settle() {
      const { run, seq, ended: isOver } = plan;
      position((kept) => {
        if ((kept.run ??= run) === run) { kept.seq = seq; kept.isOver = isOver; }
      });
    },

    forget() {
      position((kept) => {
        delete kept.sent?.[plan.otid!];
        if (kept.run === plan.run) {
          delete kept.run;
          kept.isOver = true;
        }
      });
    },
  };
  return plan;
}
