import type { ComponentChildren } from "preact";
import { clock } from "../format";
import { Copy } from "../parts/copy";
import { Fault } from "../parts/fault";
import type { Polled } from "../polling";

interface Properties<T> {
  title: string;
  polled: Polled<T>;
  /** Buttons beside the title. */
  acts?: ComponentChildren;
  isWide?: boolean;
  children: (data: T) => ComponentChildren;
}

/** A part of the server that loads alone and fails alone. */
export function Card<T>({ title, polled, acts, isWide = false, children }: Properties<T>) {
  const data = polled.data.value;
  const error = polled.error.value;
  return (
    <section class={`card ${isWide ? "wide" : ""}`} aria-label={title}>
      <div class="card-head">
        <h2>{title}</h2>
        {error && data && <span class="muted number">as of {clock(polled.at.value)}</span>}
        {acts}
      </div>
      {error && (error.status === 403 ? <NeedsScope detail={error.detail} scope="operator" /> : <Fault error={error} again={polled.again} />)}
      {data ? children(data) : !error && <div class="skeleton" aria-hidden="true" />}
    </section>
  );
}

/** The scope that a key lacks, and the command that creates a key with it. */
export function NeedsScope({ detail, scope }: { detail: string; scope: "admin" | "operator" }) {
  const more = scope === "operator" ? " --scope admin --scope operator" : " --scope admin";
  const command = `reattach keys create NAME --scope read${more}`;
  return (
    <div class="needs-scope">
      <p class="muted">{detail}</p>
      <div class="command">
        <pre tabIndex={0}>{command}</pre>
        <Copy text={command} label="Copy the command" />
      </div>
    </div>
  );
}

/** A table that scrolls by itself where the screen is narrow. */
export function Scroller({ label, children }: { label: string; children: ComponentChildren }) {
  return (
    <div class="scroller" role="group" aria-label={label} tabIndex={0}>
      {children}
    </div>
  );
}

export function More({ isShown, onClick }: { isShown: boolean; onClick: () => void }) {
  if (!isShown) return null;
  return (
    <button type="button" class="small more" onClick={onClick}>
      Show more
    </button>
  );
}
