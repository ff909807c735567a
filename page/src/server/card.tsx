import type { ComponentChildren } from "preact";
import { useRef } from "preact/hooks";
import { clock } from "../format";
import { Fault } from "../parts/fault";
import { NeedsScope } from "../parts/missing";
import { useOverflow } from "../parts/overflow";
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
      {error && error.status !== 0 && (error.status === 403 ? <NeedsScope detail={error.detail} scope="operator" /> : <Fault error={error} again={polled.again} />)}
      {data ? children(data) : (!error || error.status === 0) && <div class="skeleton" aria-hidden="true" />}
    </section>
  );
}

/** A table that scrolls by itself where the screen is narrow. */
export function Scroller({ label, children }: { label: string; children: ComponentChildren }) {
  const box = useRef<HTMLDivElement>(null);
  useOverflow(box);
  return (
    <div class="scroller-frame">
      <div ref={box} class="scroller" role="group" aria-label={label} tabIndex={0}>
        {children}
      </div>
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
