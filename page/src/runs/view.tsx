import { useSignal } from "@preact/signals";
import { useEffect, useMemo, useRef } from "preact/hooks";
import { api, asApiError } from "../api";
import { count, counted } from "../format";
import { Dialog } from "../parts/dialog";
import { Empty } from "../parts/empty";
import { Icon } from "../parts/icon";
import { Missing, keyCommand } from "../parts/missing";
import { Stale } from "../parts/stale";
import { usePolled } from "../polling";
import { address, go, replace, route } from "../router";
import { may, server } from "../session";
import { toast } from "../toasts";
import { NoRuns } from "./empty";
import { RunList, isActive, type Filter, type RunRow } from "./list";
import { RunTable } from "./table";

const LOOK_MS = 1000;
const TYPING_MS = 250;
const STATUSES = ["active", "created", "running", "completed", "failed", "cancelled"];

/** All runs of the tenant, or of all tenants, while they happen. */
export function RunsView() {
  const token = server.value?.token;
  if (!token) return may("read") || may("admin") || may("operator") ? <Runs /> : <Missing scope="read" />;
  return (
    <div class="runs">
      <Empty title="A stream token has no list of runs">
        {token.run_id ? (
          <p>
            This one is for <a href={address(["inspector", token.run_id])}>{token.run_id}</a>.
          </p>
        ) : (
          <p>This one is for the conversation {token.conversation_id}. Sign in with an API key to see all runs.</p>
        )}
      </Empty>
    </div>
  );
}

function Runs() {
  const { params } = route.value;
  const filter: Filter = {
    query: params.query ?? "",
    status: params.status ?? "",
    model: params.model ?? "",
    agent_id: params.agent ?? "",
    tenant: params.tenant ?? "",
  };
  const isAdmin = may("admin") || may("operator");
  const key = JSON.stringify([filter, isAdmin]);
  const list = useMemo(() => new RunList(filter, isAdmin), [key]);
  const polled = usePolled((stop) => list.look(stop), LOOK_MS, key);
  const chosen = useSignal<ReadonlySet<string>>(new Set());
  const asking = useSignal<RunRow[] | null>(null);
  const focus = useRef(() => {});
  const rows = list.rows.value;
  const isStale = polled.error.value !== null;
  const isFiltered = Object.values(filter).some(Boolean);
  const cancellable = rows.filter((row) => chosen.value.has(row.id) && isActive(row));

  const cancel = async (runs: RunRow[]): Promise<void> => {
    asking.value = null;
    const results = await Promise.allSettled(
      runs.map(({ id }) => api(`v1/runs/${encodeURIComponent(id)}/cancel`, { method: "POST" })),
    );
    const failed = results.filter((one) => one.status === "rejected");
    if (failed.length) toast(asApiError(failed[0]!.reason).detail, "bad");
    else toast(runs.length === 1 ? "The run is being cancelled." : `${counted(runs.length, "run")} are being cancelled.`);
    chosen.value = new Set();
    polled.again();
  };

  return (
    <div class={`runs ${isStale ? "is-stale" : ""}`}>
      <h1 class="unseen">Runs</h1>
      <Filters filter={filter} list={list} isAdmin={isAdmin} onDown={() => focus.current()}>
        {cancellable.length > 0 && (
          <button type="button" class="danger small" onClick={() => (asking.value = cancellable)}>
            <Icon name="square" size={13} /> Cancel {cancellable.length === 1 ? "run" : counted(cancellable.length, "run")}
          </button>
        )}
        <Sums list={list} />
      </Filters>
      {!isAdmin && (
        <p class="limits muted">
          Readers, events and models need a key with the scope <code>admin</code>:{" "}
          <code>{keyCommand("admin")}</code>
        </p>
      )}
      <Stale polled={polled} />
      {rows.length > 0 ? (
        <RunTable
          focus={focus}
          rows={rows}
          isAdmin={isAdmin}
          showsTenant={may("operator") && rows.some(({ tenant }) => tenant !== rows[0]!.tenant)}
          chosen={chosen}
          onOpen={({ id }) => go(["inspector", id])}
          onCancel={may("cancel") ? (row) => void cancel([row]) : undefined}
          onEnd={() => void list.more().catch((error) => toast(asApiError(error).detail, "bad"))}
        />
      ) : (
        polled.at.value > 0 && <NoRuns isFiltered={isFiltered} />
      )}
      {asking.value && (
        <Dialog title={`Cancel ${counted(asking.value.length, "run")}?`} onClose={() => (asking.value = null)}>
          <form method="dialog" onSubmit={(event) => (event.preventDefault(), void cancel(asking.value!))}>
            <p>They end with the status cancelled. The events so far stay.</p>
            <div class="choices">
              <button type="button" onClick={() => (asking.value = null)}>
                Keep them
              </button>
              <button type="submit" class="primary">
                Cancel {counted(asking.value.length, "run")}
              </button>
            </div>
          </form>
        </Dialog>
      )}
    </div>
  );
}

