import { useSignal } from "@preact/signals";
import { Stale } from "../parts/stale";
import { RunStatus } from "../parts/lamp";
import { usePolled } from "../polling";
import { address, go } from "../router";
import { RunList } from "../runs/list";
import { age } from "../format";
import { may, server } from "../session";

const LAST = 5;
const LOOK_MS = 3000;

/** The Inspector before a run is chosen: the last ones, and a field for any other. */
export function Choose() {
  const typed = useSignal("");
  const token = server.value?.token;
  const only = token?.run_id;
  // A stream token has no list of runs.
  const polled = usePolled(async (stop) => (token ? null : lastRuns(stop)), token ? null : LOOK_MS);
  return (
    <div class="choose">
      <h1>Choose a run</h1>
      <form onSubmit={(event) => (event.preventDefault(), typed.value.trim() && go(["inspector", typed.value.trim()]))}>
        <label class="unseen" for="run-id">
          Id of a run
        </label>
        <input id="run-id" placeholder="run-…" spellcheck={false} autocomplete="off" value={typed} onInput={(event) => (typed.value = event.currentTarget.value)} />
        <button type="submit" disabled={!typed.value.trim()}>
          Inspect
        </button>
      </form>
      {only ? (
        <p>
          This token follows <a href={address(["inspector", only])}>{only}</a>.
        </p>
      ) : (
        <Stale polled={polled} />
      )}
      {polled.data.value && polled.data.value.length > 0 && (
        <>
          <h2>The last runs</h2>
          <ul>
            {polled.data.value.map((run) => (
              <li key={run.id}>
                <a href={address(["inspector", run.id])}>
                  <RunStatus run={run} />
                  <span class="text">{run.input_preview ?? run.id}</span>
                  <span class="muted number">{age(run.created_at)}</span>
                </a>
              </li>
            ))}
          </ul>
        </>
      )}
      {polled.data.value?.length === 0 && (
        <p class="muted">
          No runs yet. <a href={address(["runs"])}>Send one</a>.
        </p>
      )}
    </div>
  );
}

async function lastRuns(stop: AbortSignal) {
  const list = new RunList({ query: "", status: "", model: "", agent_id: "", tenant: "" }, may("admin") || may("operator"), LAST);
  await list.look(stop);
  return list.rows.peek();
}
