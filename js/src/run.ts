import { Lost, ReattachError } from "./errors.js";
import type { Plan, Request } from "./reader.js";
import type { RunEvent, SnapshotEvent } from "./types.js";

/** An id for a path or query, from wherever the application has it. */
export const encoded = encodeURIComponent;

/** Where a page was: the OTID and the input of a message whose run is not known, or the run. */
export interface Kept {
  otid?: string | undefined;
  input?: string;
  run?: string | undefined;
  seq?: number;
}

/** One run, which may not be known yet, from a cursor on. */
export interface RunPlan extends Plan<RunEvent | SnapshotEvent> {
  run: string | undefined;
  /** The position of the last event that was taken. */
  seq: number;
  wantsSnapshot: boolean | undefined;
  /** Called when the run is known. */
  onRun?: (run: string) => void;
  /** Note that the consumer has everything that was taken. */
  settle(): void;
}

/**
 * Make the plan of a run after `seq`.
 *
 * `first` is the request until the run is known. `keep` keeps the position over a reload; without an
 * argument it forgets.
 */
export function runPlan(
  run: string | undefined,
  seq: number,
  first?: Request,
  keep = (_kept?: Kept): void => {},
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
    keep,

    request() {
      if (!plan.run && first![1]) return first!;
      const path = plan.run ? `/v1/runs/${encoded(plan.run)}/stream?` : first![0];
      return [`${path}starting_after=${plan.seq}${plan.wantsSnapshot ? "&from=snapshot" : ""}`];
    },

    know(run) {
      if (!run || plan.run) return;
      plan.run = run;
      plan.settle();
      plan.onRun?.(run);
    },

    take({ event, id }, data) {
      if (data === "[DONE]") {
        const [, last] = /(\d+)-done$/.exec(id!) ?? [];
        if (Number(last) > plan.seq) fault(`the end came after ${plan.seq}`);
        plan.ended = true;
        keep();
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
      if (plan.run && !plan.ended) keep({ run: plan.run, seq: plan.seq });
    },
  };
  return plan;
}
