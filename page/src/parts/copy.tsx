import { useState } from "preact/hooks";
import { shortId } from "../format";
import { toast } from "../toasts";
import { Icon } from "./icon";

export async function copyText(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Pages that are not served over HTTPS or from this machine have no clipboard.
    toast(`Copy it by hand: ${text}`);
    return false;
  }
}

/** A button that copies a text and says so. */
export function Copy({ text, label }: { text: string; label: string }) {
  const [isDone, setDone] = useState(false);
  const copy = async (): Promise<void> => {
    if (!(await copyText(text))) return;
    setDone(true);
    setTimeout(() => setDone(false), 1500);
  };
  return (
    <button type="button" class="quiet small" title={label} aria-label={label} onClick={copy}>
      <Icon name={isDone ? "check" : "copy"} size={14} />
      {isDone && <span class="unseen" role="status">Copied</span>}
    </button>
  );
}

/** An id, shortened, that a click copies whole. */
export function Id({ id }: { id: string }) {
  const [isDone, setDone] = useState(false);
  const copy = async (): Promise<void> => {
    if (!(await copyText(id))) return;
    setDone(true);
    setTimeout(() => setDone(false), 1500);
  };
  return (
    <button type="button" class="id" title={`${id}: copy`} onClick={copy}>
      {isDone ? "copied" : shortId(id)}
    </button>
  );
}
