import type { Polled } from "../polling";
import { clock } from "../format";
import { Fault } from "./fault";

/** The error of a view that still shows what it got before, with the time of that. */
export function Stale<T>({ polled }: { polled: Polled<T> }) {
  const error = polled.error.value;
  if (!error) return null;
  return (
    <div class="stale">
      {polled.at.value > 0 && (
        <p class="muted" role="status">
          Last news at <time>{clock(polled.at.value)}</time>.
        </p>
      )}
      <Fault error={error} again={polled.again} />
    </div>
  );
}
