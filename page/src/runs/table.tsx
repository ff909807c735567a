import type { Signal } from "@preact/signals";
import { useLayoutEffect, useRef, useState } from "preact/hooks";
import { age, clock, count, shortId, span } from "../format";
import { RunStatus } from "../parts/lamp";
import { Icon } from "../parts/icon";
import { VirtualTable } from "../parts/virtual_table";
import { address } from "../router";
import { isActive, type RunRow } from "./list";

const ROW_HEIGHT = 44;
const PAGE_ROWS = 10;

interface Properties {
  rows: RunRow[];
  isAdmin: boolean;
  showsTenant: boolean;
  chosen: Signal<ReadonlySet<string>>;
  onOpen: (row: RunRow) => void;
  onCancel: ((row: RunRow) => void) | undefined;
  onEnd: () => void;
  /** Set to a function that puts the keyboard into the table. */
  focus: { current: () => void };
}

interface Column {
  name: string;
  title: string;
  kind: "text" | "number";
  cell: (row: RunRow) => preact.ComponentChildren;
  hint?: (row: RunRow) => string | undefined;
}

const NOTHING = <span class="nothing">–</span>;
const seconds = (value: number | null) => (value === null ? NOTHING : span(value * 1000));
const number = (value: number | null) => (value === null ? NOTHING : count(value));

const PLAIN: Column[] = [
  { name: "status", title: "Status", kind: "text", cell: (row) => <RunStatus run={row} />, hint: problem },
  { name: "run", title: "Run", kind: "text", cell: RunCell, hint: ({ id }) => id },
];
const TENANT: Column = { name: "tenant", title: "Tenant", kind: "text", cell: ({ tenant }) => tenant };
const AGENT: Column = {
  name: "agent",
  title: "Agent",
  kind: "text",
  cell: (row) => row.agent_name ?? shortId(row.agent_id),
  hint: ({ agent_id }) => agent_id,
};
const MEASURED: Column[] = [
  { name: "model", title: "Model", kind: "text", cell: ({ model }) => model ?? NOTHING, hint: ({ model }) => model ?? undefined },
  AGENT,
  { name: "events", title: "Events", kind: "number", cell: ({ events }) => number(events) },
  { name: "rate", title: "Rate", kind: "number", cell: ({ events_per_second: rate }) => (rate === null ? NOTHING : `${rated(rate)}/s`) },
  { name: "first", title: "First", kind: "number", cell: (row) => seconds(row.first_event_seconds) },
];
const AGE: Column = {
  name: "age",
  title: "Age",
  kind: "number",
  cell: ({ created_at }) => age(created_at),
  hint: (row) => {
    const ended = row.completed_at ? `, ended ${clock(row.completed_at)}` : "";
    return `Sent ${clock(row.created_at)}${ended}`;
  },
};
const ATTEMPTS: Column = { name: "attempts", title: "Attempts", kind: "number", cell: ({ attempts }) => number(attempts) };
const READERS: Column = {
  name: "readers",
  title: "Readers",
  kind: "number",
  cell: ({ readers }) => (readers ? <b>{count(readers)}</b> : number(readers)),
};
const OWNER: Column = {
  name: "owner",
  title: "Owner",
  kind: "text",
  cell: ({ owner, worker }) => (owner ? (worker === null ? owner.slice(0, 8) : `worker ${worker}`) : NOTHING),
  hint: ({ owner }) => owner ?? undefined,
};

function columnsOf(isAdmin: boolean, showsTenant: boolean): Column[] {
  if (!isAdmin) return [...PLAIN, AGENT, AGE, ATTEMPTS];
  return [...PLAIN, ...(showsTenant ? [TENANT] : []), ...MEASURED, AGE, ATTEMPTS, READERS, OWNER];
}

