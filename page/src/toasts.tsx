/** Short messages, which a screen reader says. */

import { signal } from "@preact/signals";

interface Toast {
  id: number;
  text: string;
  kind: "note" | "bad";
}

const SHOWN_MS = 5000;
const toasts = signal<Toast[]>([]);
/** A sentence for screen readers alone. */
const said = signal("");
let last = 0;

export function toast(text: string, kind: Toast["kind"] = "note"): void {
  const id = ++last;
  toasts.value = [...toasts.value.slice(-2), { id, text, kind }];
  setTimeout(() => (toasts.value = toasts.value.filter((one) => one.id !== id)), SHOWN_MS);
}

export function say(text: string): void {
  said.value = text;
}

export function Toasts() {
  return (
    <>
      <p class="unseen" role="status" aria-live="polite">
        {said}
      </p>
      <div class="toasts" role="status" aria-live="polite">
        {toasts.value.map(({ id, text, kind }) => (
          <p key={id} class={`toast ${kind}`}>
            {text}
          </p>
        ))}
      </div>
    </>
  );
}
