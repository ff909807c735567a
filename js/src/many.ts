import { Lost } from "./errors.js";
import type { Life, Plan } from "./reader.js";
import { runPlan, type RunPlan } from "./run.js";
import type { Frame } from "./sse.js";
import type { RunError, RunEvent } from "./types.js";

type Item = RunEvent | RunError;

/** Any number of runs, over one connection. */
export interface ManyPlan extends Plan<Item> {
  readonly plans: Map<string, RunPlan>;
  add(run: string, after: number): void;
}

/** Make the plan of many runs. `onFrame` is called with each frame of them. */
export function manyPlan(onFrame?: (run: string, frame: Frame) => void): ManyPlan {
  const plans = new Map<string, RunPlan>();
  return {
    ended: false,
    plans,

    request() {
      const runs = Array.from(plans, ([run_id, { seq }]) => ({ run_id, starting_after: seq }));
      return runs[0] && ["/v1/streams", { runs }];
    },

    know() {},

    add(run, after) {
      plans.set(run, runPlan(run, after));
    },

    take(frame, data) {
      const { event, id } = frame;
      const error = event === "run_error" && JSON.parse(data);
      const run = error.run_id ?? id!.split(":")[0]!;
      const plan = plans.get(run);
      if (!plan) return [];
      // A server that is about to stop ends its open runs in this way; they go on elsewhere.
      const { detail, retry_after_seconds: seconds } = error;
      if (seconds) throw new Lost(detail, seconds * 1000);
      const items = error ? [{ ...error, message_type: event } as Item] : (plan.take(frame, data) as Item[]);
      if (error || plan.ended) plans.delete(run);
      onFrame?.(run, frame);
      return items;
    },
  };
}

/** Connect anew, once for all changes of one task. */
export function changed(life: Life, _change: unknown): void {
  queueMicrotask(() => life.interrupt());
}