/** The runs as a table: arrows choose a row, Enter opens it, the space bar marks it. */
export function RunTable({ rows, isAdmin, showsTenant, chosen, onOpen, onCancel, onEnd, focus }: Properties) {
  const columns = columnsOf(isAdmin, showsTenant);
  // The row is known by its id, because new runs move it down.
  const [at, setAt] = useState<string | null>(null);
  const wantsFocus = useRef(false);
  const index = Math.max(rows.findIndex(({ id }) => id === at), 0);
  const element = useRef<HTMLDivElement>(null);
  const move = (to: number): void => {
    wantsFocus.current = true;
    setAt(rows[Math.min(Math.max(to, 0), rows.length - 1)]?.id ?? null);
  };
  focus.current = () => move(index);
  useLayoutEffect(() => {
    if (!wantsFocus.current) return;
    wantsFocus.current = false;
    element.current!.querySelector<HTMLElement>(`tr[tabindex="0"]`)?.focus();
  });
  const mark = ({ id }: RunRow): void => {
    const marked = new Set(chosen.value);
    if (!marked.delete(id)) marked.add(id);
    chosen.value = marked;
  };
  const onKeyDown = (event: KeyboardEvent): void => {
    const moves: Record<string, number> = {
      ArrowDown: index + 1,
      ArrowUp: index - 1,
      PageDown: index + PAGE_ROWS,
      PageUp: index - PAGE_ROWS,
      Home: 0,
      End: rows.length - 1,
    };
    const isOnRow = event.target instanceof HTMLTableRowElement;
    const row = rows[index];
    if (event.key in moves) move(moves[event.key]!);
    else if (event.key === "Enter" && isOnRow && row) onOpen(row);
    else if (event.key === " " && isOnRow && row) mark(row);
    else return;
    event.preventDefault();
  };
  const head = (
    <tr aria-rowindex={1}>
      {onCancel && (
        <th class="mark" scope="col">
          <span class="unseen">Mark</span>
        </th>
      )}
      {columns.map(({ name, title, kind }) => (
        <th key={name} scope="col" class={`col-${name} ${kind}`}>
          {title}
        </th>
      ))}
      {onCancel && (
        <th class="act" scope="col">
          <span class="unseen">Cancel</span>
        </th>
      )}
    </tr>
  );
  const render = (place: number) => {
    const row = rows[place]!;
    return (
      <tr
        key={row.id}
        aria-rowindex={place + 2}
        tabIndex={place === index ? 0 : -1}
        class={isActive(row) ? "active" : ""}
        aria-selected={chosen.value.has(row.id)}
        onFocus={() => setAt(row.id)}
        onClick={(event) => (event.target as Element).closest("a, button, input, label") || onOpen(row)}
      >
        {onCancel && (
          <td class="mark">
            <input
              type="checkbox"
              tabIndex={-1}
              aria-label={`Mark ${shortId(row.id)}`}
              checked={chosen.value.has(row.id)}
              disabled={!isActive(row)}
              onChange={() => mark(row)}
            />
          </td>
        )}
        {columns.map(({ name, kind, cell, hint }) => (
          <td key={name} class={`col-${name} ${kind}`} title={hint?.(row)}>
            {cell(row)}
          </td>
        ))}
        {onCancel && (
          <td class="act">
            {isActive(row) && !row.cancel_requested_at && (
              <button
                type="button"
                class="quiet small"
                tabIndex={-1}
                aria-label={`Cancel ${shortId(row.id)}`}
                title="Cancel"
                onClick={() => onCancel(row)}
              >
                <Icon name="x" size={14} />
              </button>
            )}
          </td>
        )}
      </tr>
    );
  };
  return (
    <div ref={element} class="run-table" onKeyDown={onKeyDown}>
      <VirtualTable
        count={rows.length}
        rowHeight={ROW_HEIGHT}
        label="Runs, newest first"
        head={head}
        columns={columns.length + (onCancel ? 2 : 0)}
        render={render}
        at={at === null ? undefined : index}
        onEnd={onEnd}
      />
    </div>
  );
}

function RunCell(row: RunRow) {
  return (
    <>
      <a href={address(["inspector", row.id])} tabIndex={-1}>
        {shortId(row.id)}
      </a>
      {row.input_preview && <span class="preview">{row.input_preview}</span>}
    </>
  );
}

function problem({ error, stop_reason, status }: RunRow): string | undefined {
  if (!error) return stop_reason ? `${status}: ${stop_reason}` : undefined;
  const { message, detail, error_type } = Object(error) as Record<string, string | undefined>;
  return typeof error === "string" ? error : [error_type, message ?? detail].filter(Boolean).join(": ");
}

const rated = (rate: number): string => (rate < 9.95 ? rate.toFixed(1) : count(Math.round(rate)));
