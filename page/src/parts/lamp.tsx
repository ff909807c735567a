import type { ComponentChildren } from "preact";

/** The status of a run as a word and a colour. */
export function RunStatus({ run }: { run: { status: string; stop_reason: string | null; cancel_requested_at: string | null } }) {
  const isActive = run.status === "running" || run.status === "created";
  const text = isActive && run.cancel_requested_at ? "cancelling" : run.status;
  const waits = run.stop_reason === "requires_approval";
  const why = run.stop_reason ? `Stop reason: ${run.stop_reason}` : text;
  return <Lamp kind={waits ? "waits" : text} title={why}>{waits ? "needs approval" : text}</Lamp>;
}

/** A word with a dot of its colour. */
export function Lamp({ kind, title, children }: { kind: string; title?: string; children: ComponentChildren }) {
  return (
    <span class={`lamp ${kind}`} title={title}>
      <i class="dot" />
      {children}
    </span>
  );
}