function Sums({ list }: { list: RunList }) {
  const rows = list.rows.value;
  const active = list.active.value ?? rows.filter(isActive).length;
  const total = list.total.value ?? rows.length;
  const isMore = list.total.value === null && list.hasMore.value;
  return (
    <p class="sums muted number">
      <span class={active > 0 ? "live" : ""}>
        <i class="dot" /> {count(active)} active
      </span>
      <span>
        {count(total)}
        {isMore ? "+" : ""} in all
      </span>
    </p>
  );
}

interface FilterProperties {
  filter: Filter;
  list: RunList;
  isAdmin: boolean;
  onDown: () => void;
  children: preact.ComponentChildren;
}

function Filters({ filter, list, isAdmin, onDown, children }: FilterProperties) {
  const search = useRef<HTMLInputElement>(null);
  const typing = useRef<ReturnType<typeof setTimeout>>(undefined);
  const rows = list.rows.value;
  const set = (name: string, value: string): void => {
    clearTimeout(typing.current);
    const { [name]: _, ...others } = route.peek().params;
    replace(["runs"], value ? { ...others, [name]: value } : others);
  };
  useEffect(() => {
    const focus = (event: KeyboardEvent): void => {
      const { target } = event;
      const isTyping = target instanceof HTMLElement && /^(INPUT|SELECT|TEXTAREA)$/.test(target.tagName);
      if (event.key !== "/" || isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      search.current!.select();
    };
    addEventListener("keydown", focus);
    return () => {
      removeEventListener("keydown", focus);
      clearTimeout(typing.current);
    };
  }, []);
  const agents = useSeen(rows, (row) => [row.agent_id, row.agent_name ?? row.agent_id]);
  const models = useSeen(rows, (row) => [row.model ?? "", row.model ?? ""]);
  const tenants = useSeen(rows, (row) => [row.tenant, row.tenant]);
  return (
    <div class="filters" role="search" aria-label="Runs">
      <label class="search">
        <Icon name="search" />
        <span class="unseen">{isAdmin ? "Search an id or the text of a message" : "Search an id"}</span>
        <input
          ref={search}
          type="search"
          placeholder={isAdmin ? "Id or text" : "Id"}
          defaultValue={filter.query}
          maxLength={200}
          onInput={({ currentTarget: { value } }) => {
            clearTimeout(typing.current);
            typing.current = setTimeout(set, TYPING_MS, "query", value.trim());
          }}
          onKeyDown={(event) => {
            if (event.key === "ArrowDown" || event.key === "Enter") {
              event.preventDefault();
              onDown();
            }
          }}
        />
        <kbd aria-hidden="true">/</kbd>
      </label>
      <Choice label="Status" value={filter.status} options={STATUSES.map((one) => [one, one])} onChange={(value) => set("status", value)} />
      {isAdmin && <Choice label="Model" value={filter.model} options={models} onChange={(value) => set("model", value)} />}
      <Choice label="Agent" value={filter.agent_id} options={agents} onChange={(value) => set("agent", value)} />
      {(tenants.length > 1 || filter.tenant) && (
        <Choice label="Tenant" value={filter.tenant} options={tenants} onChange={(value) => set("tenant", value)} />
      )}
      {children}
    </div>
  );
}

interface ChoiceProperties {
  label: string;
  value: string;
  options: Array<[value: string, text: string]>;
  onChange: (value: string) => void;
}

function Choice({ label, value, options, onChange }: ChoiceProperties) {
  const known = value && !options.some(([one]) => one === value) ? [...options, [value, value] as const] : options;
  return (
    <select aria-label={label} value={value} class={value ? "is-set" : ""} onChange={(event) => onChange(event.currentTarget.value)}>
      <option value="">{label}: all</option>
      {known.map(([one, text]) => (
        <option key={one} value={one}>
          {text}
        </option>
      ))}
    </select>
  );
}

/** All values that were seen since the view was opened, so that a filter does not empty its own list. */
function useSeen(rows: RunRow[], of: (row: RunRow) => [string, string]): Array<[string, string]> {
  const seen = useRef(new Map<string, string>());
  for (const row of rows) {
    const [value, text] = of(row);
    if (value) seen.current.set(value, text);
  }
  return [...seen.current].sort(([, a], [, b]) => (a < b ? -1 : 1));
}
