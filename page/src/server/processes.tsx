import { api } from "../api";
import { age, bytes, clock, count, span } from "../format";
import { Lamp } from "../parts/lamp";
import { NeedsScope } from "../parts/missing";
import { usePolled, type Polled } from "../polling";
import { may } from "../session";
import { Card, Scroller } from "./card";
import { nameOf, type Process } from "./facts";

const LOOK_MS = 2000;
const SLOW_LOOP_SECONDS = 0.1;
/** A report is older than this if the process does not answer. */
const LATE_MS = 15_000;

export type Processes = Polled<{ items: Process[] }>;

export function useProcesses(): Processes {
  return usePolled((signal) => api<{ items: Process[] }>("v1/admin/processes", { signal }), LOOK_MS);
}

export function ProcessesCard({ processes }: { processes: Processes }) {
  return (
    <Card title="Processes" polled={processes} isWide>
      {({ items }) => (
        <Scroller label="Processes">
          <table>
            <thead>
              <tr>
                <th scope="col">Process</th>
                <th scope="col">State</th>
                <th scope="col" class="number">Runs</th>
                <th scope="col" class="number">Readers</th>
                <th scope="col" class="number">Connections</th>
                <th scope="col" class="number">Memory</th>
                <th scope="col" class="number">Loop lag</th>
                <th scope="col">Lease</th>
                <th scope="col" class="number">Up</th>
                <th scope="col">Version</th>
              </tr>
            </thead>
            <tbody>
              {items.map((one) => (
                <Row key={one.id} one={one} isUnknown={processes.error.value !== null} />
              ))}
            </tbody>
          </table>
        </Scroller>
      )}
    </Card>
  );
}

function Row({ one, isUnknown }: { one: Process; isUnknown: boolean }) {
  const lag = one.event_loop_lag_seconds;
  const isLate = Date.now() - Date.parse(one.reported_at) > LATE_MS;
  return (
    <tr>
      <th scope="row" title={one.id}>
        {nameOf(one)} {one.is_this && <span class="tag">answers</span>}
      </th>
      <td title={`Reported ${clock(one.reported_at)}`}>
        {isUnknown ? <Lamp kind="off">unknown</Lamp> : isLate ? <Lamp kind="wrong">silent for {age(one.reported_at)}</Lamp> : one.draining ? <Lamp kind="waits">draining</Lamp> : <Lamp kind="ok">serving</Lamp>}
      </td>
      <td class="number">{count(one.open_runs)}</td>
      <td class="number">{count(one.readers)}</td>
      <td class="number">{one.connections === null ? "–" : count(one.connections)}</td>
      <td class="number">{one.memory_bytes === null ? "–" : bytes(one.memory_bytes)}</td>
      <td class={`number ${lag !== null && lag > SLOW_LOOP_SECONDS ? "bad" : ""}`}>{lag === null ? "–" : span(lag * 1000)}</td>
      <td>
        <Lease one={one} />
      </td>
      <td class="number" title={`Started ${clock(one.started_at)}`}>
        {age(one.started_at)}
      </td>
      <td>{one.version}</td>
    </tr>
  );
}

/** The time that is left until others take over the runs of a process, unless it renews its lease. */
function Lease({ one: { lease } }: { one: Process }) {
  if (!lease) return <span class="muted">not needed</span>;
  const margin = lease.margin_seconds;
  if (margin === null) return <span class="muted">{lease.seconds} s</span>;
  const text = `${margin.toFixed(1)} s of ${lease.seconds} s`;
  return (
    <span class="lease" title={`${text} are left until others may take over its runs`}>
      <meter min={0} max={lease.seconds} low={lease.seconds / 3} optimum={lease.seconds} value={margin} aria-label={`Lease: ${text}`} />
      <span class="number">{margin.toFixed(1)} s</span>
    </span>
  );
}

export function StoresCard({ processes }: { processes: Processes }) {
  if (!may("operator")) {
    return (
      <section class="card" aria-label="Stores">
        <div class="card-head">
          <h2>Stores</h2>
        </div>
        <NeedsScope detail="All tenants use the same stores. A key with the scope operator shows their latencies." scope="operator" />
      </section>
    );
  }
  return (
    <Card title="Stores" polled={processes}>
      {({ items }) => {
        const rows = items.flatMap((one) => one.stores.flatMap((store) => store.operations.map((operation) => ({ one, store, operation }))));
        if (!rows.length) {
          const known = [...new Set(items.flatMap(({ stores }) => stores.map(({ store, backend }) => `${store}: ${backend}`)))];
          return <p class="muted">{known.join(", ") || "No operation was measured yet."}</p>;
        }
        const worst = Math.max(...rows.map(({ operation }) => operation.p99_seconds ?? 0));
        return (
          <Scroller label="Stores">
            <table>
              <thead>
                <tr>
                  {items.length > 1 && <th scope="col">Process</th>}
                  <th scope="col">Store</th>
                  <th scope="col">Operation</th>
                  <th scope="col" class="number">Count</th>
                  <th scope="col" class="number">p50</th>
                  <th scope="col" class="number">p99</th>
                  <th scope="col">
                    <span class="unseen">p99 compared</span>
                  </th>
                </tr>
              </thead>
              <tbody>
                {rows.map(({ one, store, operation }) => (
                  <tr key={`${one.id} ${store.store} ${operation.operation}`}>
                    {items.length > 1 && <td>{nameOf(one)}</td>}
                    <td>
                      {store.store} <span class="muted">{store.backend}</span>
                    </td>
                    <td>{operation.operation}</td>
                    <td class="number">{count(operation.count)}</td>
                    <td class="number">{latency(operation.p50_seconds)}</td>
                    <td class="number">{latency(operation.p99_seconds)}</td>
                    <td class="bar-cell" aria-hidden="true">
                      {operation.p99_seconds ? <i class="bar" style={{ width: `${(operation.p99_seconds / worst) * 100}%` }} /> : null}
                    </td>
                  </tr>
                ))}
              </tbody>
            </table>
          </Scroller>
        );
      }}
    </Card>
  );
}

function latency(seconds: number | null): string {
  if (seconds === null) return "–";
  return seconds < 0.01 ? `${(seconds * 1000).toFixed(1)} ms` : span(seconds * 1000);
}
